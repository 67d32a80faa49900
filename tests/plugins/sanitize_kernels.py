# SPDX-License-Identifier: Apache-2.0
"""Runs every kernel instance on small problems with tightly sized allocations, for NVIDIA's compute-sanitizer.

    compute-sanitizer --tool memcheck --error-exitcode 9 python tests/plugins/sanitize_kernels.py

Needs numpy and cuda-bindings and no torch, whose allocator would hide accesses past the end of a tensor.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from cuda.bindings import runtime

from vorta_trt.plugins import LibraryError, Problem, Status, Tensors, load_library
from vorta_trt.plugins.cross_attention import TENSORS as CROSS_TENSORS
from vorta_trt.plugins.cross_attention import CrossAttentionParams
from vorta_trt.plugins.library import KERNEL_DTYPES
from vorta_trt.plugins.operator_calls import enqueue as enqueue_cross
from vorta_trt.plugins.operator_schema import choices

ROUTES = np.array([[0, 1, 2], [2, 9, 1]], np.int32)  # [B, N]
LENGTHS = np.array([5, 0], np.int32)  # [B]
TEXT = {"grid": (4, 6, 6), "tile": (2, 3, 2), "window": (1, 1, 3), "bucket": (2, 3, 2), "keep": 6, "text_tokens": 7}
#: Tiles that end inside a block of queries and of keys.
TILES = {"grid": (2, 9, 32), "tile": (2, 9, 16), "window": (1, 1, 1), "bucket": (2, 3, 1), "keep": 2, "text_tokens": 0}

#: For the kernels of Hopper: two tiles that share a window of three, whose boxes do not fill a block of 144 keys, and
#: text beyond one block.
GROUPS = {**TEXT, "grid": (8, 6, 10), "tile": (2, 3, 5), "window": (3, 1, 1), "text_tokens": 150}
GROUP_LENGTHS = np.array([150, 37], np.int32)  # [B]
#: Last tiles and buckets of another size along every axis; a tile and a bucket that exceed the grid.
RAGGED = {"grid": (5, 7, 9), "tile": (2, 3, 4), "window": (1, 1, 1), "bucket": (2, 3, 2), "keep": 6, "text_tokens": 7}
LARGE = {
    "grid": (3, 11, 17),
    "tile": (4, 8, 16),
    "window": (1, 1, 1),
    "bucket": (4, 3, 5),
    "keep": 31,
    "text_tokens": 7,
}
GENERIC_HEAD_DIMS = (8, 80, 192, 256)
FAST_HEAD_DIMS = (64, 128)
#: Geometry, dtype, head dimension, forced family of kernels, and precision. The coreset's keys take turns.
CASES = (
    *itertools.product((TEXT, TILES), KERNEL_DTYPES, GENERIC_HEAD_DIMS, ("",), ("same",)),
    *itertools.product((TEXT, TILES, GROUPS), KERNEL_DTYPES, FAST_HEAD_DIMS, ("",), ("same",)),
    *itertools.product((TEXT, TILES), KERNEL_DTYPES, FAST_HEAD_DIMS, ("sm80",), ("same",)),
    *itertools.product((RAGGED, LARGE), KERNEL_DTYPES[:1], (80, *FAST_HEAD_DIMS), ("",), ("same",)),
    *itertools.product((RAGGED, LARGE), KERNEL_DTYPES[1:], FAST_HEAD_DIMS, ("sm80",), ("same",)),
    # Where the GPU has such kernels.
    *itertools.product((TEXT, TILES, GROUPS), KERNEL_DTYPES, FAST_HEAD_DIMS, ("", "sm89_fp8"), ("fp8",)),
    *itertools.product((RAGGED, LARGE), KERNEL_DTYPES[:1], FAST_HEAD_DIMS, ("", "sm89_fp8"), ("fp8",)),
)


#: Queries and keys of cross-attention: beside whole blocks of either family.
CROSS_TOKENS = ((1, 1), (129, 65), (300, 145), (257, 512))


def require(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA runtime call, whose first item is its error."""
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        raise RuntimeError(f"CUDA runtime: {error}")
    return values[0] if values else None


class Memory:
    """Device allocations of exactly the bytes asked for, freed together."""

    def __init__(self) -> None:
        self.addresses: list[int] = []

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exception: object) -> None:
        for address in self.addresses:
            require(runtime.cudaFree(address))

    def allocate(self, size: int) -> int:
        self.addresses.append(int(require(runtime.cudaMalloc(size))))
        return self.addresses[-1]

    def put(self, array: np.ndarray) -> int:
        address = self.allocate(array.nbytes)
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        require(runtime.cudaMemcpy(address, array.ctypes.data, array.nbytes, kind))
        return address


