# SPDX-License-Identifier: Apache-2.0
"""The C API of cross-attention without a GPU: what it refuses, in which words, and what it takes for empty."""

from __future__ import annotations

from typing import Any

import pytest

from vorta_trt.plugins import LibraryError, Status, VortaError, load_library
from vorta_trt.plugins.cross_attention import CrossAttentionParams
from vorta_trt.plugins.operator_calls import enqueue, validate

ADDRESS = 0x7F0000000000  # never read: every call is refused before the launch
SPACING = 1 << 28  # further than any tensor here reaches
SIZES: dict[str, Any] = {"dtype": 1, "batch": 2, "query_tokens": 300, "key_tokens": 77, "heads": 3, "head_dim": 64}
QUERY_STRIDE, KEY_STRIDE = (300 * 3 * 64, 3 * 64, 64), (77 * 3 * 64, 3 * 64, 64)
TENSORS: dict[str, Any] = {
    "query": ADDRESS, "key": ADDRESS + SPACING, "value": ADDRESS + 2 * SPACING, "output": ADDRESS + 3 * SPACING,
    "query_stride": QUERY_STRIDE, "key_stride": KEY_STRIDE, "value_stride": KEY_STRIDE, "output_stride": QUERY_STRIDE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": 2}, "dtype 2: must be 0 (float16) or 1 (bfloat16); cast the tensors to one"),
        ({"batch": -1}, "batch -1: must be 0 to 65535; split the batch"),
        ({"heads": 65536}, "heads 65536: must be 0 to 65535; split the heads"),
        ({"head_dim": 100}, "head_dim 100: must be a multiple of 8, at most 256; pad with zeros to 104"),
        ({"query_tokens": -1}, "query_tokens -1: must be 0 to 2147482624; split the queries"),
        ({"query_tokens": 2**31 - 1}, "query_tokens 2147483647: must be 0 to 2147482624; split the queries"),
        ({"key_tokens": 0}, "key_tokens 0: must be 1 to 2147482624, since a softmax over nothing has no value"),
        ({"key_tokens": 2**31 - 1}, "key_tokens 2147483647: must be 1 to 2147482624"),
        ({"scale": -0.5}, "scale -0.5: must be finite and positive; use 0 for 1/sqrt(head_dim)"),
        ({"scale": float("nan")}, "scale nan: must be finite and positive"),
        ({"reserved": 7}, "reserved 7: must be 0; set the whole struct to zero before its fields"),
        ({"struct_size": 8}, "params.struct_size 8: must be 168 in this library"),
    ],
)
def test_a_bad_problem_is_refused(changed: dict[str, Any], message: str) -> None:
    size = changed.pop("struct_size", None)
    params = CrossAttentionParams(**{**SIZES, **changed})
    if size is not None:
        params.struct_size = size
    with pytest.raises(LibraryError) as caught:
        validate(load_library(), params)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": None}, "query NULL: must be a device pointer to [B, X, N, D]; pass one"),
        ({"key": None}, "key NULL: must be a device pointer to [B, Y, N, D]; pass one"),
        ({"value": ADDRESS + 8}, "must be aligned to 16 bytes; copy the tensor to a fresh allocation"),
        ({"key_stride": (77 * 3 * 64, 3 * 64, 32)}, "key stride 32 of the head axis: rows overlap"),
        ({"query_stride": (300 * 3 * 64, 3 * 64 + 4, 64)}, "query stride 196 of the token axis: must be a multiple"),
        ({"output_stride": (0, 3 * 64, 64)}, "output stride 0 of the batch axis: rows overlap"),
        ({"output": ADDRESS}, "must not share memory with query, key or value; pass memory of its own"),
        ({"output": ADDRESS + SPACING}, "must not share memory with query, key or value"),
        ({"output": ADDRESS + SPACING + 128}, "must not share memory with query, key or value"),
    ],
)
def test_a_bad_tensor_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(LibraryError) as caught:
        enqueue(load_library(), CrossAttentionParams(**{**SIZES, **TENSORS, **changed}), 0)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert message in str(caught.value)


@pytest.mark.parametrize("axis", ["batch", "heads", "query_tokens"])
def test_an_empty_call_is_done_at_once(axis: str) -> None:
    """Without a GPU, and without pointers."""
    enqueue(load_library(), CrossAttentionParams(**{**SIZES, axis: 0}), 0)


def test_names_and_any_sequence_are_taken() -> None:
    params = CrossAttentionParams(**{**SIZES, "dtype": "bfloat16", "key_stride": [1, 2, 3]})
    assert params.dtype == SIZES["dtype"]
    assert tuple(params.key_stride) == (1, 2, 3)
    with pytest.raises(ValueError, match=r"key_stride \(1, 2\): must have 3 entries"):
        CrossAttentionParams(key_stride=(1, 2))


def test_a_function_that_is_not_there_is_named() -> None:
    with pytest.raises(VortaError, match="has no function vorta_nothing, so it is not this package's library"):
        load_library().call("vorta_nothing")
