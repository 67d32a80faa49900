# SPDX-License-Identifier: Apache-2.0
"""A folder that appears at its destination whole, or not at all.

The build writes into a temporary folder beside the destination, so that the last step is a rename within one file
system. The folder is locked with flock for as long as its process lives; whoever can take the lock knows that the build
is dead and clears the folder away.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vorta_trt.engines.errors import BundleWriteError
from vorta_trt.engines.manifest import MANIFEST

logger = logging.getLogger(__name__)

BUILDING = "building"  # .NAME.building-PID-RANDOM: a build in progress, or its remains
REPLACED = "replaced"  # .NAME.replaced-PID-RANDOM: the bundle that was there before

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class LockUnsupported(Exception):
    """The file system (some network ones) has no flock on folders: nothing can be known to be stale there."""


class Staging:
    """The temporary folder `path`; `commit` renames it to `destination`."""

    def __init__(self, destination: Path, path: Path, overwrite: bool) -> None:
        self.destination = destination
        self.path = path
        self.overwrite = overwrite
        self.committed = False

    def commit(self) -> None:
        """Puts the folder into place. A bundle that is there is swapped out in one atomic step, then removed."""
        check_destination(self.destination, self.overwrite)
        if not self.destination.exists():
            self.path.rename(self.destination)
        elif exchange(self.path, self.destination):
            shutil.rmtree(self.path)  # now the old bundle
        else:
            aside = self.path.with_name(self.path.name.replace(f".{BUILDING}-", f".{REPLACED}-"))
            self.destination.rename(aside)
            self.path.rename(self.destination)
            shutil.rmtree(aside)
        self.committed = True


@contextmanager
def staging_folder(destination: Path, overwrite: bool) -> Iterator[Staging]:
    """Makes the temporary folder, and removes it if `commit` was not called.

    Raises BundleWriteError at once if the destination is taken or its folder cannot be written.
    """
    destination = Path(os.path.realpath(destination))  # a symbolic link to a bundle: replace what it points to
    try:
        clear_stale(destination)
        check_destination(destination, overwrite)
        destination.parent.mkdir(parents=True, exist_ok=True)
        path, lock = _locked_folder(destination)
    except BundleWriteError:
        raise
    except OSError as error:
        raise cannot_write(destination, error) from error
    staging = Staging(destination, path, overwrite)
    try:
        yield staging
    finally:
        if not staging.committed:
            shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def check_destination(destination: Path, overwrite: bool) -> None:
    """Raises BundleWriteError unless `destination` is free, or a bundle that may be replaced."""
    if not destination.exists():
        return
    if not (destination / MANIFEST).is_file():
        raise BundleWriteError(f"{destination}: exists and is not a bundle (no {MANIFEST}); give another path")
    if not overwrite:
        raise BundleWriteError(f"{destination}: this bundle exists; pass overwrite=True (--overwrite) or another path")


def cannot_write(destination: Path, error: OSError) -> BundleWriteError:
    """The error for the user, with the remedy for the usual causes."""
    free = _free_bytes(destination.parent)
    remedy = {
        errno.ENOSPC: f"the disk is full ({free}); free some space or write to another disk",
        errno.EDQUOT: "the disk quota is used up; free some space or write to another disk",
        errno.EFBIG: "the file would be larger than the file system or `ulimit -f` allows; write elsewhere",
        errno.EROFS: "the file system is read-only; write to another folder",
        errno.EACCES: "no permission to write there; write to another folder or change its permissions",
        errno.EPERM: "writing there is not permitted; write to another folder",
        errno.ENOTDIR: "a part of the path is a file; give another path",
        errno.EEXIST: "a part of the path is a file; give another path",
    }.get(error.errno or 0, "write to another folder")
    return BundleWriteError(f"{destination}: cannot write the bundle ({error.strerror or error}): {remedy}")


def _free_bytes(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB free"
    except OSError:
        return "free space unknown"


def _locked_folder(destination: Path) -> tuple[Path, int | None]:
    while True:
        path = destination.with_name(f".{destination.name}.{BUILDING}-{os.getpid()}-{secrets.token_hex(4)}")
        path.mkdir()
        try:
            lock = _lock(path)
        except LockUnsupported:
            return path, None
        # Between mkdir and flock another build may have taken the folder for stale and removed it: then try again.
        if lock is not None and path.is_dir():
            return path, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """An open, locked descriptor of `folder`, or None if another process holds the lock or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise LockUnsupported(str(error)) from error
    return descriptor


def clear_stale(destination: Path) -> None:
    """Removes what killed builds of `destination` left, and puts a bundle back that one had moved aside."""
    for kind in (REPLACED, BUILDING):
        for folder in destination.parent.glob(f".{_escape(destination.name)}.{kind}-*"):
            try:
                lock = _lock(folder)
            except LockUnsupported as error:
                logger.info("%s: left as it is, the file system has no locks (%s)", folder, error)
                continue
            if lock is None:
                continue  # that build is running
            try:
                if kind == REPLACED and not destination.exists():
                    folder.rename(destination)
                    logger.warning("%s: put back; a build was killed while replacing it", destination)
                else:
                    shutil.rmtree(folder)
                    logger.info("%s: removed, left by a build that was killed", folder)
            finally:
                os.close(lock)


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def exchange(first: Path, second: Path) -> bool:
    """Swaps two folders atomically (Linux renameat2); False where the system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))