def random_bits(shape: tuple[int, ...], dtype: str, generator: np.random.Generator) -> np.ndarray:
    """Normal numbers as the 16 bits of `dtype`."""
    values = generator.standard_normal(shape, np.float32)
    return (
        values.astype(np.float16).view(np.uint16)
        if dtype == "float16"
        else (values.view(np.uint32) >> 16).astype(np.uint16)
    )


def is_finite(bits: np.ndarray, dtype: str) -> bool:
    exponent = 0x7C00 if dtype == "float16" else 0x7F80
    return bool(((bits & exponent) != exponent).all())


def run(
    geometry: dict[str, Any],
    dtype: str,
    head_dim: int,
    precision: str,
    coreset_keys: str,
    generator: np.random.Generator,
) -> None:
    library = load_library()
    batch, heads = ROUTES.shape
    problem = Problem(
        dtype=dtype, batch=batch, heads=heads, head_dim=head_dim, coreset_keys=coreset_keys,
        scale=0.0, attention_precision=precision, **geometry,
    )  # fmt: skip
    tokens = math.prod(geometry["grid"]) + geometry["text_tokens"]
    shape = (batch, tokens, heads, head_dim)
    stride = (tokens * heads * head_dim, heads * head_dim, head_dim)
    lengths = GROUP_LENGTHS if geometry is GROUPS else LENGTHS
    bits = np.full(shape, 0xFFFF, np.uint16)  # NaN
    with Memory() as memory:
        size = library.workspace_size(problem)
        output = memory.put(bits)
        tensors = Tensors(
            **{name: memory.put(random_bits(shape, dtype, generator)) for name in ("query", "key", "value")},
            **{f"{name}_stride": stride for name in ("query", "key", "value", "output")},
            output=output,
            routes=memory.put(ROUTES),
            text_length=memory.put(lengths) if geometry["text_tokens"] else None,
            workspace=memory.allocate(size),
            workspace_bytes=size,
        )
        library.enqueue(problem, tensors, 0)
        require(runtime.cudaDeviceSynchronize())
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        require(runtime.cudaMemcpy(bits.ctypes.data, output, bits.nbytes, kind))
    if not is_finite(bits, dtype):
        what = f"{geometry}, {dtype}, D={head_dim}, {precision}, keys by {coreset_keys}"
        raise RuntimeError(f"output of {what} is not finite")


def run_cross(queries: int, keys: int, dtype: str, head_dim: int, generator: np.random.Generator) -> None:
    batch, heads = ROUTES.shape
    tokens = dict(zip(CROSS_TENSORS, (queries, keys, keys, queries), strict=True))
    bits = np.full((batch, queries, heads, head_dim), 0xFFFF, np.uint16)  # NaN
    with Memory() as memory:
        places = {
            name: memory.put(random_bits((batch, tokens[name], heads, head_dim), dtype, generator))
            for name in ("query", "key", "value")
        }
        output = places["output"] = memory.put(bits)
        row = heads * head_dim
        strides = {f"{name}_stride": (count * row, row, head_dim) for name, count in tokens.items()}
        params = CrossAttentionParams(
            dtype=dtype, batch=batch, query_tokens=queries, key_tokens=keys, heads=heads, head_dim=head_dim,
            **places, **strides,
        )  # fmt: skip
        enqueue_cross(load_library(), params, 0)
        require(runtime.cudaDeviceSynchronize())
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        require(runtime.cudaMemcpy(bits.ctypes.data, output, bits.nbytes, kind))
    if not is_finite(bits, dtype):
        raise RuntimeError(f"output of cross-attention, {queries} x {keys}, {dtype}, D={head_dim} is not finite")


def main() -> None:
    generator = np.random.default_rng()
    ran, missing = 0, 0
    for case, coreset_keys in zip(CASES, itertools.cycle(choices("coreset_keys")), strict=False):
        geometry, dtype, head_dim, kernels, precision = case
        load_library().force_kernels(kernels)
        try:
            run(geometry, dtype, head_dim, precision, coreset_keys, generator)
            ran += 1
        except LibraryError as error:
            if error.status is not Status.UNSUPPORTED or precision == "same":
                raise
            missing += 1
    for kernels, head_dims in (("", (*GENERIC_HEAD_DIMS, *FAST_HEAD_DIMS)), ("sm80", FAST_HEAD_DIMS)):
        load_library().force_kernels(kernels)
        for tokens, dtype, head_dim in itertools.product(CROSS_TOKENS, KERNEL_DTYPES, head_dims):
            run_cross(*tokens, dtype, head_dim, generator)
            ran += 1
    print(f"{ran} problems ran, {missing} have no kernels here")


if __name__ == "__main__":
    main()
