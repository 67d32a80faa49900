# SPDX-License-Identifier: Apache-2.0
"""The C API of the block operators without a GPU: what it refuses, in which words, and what it takes for empty.

Letters: B batch, X tokens, N heads, D head dimension, E features (= N D), M rows of a modulation.
"""

from __future__ import annotations

from typing import Any

import pytest

from vorta_trt.plugins import LibraryError, Status, load_library
from vorta_trt.plugins.block_operators import (
    BlockOperatorParams,
    HeadNormParams,
    NormModulateParams,
    QKNormRotaryParams,
    ResidualNormModulateParams,
)
from vorta_trt.plugins.operator_calls import enqueue, validate

ADDRESS = 0x7F0000000000  # never read: every call is refused before the launch
SPACING = 1 << 28  # further than any tensor here reaches
PLACES = [ADDRESS + i * SPACING for i in range(8)]
B, X, N, D = 2, 300, 3, 64
E = N * D
ROWS = (X * E, E)
COMMON: dict[str, Any] = {"dtype": 1, "batch": B, "token_count": X, "epsilon": 1e-6}
HEADS = {**COMMON, "heads": N, "head_dim": D, "weight_length": E}
MODULATED: dict[str, Any] = {
    **COMMON, "features": E, "first_tokens": 100, "output": PLACES[2], "output_stride": ROWS,
    "scale": (PLACES[3], 6 * E, E), "shift": (PLACES[3] + 8 * E, 6 * E, 0),
}  # fmt: skip
CALLS: dict[type[BlockOperatorParams], dict[str, Any]] = {
    HeadNormParams: {
        **HEADS, "tokens": PLACES[0], "weight": PLACES[1], "output": PLACES[2],
        "tokens_stride": ROWS, "output_stride": ROWS,
    },
    QKNormRotaryParams: {
        **HEADS, "query": PLACES[0], "key": PLACES[1], "query_weight": PLACES[2], "key_weight": PLACES[3],
        "cos": PLACES[4], "sin": PLACES[5], "query_output": PLACES[6], "key_output": PLACES[7],
        "query_stride": ROWS, "key_stride": ROWS, "query_output_stride": ROWS, "key_output_stride": ROWS,
    },
    NormModulateParams: {**MODULATED, "tokens": PLACES[0], "tokens_stride": ROWS},
    ResidualNormModulateParams: {
        **MODULATED, "residual": PLACES[0], "update": PLACES[1], "residual_output": PLACES[5],
        "gate": (PLACES[4], 0, 0), "residual_stride": ROWS, "update_stride": ROWS, "residual_output_stride": ROWS,
    },
}  # fmt: skip
QUANTIZED = {"quantized": PLACES[6], "quantized_scale": PLACES[7]}


def refusal(params: BlockOperatorParams, *, whole: bool) -> str:
    """The message with which a call, or its sizes alone, is refused."""
    with pytest.raises(LibraryError) as caught:
        if whole:
            enqueue(load_library(), params, 0)
        else:
            validate(load_library(), params)
    assert caught.value.status is Status.INVALID_ARGUMENT
    return str(caught.value)


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.OPERATOR)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": 2}, "dtype 2: must be 0 (float16) or 1 (bfloat16); cast the tensors to one"),
        ({"batch": -1}, "batch -1 and token_count 300: must not be negative; pass the tensors' sizes"),
        ({"token_count": -1}, "batch 2 and token_count -1: must not be negative"),
        ({"token_count": 2**30}, "batch 2 and token_count 1073741824: at most 2147483584 tokens in all; split the"),
        ({"epsilon": -1e-6}, "epsilon -1e-06: must be finite and not negative; pass the norm's epsilon"),
        ({"epsilon": float("nan")}, "epsilon nan: must be finite and not negative"),
        ({"struct_size": 8}, "params.struct_size 8: must be "),
    ],
)
def test_bad_sizes_are_refused(kind: type[BlockOperatorParams], changed: dict[str, Any], message: str) -> None:
    changed = dict(changed)
    size = changed.pop("struct_size", None)
    params = kind(**{**CALLS[kind], **changed})
    if size is not None:
        params.struct_size = size
    assert message in refusal(params, whole=False)


@pytest.mark.parametrize("kind", [HeadNormParams, QKNormRotaryParams], ids=lambda kind: kind.OPERATOR)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight_float32": 2}, "weight_float32 2: must be 1 (float32) or 0 (the type of the tokens)"),
        ({"head_dim": 100}, "head_dim 100: must be a multiple of 8, at most 256; compute this norm with torch's"),
        ({"head_dim": 264}, "head_dim 264: must be a multiple of 8, at most 256"),
        ({"head_dim": 0}, "head_dim 0: must be a multiple of 8, at most 256"),
        ({"heads": 129}, "heads 129 of head_dim 64: must be 0 to 128, since a token has at most 8192 features"),
        ({"heads": -1}, "heads -1 of head_dim 64: must be 0 to 128"),
        ({"weight_length": 128}, "weight_length 128: must be 192 (one norm over all heads) or 64 (one for each head)"),
    ],
)
def test_bad_heads_are_refused(kind: type[BlockOperatorParams], changed: dict[str, Any], message: str) -> None:
    assert message in refusal(kind(**{**CALLS[kind], **changed}), whole=False)


