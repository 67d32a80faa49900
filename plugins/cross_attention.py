# SPDX-License-Identifier: Apache-2.0
"""Mirror of `include/vorta_trt/cross_attention.h`: attention of X query tokens to Y key tokens of another sequence."""

from __future__ import annotations

import ctypes
from typing import Any

from vorta_trt.plugins.library import Strides, as_strides
from vorta_trt.plugins.operator_calls import OperatorParams

TENSORS = ("query", "key", "value", "output")
"""Tensors of a call: [B, X, N, D], [B, Y, N, D], [B, Y, N, D], [B, X, N, D]."""


class CrossAttentionParams(OperatorParams):
    """`vorta_cross_attention_params`: everything about a call.

    Strides (batch, token, head) are any sequence:
    `CrossAttentionParams(dtype="bfloat16", batch=1, query_tokens=72000, key_tokens=512, heads=40, head_dim=128, ...)`.
    """

    OPERATOR = "cross_attention"
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("dtype", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("query_tokens", ctypes.c_int32),
        ("key_tokens", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("reserved", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in TENSORS),
        *((f"{name}_stride", Strides) for name in TENSORS),
    ]

    def __init__(self, **values: Any) -> None:
        for name in TENSORS:
            if (field := f"{name}_stride") in values:
                values[field] = as_strides(field, values[field])
        super().__init__(**values)
