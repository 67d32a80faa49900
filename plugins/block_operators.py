# SPDX-License-Identifier: Apache-2.0
"""Mirror of `include/vorta_trt/block_operators.h`: the norms of a transformer block, fused with what surrounds them.

Letters: B batch, X tokens, N heads, D head dimension, E features of a token (= N D), M rows of a modulation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from vorta_trt.plugins.operator_calls import OperatorParams

_RowStrides = ctypes.c_int64 * 2


class Modulation(ctypes.Structure):
    """`vorta_modulation`: a float32 tensor [B or 1, M, E] with its strides, 0 along an axis that repeats."""

    _fields_ = [("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("row_stride", ctypes.c_int64)]


class BlockOperatorParams(OperatorParams):
    """Base class of the structures of all block operators.

    Strides (batch, token) are any sequence, a modulation is (pointer, batch stride, row stride):
    `NormModulateParams(dtype="bfloat16", batch=1, token_count=72000, features=5120, ...)`.
    """

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            if name.endswith("_stride"):
                values[name] = _RowStrides(*_entries(name, value, 2))
            elif isinstance(value, tuple):
                values[name] = Modulation(*_entries(name, value, 3))
        super().__init__(**values)


class HeadNormParams(BlockOperatorParams):
    """`vorta_head_norm_params`: tokens [B, X, E], weight [E] or [D] -> output [B, X, N, D]."""

    OPERATOR = "head_norm"
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("dtype", "weight_float32", "batch", "token_count", "heads")),
        *((name, ctypes.c_int32) for name in ("head_dim", "weight_length")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("tokens", "weight", "output")),
        *((f"{name}_stride", _RowStrides) for name in ("tokens", "output")),
    ]


class QKNormRotaryParams(BlockOperatorParams):
    """`vorta_qk_norm_rotary_params`.

    query and key [B, X, E], weights [E] or [D], cos and sin float32 [X, D/2] -> both outputs [B, X, N, D].
    """

    OPERATOR = "qk_norm_rotary"
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("dtype", "weight_float32", "batch", "token_count", "heads")),
        *((name, ctypes.c_int32) for name in ("head_dim", "weight_length")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("query", "key", "query_weight", "key_weight", "cos", "sin")),
        *((name, ctypes.c_void_p) for name in ("query_output", "key_output")),
        *((f"{name}_stride", _RowStrides) for name in ("query", "key", "query_output", "key_output")),
    ]


class NormModulateParams(BlockOperatorParams):
    """`vorta_norm_modulate_params`.

    tokens [B, X, E], scale and shift [B or 1, M, E] -> output [B, X, E]; where wanted quantized [B, X, E] e4m3 with
    quantized_scale [B, X].
    """

    OPERATOR = "norm_modulate"
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("dtype", "batch", "token_count", "features", "first_tokens")),
        ("epsilon", ctypes.c_float),
        ("tokens", ctypes.c_void_p),
        *((name, Modulation) for name in ("scale", "shift")),
        *((name, ctypes.c_void_p) for name in ("output", "quantized", "quantized_scale")),
        *((f"{name}_stride", _RowStrides) for name in ("tokens", "output")),
    ]


class ResidualNormModulateParams(BlockOperatorParams):
    """`vorta_residual_norm_modulate_params`.

    residual and update [B, X, E], gate, scale and shift [B or 1, M, E] -> residual_output [B, X, E] and the outputs
    of `NormModulateParams`.
    """

    OPERATOR = "residual_norm_modulate"
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("dtype", "batch", "token_count", "features", "first_tokens")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("residual", "update")),
        *((name, Modulation) for name in ("gate", "scale", "shift")),
        *((name, ctypes.c_void_p) for name in ("residual_output", "output", "quantized", "quantized_scale")),
        *((f"{name}_stride", _RowStrides) for name in ("residual", "update", "residual_output", "output")),
    ]


def _entries(name: str, values: Sequence[int], count: int) -> Sequence[int]:
    if len(values) != count:
        raise ValueError(f"{name} {tuple(values)}: must have {count} entries; give one for each")
    return values
