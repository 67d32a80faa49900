# SPDX-License-Identifier: Apache-2.0
"""`WriteError`: what keeps a file from being written, with the remedy, from the many forms in which it is raised."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vorta_trt.plugins.errors import VortaError

ALMOST_FULL = 2**20  # bytes free, below which a failed write without a reason is one of a full disk

_REMEDIES = {
    errno.ENOSPC: "the disk is full ({free}); free some space, or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space, or choose another folder",
    errno.EFBIG: "it is larger than the file system or `ulimit -f` allows; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "its folder is not writable; choose another folder, or change its permissions",
    errno.EPERM: "its folder is not writable; choose another folder",
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.EEXIST: "a part of the path is a file; give another path",
    errno.ENOENT: "its folder does not exist; create it first: mkdir -p {folder}",
    errno.EISDIR: "is a folder; give a file name",
    errno.ENAMETOOLONG: "the name is too long for the file system; give a shorter one",
    errno.EBUSY: "something is mounted there; give a path inside of it, or another one",
}
_ONLY_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class WriteError(VortaError, OSError):
    """Something cannot be written: no space, no permission, or something else is in the way.

    Args:
        path: what was to be written.
        code: an `errno`.
        reason: what is wrong and what to do; by default the system's words for `code`, with the remedy.
    """

    def __init__(self, path: str | os.PathLike[str], code: int, reason: str = "") -> None:
        path = Path(path)
        if not reason:
            target = Path(os.path.realpath(path)) if os.path.islink(path) else path
            remedy = _REMEDIES.get(code, "choose another folder").format(free=_free_text(path), folder=target.parent)
            plain = code == errno.ENOENT
            if plain and (refuses := _refusing(target)):
                plain, remedy = False, f"{refuses} takes no new files or folders; choose another folder"
            reason = remedy if plain else f"cannot be written ({os.strerror(code)}): {remedy}"
        super().__init__(f"output {path}: {reason}")
        self.errno = code


def free_bytes(folder: Path) -> int | None:
    """Free space of the disk; None where the file system does not say (0 blocks in all, as some FUSE mounts)."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total > 0 else None


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Turns the errors of our own system calls into WriteError."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno is None or isinstance(error, VortaError):
            raise
        raise WriteError(path, error.errno) from error


@contextmanager
def errors_of_libraries(path: Path, folder: Path) -> Iterator[None]:
    """Turns what libraries raise of a write that failed, in `folder`, into WriteError; all else is passed on.

    Args:
        path: what was to be written.
        folder: where the block writes.
    """
    try:
        yield
    except Exception as error:
        if (code := failed_write(error, folder)) is not None:
            raise WriteError(path, code) from error
        raise


def failed_write(error: Exception, folder: Path) -> int | None:
    """The errno of an error that says that a write failed; None for any other, reading included."""
    if isinstance(error, VortaError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _ONLY_OF_WRITING else None
    if said := re.search(r"\bos error (\d+)\b", str(error)):  # safetensors, which is written in Rust
        return int(said[1]) if int(said[1]) in _ONLY_OF_WRITING else None
    free = free_bytes(folder)  # NumPy and torch only say that less was written
    full = free is not None and free < ALMOST_FULL and isinstance(error, OSError | RuntimeError)
    return errno.ENOSPC if full else None


def _refusing(target: Path) -> Path | None:
    """The existing folder in which nothing can be made, such as /proc; None where a folder is only missing."""
    there = next(folder for folder in target.absolute().parents if folder.exists())
    return there if there == target.absolute().parent or there.resolve().is_relative_to("/proc") else None


def _free_text(path: Path) -> str:
    free = free_bytes(Path(os.path.realpath(path)).parent)
    return "free space unknown" if free is None else f"{free / 1e9:.2f} GB free"
