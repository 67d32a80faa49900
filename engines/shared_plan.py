# SPDX-License-Identifier: Apache-2.0
"""Plans that share bytes with another plan of the bundle, so that weights lie on disk once.

The engines of one component for several video sizes hold the same weights. TensorRT writes most of them into every plan
as the same bytes, at different offsets. So the file of a further size keeps only the bytes that are not in the first
size's plan, and the places of the other bytes in that plan. Loading restores the plan byte for byte as TensorRT wrote
it. This needs no refittable engine, which TensorRT-RTX 1.7 does not build on a machine without a GPU, and costs no
speed.

The file: a line of JSON (`SharedPlan`), then the kept bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from vorta_trt.engines.errors import BundleError
from vorta_trt.engines.hashed_file import CHUNK_BYTES, HashedFile
from vorta_trt.engines.manifest import FileEntry
from vorta_trt.model.records import Record
from vorta_trt.plugins.host_memory import mapping

BLOCK = 4096  # bytes; the search looks for whole blocks of the first plan
FIRST_WINDOW, LARGEST_WINDOW = 1 << 14, 1 << 20  # bytes of the other plan that one search step covers
PATIENCE = 1 << 30  # bytes of the other plan after which a search that found hardly anything ends
LEAST_SHARED = 0.1  # fraction of a plan; a plan that shares less is kept whole
FILTER_BITS = 24

Bytes = npt.NDArray[np.uint8]


class Piece(NamedTuple):
    """A contiguous run of a plan's bytes.

    Attributes:
        in_base: Whether the bytes lie in the base plan; otherwise they are among the kept bytes.
        offset: Offset in the base plan or in the kept bytes.
        length: Number of bytes.
    """

    in_base: bool
    offset: int
    length: int


class SharedPlan(Record, extra="forbid"):
    """The first line of the file.

    Attributes:
        bytes: Size of the whole plan.
        pieces: Pieces that the plan consists of, in order: 1 or 0 for `Piece.in_base`, offset, length.
    """

    bytes: int = Field(ge=1)
    pieces: list[tuple[int, int, int]]


@contextmanager
def open_plan(plan: Path, base: Path | None) -> Iterator[mmap.mmap]:
    """Context that gives the bytes of a whole plan.

    Args:
        plan: The plan's file. A whole plan is mapped, and paged in as TensorRT reads it.
        base: Plan that the file shares bytes with: then the whole plan is put together in memory. None: the file is
            the whole plan.

    Raises:
        BundleError: The file is no shared plan, or does not belong to this base.
    """
    with mapping(plan), plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if base is None:
            yield content
            return
        line = content.readline()
        shared, start = _read_head(line, plan), len(line)
        with (
            mapping(base),
            base.open("rb") as other,
            mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_READ) as first,
            mmap.mmap(-1, shared.bytes) as whole,
        ):
            for in_base, offset, length in shared.pieces:
                source, begin = (first, offset) if in_base else (content, start + offset)
                with memoryview(source) as view, view[begin : begin + length] as piece:
                    if len(piece) < length or whole.tell() + length > shared.bytes:
                        raise _damaged(plan)
                    whole.write(piece)
            if whole.tell() != shared.bytes:
                raise _damaged(plan)
            yield whole


def plan_bytes(plan: Path, base: Path | None) -> int:
    """Size of the whole plan."""
    if base is None:
        return plan.stat().st_size
    with plan.open("rb") as file:
        return _read_head(file.readline(), plan).bytes


def share_plan(plan: Path, base: Path, check: Callable[[], None] = lambda: None) -> FileEntry | None:
    """Replaces the file of a whole plan by one that keeps only the bytes that are not in the base.

    Args:
        plan: The plan's file.
        base: The base: a whole plan in the same folder, which is not changed.
        check: Called between steps of the work; it may raise to stop.

    Returns:
        Hash and size of the new file; None if the two plans have too little in common: then the plan is kept whole.
    """
    first, other = (np.memmap(path, np.uint8, "r") for path in (base, plan))
    pieces = _in_common(first, other, check)
    if sum(piece.length for piece in pieces if piece.in_base) < LEAST_SHARED * len(other):
        return None
    stage = plan.with_name(f"{plan.name}.shared")
    head, kept = [], 0
    for piece in pieces:
        head.append((1, piece.offset, piece.length) if piece.in_base else (0, kept, piece.length))
        kept += 0 if piece.in_base else piece.length
    with HashedFile(stage) as file:
        file.write(SharedPlan(bytes=len(other), pieces=head).model_dump_json().encode() + b"\n")
        for piece in pieces:
            end = piece.offset + piece.length
            for start in range(piece.offset, end, CHUNK_BYTES) if not piece.in_base else ():
                check()
                file.write(other[start : min(start + CHUNK_BYTES, end)].tobytes())
    stage.replace(plan)
    return file.entry


def _read_head(line: bytes, plan: Path) -> SharedPlan:
    try:
        return SharedPlan.model_validate_json(line)
    except ValidationError as error:
        raise _damaged(plan) from error


def _damaged(plan: Path) -> BundleError:
    return BundleError(plan.parent, [f"{plan.name} is damaged, or not of this bundle; copy or build it again"])


def _in_common(first: Bytes, other: Bytes, check: Callable[[], None]) -> list[Piece]:
    """Cuts the other plan into pieces of the first plan and pieces of its own. The latter have offsets in the other."""
    index = _Blocks(first)
    pieces: list[Piece] = []
    done, at, shared = 0, 0, 0  # up to where pieces are known; where the search goes on; bytes found
    window = FIRST_WINDOW  # the next run mostly begins soon after one ends
    while at < len(other):
        check()
        found = index.find(other, at, window, done)
        if found is None:
            at += window
            window = min(4 * window, LARGEST_WINDOW)
            if at > PATIENCE and shared < LEAST_SHARED * PATIENCE:
                break
            continue
        start, offset, length = found
        if start > done:
            pieces.append(Piece(False, done, start - done))
        pieces.append(Piece(True, offset, length))
        shared += length
        done = at = start + length
        window = FIRST_WINDOW
    if done < len(other):
        pieces.append(Piece(False, done, len(other) - done))
    return pieces


class _Blocks:
    """Finds blocks of a plan in another one, by their first 8 bytes."""

    def __init__(self, first: Bytes) -> None:
        self._first = first
        count = len(first) // BLOCK
        keys: npt.NDArray[np.uint64] = np.ascontiguousarray(first[: count * BLOCK].reshape(count, BLOCK)[:, :8]).view(
            np.uint64
        )[:, 0]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        once = np.ones(count, bool)  # keys that several blocks have, such as zeros, say nothing
        once[1:] &= ordered[1:] != ordered[:-1]
        once[:-1] &= ordered[:-1] != ordered[1:]
        self._keys, self._offsets = ordered[once], order[once] * BLOCK
        self._known = np.zeros(1 << FILTER_BITS, bool)
        self._known[_hashed(self._keys)] = True

    def find(self, other: Bytes, at: int, size: int, least: int) -> tuple[int, int, int] | None:
        """Finds the next run of common bytes, by a block that begins in the window of the other plan at `at`.

        Returns start of the run in the other plan, its offset in the first plan, and its length; None if there is none.

        Args:
            other: The other plan.
            at: Offset in the other plan where the window begins.
            size: Size of the window in bytes.
            least: Smallest start that the run may have in the other plan.
        """
        window = np.array(other[at : at + size + 7])
        found: list[tuple[int, Any]] = []
        for shift in range(8):
            keys = window[shift : shift + (len(window) - shift) // 8 * 8].view(np.uint64)
            for number in np.flatnonzero(self._known[_hashed(keys)]):
                found.append((at + shift + 8 * int(number), keys[number]))
        for start, key in sorted(found):
            place = int(np.searchsorted(self._keys, key))
            if place == len(self._keys) or self._keys[place] != key:
                continue
            offset = int(self._offsets[place])
            length = _common_length(self._first[offset:], other[start:])
            if length < BLOCK:
                continue
            before = min(start - least, offset)
            back = _common_length(self._first[offset - before : offset][::-1], other[start - before : start][::-1])
            return start - back, offset - back, length + back
        return None


def _hashed(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    spread: npt.NDArray[np.uint64] = keys * np.uint64(0x9E3779B97F4A7C15)
    spread >>= np.uint64(64 - FILTER_BITS)
    return spread


def _common_length(a: Bytes, b: Bytes) -> int:
    """Length of the common prefix, in bytes."""
    length = min(len(a), len(b))
    step = 1 << 16
    for start in range(0, length, step):
        end = min(start + step, length)
        different = a[start:end] != b[start:end]
        if different.any():
            return start + int(different.argmax())
    return length
