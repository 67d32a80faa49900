# SPDX-License-Identifier: Apache-2.0
"""Copies of ONNX files in a bundle of several engines. All weights lie in one data file, which holds every value once.

The models of one component differ in their video sizes alone: all weights are the same, except tables such as those of
the rotary embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.engines.hashed_file import CHUNK_BYTES, HashedFile
from vorta_trt.engines.manifest import FileEntry
from vorta_trt.export.onnx_file import OnnxFile, read_onnx

if TYPE_CHECKING:
    import onnx

ALIGNMENT = 4096  # bytes; every value in the data file starts at a multiple, so that it can be memory-mapped
INLINE_BELOW = 1024  # bytes; what is smaller stays in the model


class OnnxCopies:
    """Writes the copies of a bundle; a context manager.

    Args:
        data_file: The data file to write.
    """

    def __init__(self, data_file: Path) -> None:
        self._data = HashedFile(data_file)
        self._places: dict[bytes, int] = {}  # SHA-256 of a value -> offset
        self._size = 0

    def add(self, file: OnnxFile, target: Path, check: Callable[[], None]) -> FileEntry:
        """Writes a copy of the model.

        Args:
            file: The model, whose weights are read one after the other.
            target: The copy, beside the data file.
            check: Called before every weight; it may raise to stop.

        Returns:
            Hash and size of the copy.
        """
        model = read_onnx(file.path).model  # the graph of `file` may have lost its weights
        for tensor in model.graph.initializer:
            check()
            content = file.read_bytes(tensor)
            if len(content) < INLINE_BELOW:
                clear_value(tensor)
                tensor.raw_data = content
            else:
                set_external(tensor, self._data.path.name, self._write(content), len(content))
        with HashedFile(target) as copy:
            content = model.SerializeToString()
            for start in range(0, len(content), CHUNK_BYTES):
                copy.write(content[start : start + CHUNK_BYTES])
        return copy.entry

    def _write(self, content: bytes) -> int:
        """Writes a value unless the file has it already; returns its offset."""
        digest = hashlib.sha256(content).digest()
        if digest not in self._places:
            padding = -self._size % ALIGNMENT
            self._data.write(bytes(padding))
            self._places[digest] = self._size + padding
            self._data.write(content)
            self._size += padding + len(content)
        return self._places[digest]

    def close(self) -> FileEntry:
        """Closes the data file, and gives its hash and size."""
        self._data.close()
        return self._data.entry


def set_external(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Replaces the value of an initializer by a reference to external data."""
    clear_value(tensor)
    tensor.data_location = tensor.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def clear_value(tensor: onnx.TensorProto) -> None:
    """Removes the value from an initializer."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = tensor.DEFAULT
