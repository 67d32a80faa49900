# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all: the one way in which vorta-trt writes what a user keeps.

    with new_file(path) as unfinished:      # one file, or several that belong together
        figure.savefig(unfinished)
    with new_folder(path) as unfinished:    # a folder
        fill(unfinished)

Everything is written into a temporary folder beside the target and renamed at the end, so an error, Ctrl-C, SIGTERM,
SIGHUP or a full disk leaves what was there before. The temporary folder is locked with flock for as long as its process
lives: whoever can take the lock knows that the process was killed, and the next writer of the same name clears it away.

File systems differ. Where one has no locks, no fsync, no chmod, no exchange of names or no count of its free blocks,
the step is left out; where it cannot rename, the finished file is copied.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from vorta_trt.plugins.errors import VortaError

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"  # .NAME.unfinished-PID-RANDOM: a write in progress, or its remains
REPLACED = "replaced"  # .NAME.replaced-PID-RANDOM: the folder that was there before
LONGEST_NAME = 180  # bytes of NAME above, of the 255 that a name may have
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
_REFUSED = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EXDEV, errno.EBUSY, errno.EEXIST)
_POINTER = b"version https://git-lfs.github.com/spec/"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2


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
            remedy = _REMEDIES.get(code, "choose another folder").format(free=_free_text(path), folder=path.parent)
            reason = remedy if code == errno.ENOENT else f"cannot be written ({os.strerror(code)}): {remedy}"
        super().__init__(f"output {path}: {reason}")
        self.errno = code


def check_output(path: str | os.PathLike[str], size: int = 0) -> None:
    """Checks that a file of `size` bytes can be written; cheap, to be called before long work.

    Raises:
        WriteError: a folder is in the way, the file's folder is missing or not writable, or the disk is too full.
    """
    path = Path(path)
    if _is_special(path):
        return
    with _errors_of(path):
        _refuse_folder(path)
        _make_temporary(Path(os.path.realpath(path))).rmdir()
    check_space(path, size)


def check_space(path: str | os.PathLike[str], size: int) -> None:
    """Raises WriteError if `size` bytes do not fit on the disk of `path`; a disk that does not say has space."""
    free = free_bytes(Path(os.path.realpath(path)).parent)
    if free is not None and size > free:
        reason = f"needs {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; free some space, or choose another"
        raise WriteError(path, errno.ENOSPC, f"{reason} folder")


def free_bytes(folder: Path) -> int | None:
    """Free space of the disk; None where the file system does not say (0 blocks in all, as some FUSE mounts)."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total > 0 else None


class PointerError(VortaError, ValueError):
    """A file is a pointer of Git LFS in the place of what it points to."""


def refuse_pointer(path: Path, what: str) -> None:
    """Raises PointerError for a file that `git clone` without Git LFS leaves in the place of a large one.

    Args:
        path: an existing file.
        what: it should be, for the message, as "model".
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise PointerError(
                f"{what} {path}: is a pointer of Git LFS, not the file itself; run `git lfs pull` there, or download it"
            )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file."""
    with new_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON with an indentation of 2."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def new_file(path: str | os.PathLike[str], *companions: str, size: int = 0) -> Iterator[Path]:
    """Gives a path to write a file to, and puts the file into place when the block ends without an error.

    A symbolic link is followed, and a pipe or a device gets the bytes.

    Args:
        path: the file; its folder must exist.
        companions: names of files that may be written beside it and belong to it. The old pair goes before the new
            companions come, so that a file never stands beside another one's companions; those not written are removed.
        size: bytes that will be written, checked against the free space.

    Yields:
        A path with the name of `path` in a temporary folder.

    Raises:
        WriteError: the file cannot be written. Errors of the block are passed on, those of a full disk as WriteError.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if _is_special(path):
        with tempfile.TemporaryDirectory() as temporary:
            yield (unfinished := Path(temporary) / path.name)
            with path.open("wb") as stream, unfinished.open("rb") as content:
                shutil.copyfileobj(content, stream)
        return
    with _errors_of(path):
        _refuse_folder(path)
    check_space(path, size)
    with temporary_folder(path) as folder:
        yield folder / target.name
        with _errors_of(path):
            _finish(folder)
            written = [name for name in companions if (folder / name).exists()]
            if written:
                target.unlink(missing_ok=True)
            for name in written:
                _rename(folder / name, target.with_name(name))
            _rename(folder / target.name, target)
            for name in set(companions) - set(written):
                target.with_name(name).unlink(missing_ok=True)
            _sync(target.parent)


