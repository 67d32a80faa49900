# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all: the one way in which vorta-trt writes what a user keeps.

    with new_file(path) as unfinished:      # one file, or several that belong together
        figure.savefig(unfinished)
    with new_folder(path) as unfinished:    # a folder
        fill(unfinished)

Everything is written into a temporary folder beside the target and renamed at the end, so an error, Ctrl-C, SIGTERM,
SIGHUP or a full disk leaves what was there before.

File systems differ. Where one has no locks, no fsync, no chmod, no exchange of names or no count of its free blocks,
the step is left out; where it cannot rename, the finished file is copied.

A slip of the hand in a path must not cost a file: `check_output` with a `FileKind` lets a file be replaced only by one
of its kind, and `check_sources` keeps a folder that is to be replaced from holding what its successor is made from.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vorta_trt.model.unfinished import (
    clear_unfinished,
    finish,
    install_folder,
    make_temporary,
    rename,
    sync,
    temporary_folder,
)
from vorta_trt.model.write_errors import WriteError, errors_of, errors_of_libraries, free_bytes
from vorta_trt.plugins.errors import VortaError

_POINTER = b"version https://git-lfs.github.com/spec/"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # which Windows' editors write


@dataclass(frozen=True)
class FileKind:
    """The kind of content that is written to a file; it decides which files may be replaced.

    Attributes:
        name: Name for messages, such as "route table".
        has: Says whether an existing file, which is not empty, is of this kind; an OSError or ValueError means no.
    """

    name: str
    has: Callable[[Path], bool]


