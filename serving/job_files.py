# SPDX-License-Identifier: Apache-2.0
"""`JobFiles`: the folder of every job, from which the list of all jobs can be rebuilt if the database is damaged.

JOBS/videos/ID/request.json     the job as it was queued
               image.png        images of the request
               end.json         how the job failed or was cancelled
               result-N/        results of attempt N: result.json, 0.mp4, 0.webp, 1.mp4, ...; complete or absent
JOBS/lost/ID/                   a job's folder that a starting server could not read; it is never removed
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vorta_trt.model import files
from vorta_trt.model.files import make_folder
from vorta_trt.serving.job_records import END, REQUEST, RESULT

__all__ = ["END", "REQUEST", "RESULT", "JobFiles"]
ID = re.compile(r"video_[0-9a-f]{32}")
logger = logging.getLogger(__name__)


class JobFiles:
    """Files of jobs below one folder; a job's folder is named by its id, and by nothing that a client sent."""

    def __init__(self, folder: Path) -> None:
        self.root, self.lost = folder / "videos", folder / "lost"
        make_folder(self.root, 0o700)
        keep_private(self.root, 0o700)

    def folder(self, job_id: str) -> Path:
        """The folder of a job.

        Raises:
            ValueError: This is no id.
        """
        if not ID.fullmatch(job_id):
            raise ValueError(f"job {job_id!r}: is no id of a job")
        return self.root / job_id

    def write_request(self, job_id: str, record: Mapping[str, Any], images: Mapping[str, bytes]) -> None:
        """Writes the folder of a new job, whole or not at all.

        Raises:
            WriteError: The disk is full, or cannot be written.
        """
        with files.new_folder(self.folder(job_id)) as folder:
            (folder / REQUEST).write_text(json.dumps(record), encoding="utf-8")
            for name, content in images.items():
                (folder / name).write_bytes(content)

    @contextmanager
    def new_result(self, job_id: str, attempt: int) -> Iterator[Path]:
        """An empty folder for an attempt's results, which is put into place when the block ends without an error."""
        if not self.folder(job_id).is_dir():  # deleted meanwhile
            raise FileNotFoundError(f"job {job_id}: its folder is gone")
        with files.new_folder(self.result(job_id, attempt)) as folder:
            yield folder

    def result(self, job_id: str, attempt: int) -> Path:
        """The folder of an attempt's results."""
        return self.folder(job_id) / f"result-{attempt}"

    def remove(self, job_id: str) -> None:
        """Removes a job's folder; a kill meanwhile leaves no part of it under the id. Open files can still be read."""
        path = self.folder(job_id)
        gone = self.root / f".{job_id}.removed-{secrets.token_hex(4)}"
        try:
            path.rename(gone)
        except OSError:
            gone = path
        shutil.rmtree(gone, ignore_errors=True)

    def lose(self, job_id: str) -> Path:
        """Moves a job's folder that cannot be read to `lost`; returns its new path.

        Raises:
            OSError: The folder cannot be moved.
        """
        self.lost.mkdir(mode=0o700, exist_ok=True)
        path = self.lost / job_id
        if path.exists():
            path = path.with_name(f"{job_id}-{time.time_ns()}")
        self.folder(job_id).rename(path)
        return path

    def ids(self) -> list[str]:
        """The ids of all jobs that have a folder."""
        return sorted(path.name for path in self.root.iterdir() if ID.fullmatch(path.name))

    def remove_results(self, job_id: str, but: int | None = None) -> None:
        """Removes the results of all attempts except `but`, complete or not."""
        for path in self.folder(job_id).glob("*"):
            if path.is_dir() and path.name != f"result-{but}":
                shutil.rmtree(path, ignore_errors=True)

    def write_end(self, job_id: str, record: Mapping[str, Any]) -> None:
        """Writes how a job failed or was cancelled, for a rebuilt database; errors of the disk are only logged."""
        try:
            if self.folder(job_id).is_dir():
                files.write_json(self.folder(job_id) / END, record)
        except OSError as error:
            logger.warning("job %s: its end is in the database alone (%s)", job_id, error)

    def sweep(self, known: Mapping[str, int | None], deleted: Set[str]) -> None:
        """Removes what killed servers and workers left behind. Only the folder's exclusive owner may call it.

        These are folders of deleted jobs, unfinished folders, and results of attempts that were not the last.

        Args:
            known: For each job's id, the attempt whose result stays; None: no result stays.
            deleted: Ids of jobs that were deleted or have expired.
        """
        for path in self.root.iterdir():
            if path.name in known:
                self.remove_results(path.name, known[path.name])
            elif path.name in deleted or path.name.startswith(".video_"):
                shutil.rmtree(path, ignore_errors=True)


def keep_private(path: Path, mode: int) -> None:
    """Lets only the owner read a file or folder, which holds prompts and videos. Failures are only logged."""
    try:
        os.chmod(path, mode)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s: others may read it (%s)", path, error)
