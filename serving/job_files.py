# SPDX-License-Identifier: Apache-2.0
"""`JobFiles`: the folder of every job, from which the list of all jobs can be made again if the database is damaged.

JOBS/videos/ID/request.json     the job as it was queued
               image.png        images of the request
               end.json         how the job failed or was cancelled
               result-N/        what attempt N made: result.json, 0.mp4, 0.webp, 1.mp4, ...; there whole or not at all
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vorta_trt.model import files

REQUEST, RESULT, END = "request.json", "result.json", "end.json"
ID = re.compile(r"video_[0-9a-f]{32}")
logger = logging.getLogger(__name__)


class JobFiles:
    """Files of jobs below one folder; a job's folder is named by its id, and by nothing that a client sent."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "videos"
        self.root.mkdir(parents=True, exist_ok=True)

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
        """An empty folder for what an attempt makes, put into place when the block ends without an error."""
        if not self.folder(job_id).is_dir():  # deleted meanwhile
            raise FileNotFoundError(f"job {job_id}: its folder is gone")
        with files.new_folder(self.result(job_id, attempt)) as folder:
            yield folder

    def result(self, job_id: str, attempt: int) -> Path:
        """The folder of what an attempt made."""
        return self.folder(job_id) / f"result-{attempt}"

    def remove(self, job_id: str) -> None:
        """Removes a job's folder; who reads a file of it keeps reading."""
        shutil.rmtree(self.folder(job_id), ignore_errors=True)

    def remove_results(self, job_id: str, but: int | None = None) -> None:
        """Removes what other attempts made, whole or unfinished."""
        for path in self.folder(job_id).glob("*"):
            if path.is_dir() and path.name != f"result-{but}":
                shutil.rmtree(path, ignore_errors=True)

    def write_end(self, job_id: str, record: Mapping[str, Any]) -> None:
        """Says how a job failed or was cancelled, for a database that is made again; a full disk is no error here."""
        try:
            if self.folder(job_id).is_dir():
                files.write_json(self.folder(job_id) / END, record)
        except OSError as error:
            logger.warning("job %s: its end is in the database alone (%s)", job_id, error)

    def sweep(self, known: Mapping[str, int | None]) -> None:
        """Removes what killed servers and workers left; only for who has the folder alone.

        These are folders of jobs that are not known (their clients never got an answer, or they were being deleted),
        and results of attempts that were not the last.

        Args:
            known: The attempt whose result stays, by the ids of all jobs; None: none does.
        """
        for path in self.root.iterdir():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)
            else:
                self.remove_results(path.name, known[path.name])

    def records(self) -> Iterator[tuple[str, dict[str, Any], int | None, dict[str, Any] | None]]:
        """Every job that its folder tells of: id, request, the attempt that made its result, and how it ended."""
        for path in sorted(self.root.iterdir()):
            try:
                if not ID.fullmatch(path.name):
                    continue
                record = json.loads((path / REQUEST).read_text(encoding="utf-8"))
                results = sorted(path.glob(f"result-*/{RESULT}"))
                if results:
                    attempt = int(results[-1].parent.name.removeprefix("result-"))
                    yield path.name, record, attempt, json.loads(results[-1].read_text(encoding="utf-8"))
                else:
                    end = path / END
                    yield path.name, record, None, json.loads(end.read_text(encoding="utf-8")) if end.exists() else None
            except (OSError, ValueError) as error:
                logger.warning("job %s: cannot be read (%s); it is left out", path.name, error)
