# SPDX-License-Identifier: Apache-2.0
"""The temporary folder in which a write is prepared, and putting what is in it into place.

The folder stands beside the target, so that the last step is a rename within one file system. It is locked with flock
for as long as its process lives: whoever can take the lock knows that the process was killed, and the next writer of
the same name clears the folder away.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from vorta_trt.model.write_errors import errors_of, errors_of_libraries

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"  # .NAME.unfinished-PID-RANDOM: a write in progress, or its remains
REPLACED = "replaced"  # .NAME.replaced-PID-RANDOM: the folder that was there before
LONGEST_NAME = 180  # bytes of NAME above, of the 255 that a name may have

REFUSED = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EXDEV, errno.EBUSY, errno.EEXIST)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2


@contextmanager
def temporary_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside `path`, for what is written on the way to it; removed at the end, whatever happens.

    Raises:
        WriteError: it cannot be made. Errors of the block are passed on, those of a full disk as WriteError.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    with signals_raise():
        with errors_of(path):
            clear_unfinished(target)
            folder, lock = _locked_temporary(target)
        try:
            with errors_of_libraries(path, folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _locked_temporary(target: Path) -> tuple[Path, int | None]:
    while True:
        folder = make_temporary(target)
        try:
            lock = _lock(folder)
        except OSError:  # a file system without locks
            return folder, None
        # Between mkdir and flock another writer may have taken the folder for stale and removed it: then try again.
        if lock is not None and folder.is_dir():
            return folder, lock
        if lock is not None:
            os.close(lock)


def make_temporary(target: Path) -> Path:
    """Makes a folder beside the target, under a name that nobody else takes."""
    folder = target.with_name(f".{_short(target.name)}.{UNFINISHED}-{os.getpid()}-{secrets.token_hex(4)}")
    folder.mkdir()
    return folder


def _lock(folder: Path) -> int | None:
    """An open, locked descriptor; None if another process holds the lock, or the folder is gone; OSError: no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _short(name: str) -> str:
    """`name`, or as much of it as leaves space for the rest of a temporary folder's name."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME:
        return name
    return f"{os.fsdecode(encoded[: LONGEST_NAME - 20])}~{hashlib.sha256(encoded).hexdigest()[:16]}"


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def clear_unfinished(target: Path) -> None:
    """Removes what killed writers of `target` left, and puts a folder back that one had moved aside."""
    for kind in (REPLACED, UNFINISHED):
        for folder in target.parent.glob(f".{_escape(_short(target.name))}.{kind}-*"):
            try:
                lock = _lock(folder)
            except OSError as error:
                logger.info("%s: left as it is, the file system has no locks (%s)", folder, error)
                continue
            if lock is None:
                continue  # its process lives
            try:
                if kind == REPLACED and not target.exists():
                    folder.rename(target)
                    logger.warning("%s: put back; its writer was killed while replacing it", target)
                else:
                    shutil.rmtree(folder, ignore_errors=True)
                    logger.info("%s: removed, its writer was killed", folder)
            finally:
                os.close(lock)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, where they would kill the process on the spot."""
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(number) is signal.SIG_DFL
    ]

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


# --- Into place --------------------------------------------------------------


def finish(folder: Path) -> None:
    """Has the system write all files to the disk, readable for everyone who may read a new file."""
    mode = folder.stat().st_mode & 0o666
    for entry in sorted(folder.rglob("*")):
        if entry.is_file() and entry.stat().st_mode & mode != mode:
            with suppress(OSError):  # a file system without modes
                entry.chmod(entry.stat().st_mode | mode)
        sync(entry)
    sync(folder)


def sync(path: Path) -> None:
    """Has the system write a file, or the entries of a folder, to the disk, where the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # a folder that may not be read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (*REFUSED, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Puts a file into place; copies it where the file system does not rename."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        logger.info("%s: copied, the file system does not rename (%s)", target, error)
        try:
            shutil.copyfile(source, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def install_folder(folder: Path, target: Path) -> None:
    """Puts a folder into place. One that is there is swapped out in one atomic step if possible, then removed."""
    if not target.exists():
        _rename_folder(folder, target)
    elif not exchange(folder, target):
        aside = folder.with_name(folder.name.replace(f".{UNFINISHED}-", f".{REPLACED}-"))
        try:
            target.rename(aside)
        except OSError as error:
            if error.errno != errno.EXDEV:  # a lower layer of a container's file system: it can only be removed
                raise
            shutil.rmtree(target)
        try:
            _rename_folder(folder, target)
        except BaseException:
            if aside.exists():
                aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _rename_folder(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        logger.info("%s: copied, the file system does not rename (%s)", target, error)
        try:
            shutil.copytree(folder, target, copy_function=shutil.copyfile)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise


def exchange(first: Path, second: Path) -> bool:
    """Swaps two folders atomically (Linux renameat2); False where the system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in REFUSED and code != errno.EBUSY:
        return False
    raise OSError(code, os.strerror(code), str(second))
