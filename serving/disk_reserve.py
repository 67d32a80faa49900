# SPDX-License-Identifier: Apache-2.0
"""`Reserve`: a little space that is held back, so that jobs can be ended and deleted when the disk is full."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from pathlib import Path

from vorta_trt.model.write_errors import free_bytes

NAME = "reserve"
BYTES = 4 << 20
ONE_CHANGE = 512 << 10  # more than a change of the job database needs, with its log and index
_OTHERS = ("disk I/O error", "unable to open database file")
logger = logging.getLogger(__name__)


class Reserve:
    """A file in a folder that takes up space until the space is needed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def keep(self) -> None:
        """Allocates the file, if the disk has enough space besides."""
        try:
            if self._size() == BYTES or _has_less(self.path.parent, 4 * BYTES):
                return
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, BYTES)
            finally:
                os.close(file)
        except OSError as error:
            logger.info("%s: is not kept (%s)", self.path, error)

    def free_some(self) -> None:
        """Frees only what one change needs: more changes may come, and other programs fill the disk, too."""
        try:
            os.truncate(self.path, max(0, self._size() - ONE_CHANGE))
        except OSError as error:
            logger.info("%s: has nothing to give (%s)", self.path, error)

    def is_short(self) -> bool:
        """Whether the disk has only enough space to end and remove jobs."""
        return _has_less(self.path.parent, BYTES)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def is_full(error: BaseException, folder: Path | None = None) -> bool:
    """Whether an error means that the disk is full.

    SQLite reports a full disk by several errors, depending on the file. Some of them have other causes, too: these
    count only if `folder` has no space left.
    """
    if not isinstance(error, sqlite3.OperationalError):
        return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "is full" in str(error):
        return True
    if folder is None or not any(each in str(error) for each in _OTHERS):
        return False
    return _has_less(folder, BYTES)


def _has_less(folder: Path, size: int) -> bool:
    """Whether fewer than `size` bytes are free; False if the file system does not tell."""
    free = free_bytes(folder)
    return free is not None and free < size
