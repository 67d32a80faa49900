# SPDX-License-Identifier: Apache-2.0
"""Files written in chunks and hashed on the way: the plan as TensorRT streams it, and copies into the bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from vorta_trt.engines.manifest import FileEntry

CHUNK_BYTES = 16 * 2**20


class HashedFile:
    """A new file that knows its SHA-256 and size; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Appends to the file and the hash."""
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. May be called twice."""
        self._file.close()

    @property
    def entry(self) -> FileEntry:
        """Hash and size of what was written so far."""
        return FileEntry(sha256=self._hash.hexdigest(), bytes=self._bytes)


def stream_writer(trt: Any, file: HashedFile, check: Callable[[], None]) -> Any:
    """An `IStreamWriter` into `file`.

    TensorRT ignores both what `write` returns and what it raises, and reports success (seen with TensorRT-RTX 1.7): the
    first error is kept in `.error`, everything after it is skipped, and the builder raises it.
    """

    class StreamWriter(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: BaseException | None = None

        def write(self, data: bytes) -> int:
            if self.error is None:
                try:
                    check()
                    file.write(data)
                except Exception as error:
                    self.error = error
            return len(data) if self.error is None else 0

    return StreamWriter()


def copy_hashed(source: Path, target: Path, check: Callable[[], None] = lambda: None) -> FileEntry:
    """Copies a file in chunks and returns its entry for the manifest; `check` may raise between chunks."""
    with source.open("rb") as reader, HashedFile(target) as writer:
        while chunk := reader.read(CHUNK_BYTES):
            check()
            writer.write(chunk)
    return writer.entry


def hash_file(path: Path, check: Callable[[], None] = lambda: None) -> FileEntry:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as reader:
        while chunk := reader.read(CHUNK_BYTES):
            check()
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(sha256=digest.hexdigest(), bytes=size)