@pytest.mark.parametrize("kind", [NormModulateParams, ResidualNormModulateParams], ids=lambda kind: kind.OPERATOR)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": 100}, "features 100: must be a multiple of 8, at most 8192; compute this norm with torch's"),
        ({"features": 8200}, "features 8200: must be a multiple of 8, at most 8192"),
        ({"features": 24, **QUANTIZED}, "features 24: must be a multiple of 16 where `quantized` is wanted"),
        ({"first_tokens": -1}, "first_tokens -1: must not be negative; use 0 where all tokens have the same"),
    ],
)
def test_bad_features_are_refused(kind: type[BlockOperatorParams], changed: dict[str, Any], message: str) -> None:
    assert message in refusal(kind(**{**CALLS[kind], **changed}), whole=False)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (HeadNormParams, {"tokens": None}, "tokens NULL: must be a device pointer to [B, X, E]; pass one"),
        (HeadNormParams, {"weight": PLACES[1] + 4}, "must be a device pointer to [E] or [D], aligned to 16 bytes"),
        (HeadNormParams, {"output": PLACES[0] + 16}, "must not share memory with tokens, unless pointer and strides"),
        (HeadNormParams, {"output": PLACES[0], "output_stride": (2 * ROWS[0], E)}, "must not share memory with tokens"),
        (HeadNormParams, {"output_stride": (0, E)}, "output stride 0 of the batch axis: rows overlap"),
        (HeadNormParams, {"tokens_stride": (X * (E + 4), E + 4)}, "tokens stride 196 of the token axis: must be a"),
        (QKNormRotaryParams, {"cos": None}, "cos (nil): must be a device pointer to float32 [X, D/2], aligned to 16"),
        (QKNormRotaryParams, {"key_output": PLACES[6]}, "must not share memory with key_output, another output"),
        (QKNormRotaryParams, {"key_weight": None}, "key_weight (nil): must be a device pointer to [E] or [D]"),
        (NormModulateParams, {"scale": (PLACES[3], 2, 0)}, "scale strides (2, 0) of batch and row: must be multiples"),
        (
            NormModulateParams,
            {"shift": (PLACES[3], 4, -4)},
            "shift strides (4, -4) of batch and row: must be multiples",
        ),
        (NormModulateParams, {"shift": (0, 0, 0)}, "shift (nil): must be a device pointer to float32 [B or 1, M, E]"),
        (NormModulateParams, {"output": None}, "output NULL: must be a device pointer to [B, X, E]; pass one"),
        (NormModulateParams, {"quantized": PLACES[6]}, "quantized_scale (nil): must both be given or both be NULL"),
        (NormModulateParams, {**QUANTIZED, "quantized": PLACES[0]}, "must not share memory with tokens"),
        (ResidualNormModulateParams, {"gate": (8, 0, 0)}, "gate 0x8: must be a device pointer to float32"),
        (ResidualNormModulateParams, {"residual_output": None}, "residual_output NULL: must be a device pointer"),
        (ResidualNormModulateParams, {"output": PLACES[5]}, "must not share memory with output, another output"),
        (ResidualNormModulateParams, {**QUANTIZED, "quantized_scale": PLACES[1]}, "must not share memory with update"),
    ],
)
def test_bad_tensors_are_refused(kind: type[BlockOperatorParams], changed: dict[str, Any], message: str) -> None:
    assert message in refusal(kind(**{**CALLS[kind], **changed}), whole=True)


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.OPERATOR)
def test_an_empty_call_is_done_at_once(kind: type[BlockOperatorParams]) -> None:
    """Without a GPU, and without pointers."""
    sizes = {name: value for name, value in CALLS[kind].items() if isinstance(value, int | float) and value < ADDRESS}
    none = {"heads": 0, "weight_length": 0} if "heads" in sizes else {"features": 0}
    for changed in ({"batch": 0}, {"token_count": 0}, none):
        enqueue(load_library(), kind(**{**sizes, **changed}), 0)


def test_entries_are_counted() -> None:
    with pytest.raises(ValueError, match=r"tokens_stride \(1, 2, 3\): must have 2 entries"):
        HeadNormParams(tokens_stride=(1, 2, 3))
    with pytest.raises(ValueError, match=r"scale \(1, 2\): must have 3 entries"):
        NormModulateParams(scale=(1, 2))
    assert HeadNormParams(dtype="bfloat16").dtype == 1
