# SPDX-License-Identifier: Apache-2.0
"""Writing a model file and its data file so that the destination never holds half of one, or parts of two."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

DATA_SUFFIX = ".data"  # of the external data file: model.onnx.data beside model.onnx


def check_destination(path: Path) -> None:
    """Raises OSError if nothing can be written at `path`; cheap, to be called before long work."""
    if path.is_dir():
        raise IsADirectoryError(f"output {path}: is a folder; give a file name, e.g. {path / 'model.onnx'}")
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"output {path}: its folder does not exist; create it first: mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"output {path}: its folder is not writable; choose another folder")


@contextmanager
def staged(path: Path, size: int) -> Iterator[Path]:
    """Gives a path to write the model to, with its data file beside it; moves both to `path` when all went well.

    They are staged in a temporary folder beside the destination, which is removed whatever happens, SIGTERM included.
    An old model at `path` stays until the new one is complete, then the old pair goes before the new data comes, so
    that no model ever stands beside the data of another one.

    Args:
        size: bytes that will be written, checked against the free space.

    Raises:
        OSError: no space, or not writable.
    """
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise _no_space(path, size, free)
    with _sigterm_raises():
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            stage = folder / path.name
            try:
                yield stage
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _no_space(path, size, shutil.disk_usage(path.parent).free) from error
                raise
            _install(stage, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def data_file(path: Path) -> Path:
    """Where the external data of the model at `path` lies, if it has any."""
    return path.with_name(path.name + DATA_SUFFIX)


def _install(stage: Path, path: Path) -> None:
    stage.chmod(_default_mode())
    if data_file(stage).exists():
        data_file(stage).chmod(_default_mode())
        path.unlink(missing_ok=True)
        os.replace(data_file(stage), data_file(path))
        os.replace(stage, path)
    else:
        os.replace(stage, path)
        data_file(path).unlink(missing_ok=True)  # of the model that was there before


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _no_space(path: Path, size: int, free: int) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"output {path}: needs {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; free some space, or choose "
        f"another folder",
    )


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets SIGTERM unwind the stack, as Ctrl-C does, where it would kill the process on the spot."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