def json_kind(name: str, *keys: str, values: Mapping[str, object] | None = None) -> FileKind:
    """The kind of JSON objects with these keys.

    Args:
        name: Name for messages, such as "route table".
        keys: Keys that tell the file from other JSON files. Files of older versions must have them, too.
        values: Further keys, with the values that they must have.
    """

    def has(path: Path) -> bool:
        with path.open("rb") as file:  # weights may be large: what does not begin as an object is not read
            if not file.read(64).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{"):
                return False
        try:
            content = json.loads(path.read_bytes().removeprefix(BYTE_ORDER_MARK))
        except RecursionError:
            return False
        return content.keys() >= set(keys) and all(content.get(key) == value for key, value in (values or {}).items())

    return FileKind(name, has)


def check_output(path: str | os.PathLike[str], size: int = 0, kind: FileKind | None = None) -> None:
    """Checks that a file of `size` bytes can be written; cheap, to be called before long work.

    Args:
        path: The file; a link is followed.
        size: Bytes that will be written.
        kind: Kind of the content that will be written. A file that is there must be of the same kind, or empty; None
            replaces any.

    Raises:
        WriteError: a folder or a file of another kind is in the way, the file's folder is missing or not writable, or
            the disk is too full.
    """
    path = Path(path)
    if _is_special(path):
        return
    with errors_of(path):
        _refuse_folder(path)
        if kind is not None:
            _refuse_other_kind(path, kind)
        make_temporary(Path(os.path.realpath(path))).rmdir()
    check_space(path, size)


def check_space(path: str | os.PathLike[str], size: int) -> None:
    """Raises WriteError if `size` bytes do not fit on the disk of `path`; a disk that does not say has space."""
    free = free_bytes(Path(os.path.realpath(path)).parent)
    if free is not None and size > free:
        reason = f"needs {_told(size)}, the disk has {_told(free)} free; free some space, or choose another folder"
        raise WriteError(path, errno.ENOSPC, reason)


def _told(size: int) -> str:
    """A number of bytes as text, in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


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
        companions: names of files that may be written beside it and belong to it. The old file is removed before new
            companions are put into place, so that a file never stands beside the companions of another version.
            Companions that are not written are removed.
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
            unfinished = Path(temporary) / path.name
            with errors_of_libraries(unfinished, unfinished.parent):  # of another disk
                yield unfinished
            try:
                with path.open("wb") as stream, unfinished.open("rb") as content:
                    shutil.copyfileobj(content, stream)
            except OSError as error:
                raise WriteError(path, error.errno or errno.EIO, _of_special(path, error)) from error
        return
    with errors_of(path):
        _refuse_folder(path)
    check_space(path, size)
    with temporary_folder(path) as folder:
        yield folder / target.name
        with errors_of(path):
            finish(folder)
            written = [name for name in companions if (folder / name).exists()]
            if written:
                target.unlink(missing_ok=True)
            for name in written:
                rename(folder / name, target.with_name(name))
            rename(folder / target.name, target)
            for name in set(companions) - set(written):
                target.with_name(name).unlink(missing_ok=True)
            sync(target.parent)


def make_folder(path: str | os.PathLike[str], mode: int = 0o777) -> None:
    """Makes a folder and those above it, unless they are there.

    Raises:
        WriteError: it cannot be made.
    """
    with errors_of(Path(path)):
        Path(path).mkdir(mode, parents=True, exist_ok=True)


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
        with errors_of(path):
            finish(folder)
            _check_in_the_way(path, replaces)
            install_folder(folder, target)
            sync(target.parent)


def make_way(path: str | os.PathLike[str]) -> None:
    """Makes the folders above `path`, removes remains of killed writers, and puts back a folder that one moved aside.

    Raises:
        WriteError: the folders cannot be made.
    """
    target = Path(os.path.realpath(path))
    with errors_of(Path(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished(target)


def check_sources(path: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str] | None]) -> None:
    """Keeps a folder from being replaced by what is made from its own files; to be called before long work.

    Args:
        path: The folder that is to be written. Where there is none yet, nothing is refused.
        sources: Files and folders that are read for it; None and what does not exist is passed over. A link counts both
            where it lies and where it points to.

    Raises:
        WriteError: a source lies in the folder, or is the folder.
    """
    path = Path(path)
    if not path.is_dir():
        return
    target = Path(os.path.realpath(path))
    for source in map(Path, (each for each in sources if each is not None)):
        if not source.exists():
            continue
        places = {Path(os.path.realpath(source)), Path(os.path.realpath(source.parent)) / source.name}
        if any(place.is_relative_to(target) for place in places):
            where = f"would be replaced, and {source}, from which it is to be made, lies in it"
            raise WriteError(path, errno.EEXIST, f"{where}; give another path, outside of what is read")


def _refuse_other_kind(path: Path, kind: FileKind) -> None:
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        same = kind.has(path)
    except (OSError, ValueError):  # UnicodeDecodeError is one
        same = False
    if not same:
        what = f"is a link to {os.path.realpath(path)}, which" if path.is_symlink() else "exists and"
        reason = f"{what} is no {kind.name}, so it is kept; give another path, or remove the file first"
        raise WriteError(path, errno.EEXIST, reason)


def _check_in_the_way(path: Path, replaces: str | None) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if replaces is None:
        raise WriteError(path, errno.EEXIST, "exists; give another path")
    if not (path / replaces).is_file():
        raise WriteError(path, errno.EEXIST, f"exists and holds no {replaces}, so it is kept; give another path")


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise WriteError(path, errno.EISDIR, f"is a folder; give a file name, e.g. {path / 'name'}")


def _is_special(path: Path) -> bool:
    """Whether the path is a pipe, a terminal or another device, which nothing may be renamed over."""
    if str(path).startswith(("/dev/fd/", "/dev/std", "/proc/self/fd/")):  # an open descriptor, of whatever file
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _of_special(path: Path, error: OSError) -> str:
    """Why a pipe or a device cannot be written; "" for a regular file behind an open descriptor."""
    if path.is_file():
        return ""
    what = f"a link to {os.path.realpath(path)}, no regular file" if path.is_symlink() else "no regular file"
    return f"cannot be written ({error.strerror or error}): is {what}; give the path of a file"


def absence(path: Path, nothing: str = "no such file") -> str:
    """Says, for an error, why a file cannot be read: what is found at its path instead.

    Args:
        path: Path at which the file should be.
        nothing: The words for a path at which there is nothing.
    """
    if path.is_dir():
        return "is a folder"
    if path.exists():
        return "is no regular file"
    if path.is_symlink():
        return f"is a link to {os.readlink(path)}, which does not exist"
    if in_the_way := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
        return f"{nothing}, for {in_the_way} is a file"
    return nothing


class PointerError(VortaError, ValueError):
    """A file is a Git LFS pointer, and not the file that the pointer stands for."""


def is_pointer(path: Path) -> bool:
    """Whether an existing file is what `git clone` without Git LFS leaves in the place of a large one."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def refuse_pointer(path: Path, what: str) -> None:
    """Raises PointerError for a pointer of Git LFS, see `is_pointer`.

    Args:
        path: an existing file.
        what: what the file should be, for the message, such as "model".
    """
    if is_pointer(path):
        raise PointerError(
            f"{what} {path}: is a pointer of Git LFS, not the file itself; run `git lfs pull` there, or download it"
        )