@contextmanager
def new_folder(path: str | os.PathLike[str], *, replaces: str | None = None) -> Iterator[Path]:
    """Gives an empty folder to fill, and puts it into place when the block ends without an error.

    Args:
        path: the folder; folders above it are made. A symbolic link is followed.
        replaces: a folder at `path` is replaced if it holds a file of this name, or is empty; None refuses any.

    Raises:
        WriteError: something is in the way, or the folder cannot be written. Errors of the block are passed on, those
            of a full disk as WriteError.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    make_way(path)
    _check_in_the_way(path, replaces)
    with temporary_folder(path) as folder:
        yield folder
        with _errors_of(path):
            _finish(folder)
            _check_in_the_way(path, replaces)
            _install_folder(folder, target)
            _sync(target.parent)


def make_way(path: str | os.PathLike[str]) -> None:
    """Makes the folders above `path`, removes what killed writers of it left, and puts back what one moved aside.

    Raises:
        WriteError: the folders cannot be made.
    """
    target = Path(os.path.realpath(path))
    with _errors_of(Path(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished(target)


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


# --- The temporary folder ----------------------------------------------------


@contextmanager
def temporary_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside `path`, for what is written on the way to it; removed at the end, whatever happens.

    Raises:
        WriteError: it cannot be made. Errors of the block are passed on, those of a full disk as WriteError.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    with _signals_raise():
        with _errors_of(path):
            clear_unfinished(target)
            folder, lock = _locked_temporary(target)
        try:
            yield folder
        except Exception as error:
            if (code := _failed_write(error, folder)) is not None:
                raise WriteError(path, code) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _locked_temporary(target: Path) -> tuple[Path, int | None]:
    while True:
        folder = _make_temporary(target)
        try:
            lock = _lock(folder)
        except OSError:  # a file system without locks
            return folder, None
        # Between mkdir and flock another writer may have taken the folder for stale and removed it: then try again.
        if lock is not None and folder.is_dir():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _make_temporary(target: Path) -> Path:
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


# --- Into place --------------------------------------------------------------


def _finish(folder: Path) -> None:
    """Has the system put all files on the disk, readable for whom any new file is readable."""
    mode = folder.stat().st_mode & 0o666
    for entry in sorted(folder.rglob("*")):
        if entry.is_file() and entry.stat().st_mode & mode != mode:
            with suppress(OSError):  # a file system without modes
                entry.chmod(entry.stat().st_mode | mode)
        _sync(entry)
    _sync(folder)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # a folder that may not be read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (*_REFUSED, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        logger.info("%s: copied, the file system does not rename (%s)", target, error)
        try:
            shutil.copyfile(source, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _install_folder(folder: Path, target: Path) -> None:
    """Puts a folder into place. One that is there is swapped out in one atomic step if possible, then removed."""
    if not target.exists():
        _rename_folder(folder, target)
    elif not exchange(folder, target):
        aside = folder.with_name(folder.name.replace(f".{UNFINISHED}-", f".{REPLACED}-"))
        try:
            target.rename(aside)
        except OSError as error:
            if error.errno != errno.EXDEV:  # a layer below of a container's file system: it can be removed only
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
        if error.errno not in _REFUSED:
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
    if (code := ctypes.get_errno()) in _REFUSED and code != errno.EBUSY:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _check_in_the_way(path: Path, replaces: str | None) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if replaces is None:
        raise WriteError(path, errno.EEXIST, "exists; give another path")
    if not (path / replaces).is_file():
        raise WriteError(path, errno.EEXIST, f"exists and holds no {replaces}, so it is kept; give another path")


# --- Errors and signals ------------------------------------------------------


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turns the errors of our own system calls into WriteError."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno is None or isinstance(error, VortaError):
            raise
        raise WriteError(path, error.errno) from error


def _failed_write(error: Exception, folder: Path) -> int | None:
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


def _free_text(path: Path) -> str:
    free = free_bytes(path.parent)
    return "free space unknown" if free is None else f"{free / 1e9:.2f} GB free"


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise WriteError(path, errno.EISDIR, f"is a folder; give a file name, e.g. {path / 'name'}")


def _is_special(path: Path) -> bool:
    """Whether the path is a pipe, a terminal or another device, which nothing may be renamed over."""
    if str(path).startswith(("/dev/fd/", "/dev/std", "/proc/self/fd/")):  # whatever stands behind it, it is open
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextmanager
def _signals_raise() -> Iterator[None]:
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
