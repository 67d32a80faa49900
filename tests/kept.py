# SPDX-License-Identifier: Apache-2.0
"""Files that tests make once and keep between runs and processes, in `.pytest_cache/d/kept`.

A folder there is named by a hash of all that its content depends on: the sources of some rooms, the versions of the
libraries below them, and the test files that say what to make. If any of these changes, another folder is used.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock

import vorta_trt
import vorta_trt.plugins

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "safetensors", "onnx", "onnx-ir", "onnxscript", "ml-dtypes")
BUILDERS = ("tensorrt-rtx", "tensorrt")
WEEK = 7 * 24 * 3600.0


@cache
def _digest(rooms: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    package = Path(vorta_trt.plugins.__file__).parents[1]
    sources = [path for room in rooms for path in (package / room).rglob("*") if path.suffix in (".py", ".so")]
    for path in [*sorted(sources), Path(__file__), Path(__file__).with_name("tiny.py")]:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    versions = [platform.python_version(), vorta_trt.__version__]
    for name in (*LIBRARIES, *BUILDERS) if "engines" in rooms else LIBRARIES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # on a GPU machine without the builder, or without what exports
            versions.append(f"no {name}")
    digest.update("\n".join(versions).encode())
    return digest.hexdigest()[:16]


def _content(path: Path) -> str:
    """A hash of the names and bytes of a file or a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        digest.update(str(file.relative_to(path)).encode() + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()


class Kept:
    """Makes files that are missing or were changed. Tests read them, and copy those that they want to change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: set[Path] = set()  # to this process

    def folder(self, *rooms: str) -> Path:
        """The folder of files that these rooms make. Its name has spaces."""
        path = self.root / f"by {'-'.join(rooms)} {_digest(rooms)}"
        if not path.exists():
            for other in self.root.glob("by *"):
                if time.time() - other.stat().st_mtime > WEEK:
                    shutil.rmtree(other, ignore_errors=True)
            path.mkdir(parents=True, exist_ok=True)
        os.utime(path)  # in use
        return path

    def make(self, path: Path, make: Callable[[Path], object]) -> Path:
        """Returns `path`, after `make(path)` if it is missing or was changed; a lock lets only one process make it."""
        if path in self.known:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        done = path.with_name(f".{path.name}.sha256")
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not done.exists() or not path.exists() or done.read_text() != _content(path):
                done.unlink(missing_ok=True)
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                make(path)
                done.write_text(_content(path))
        self.known.add(path)
        return path
