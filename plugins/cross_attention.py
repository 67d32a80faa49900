# SPDX-License-Identifier: Apache-2.0
"""Mirror of `include/vorta_trt/cross_attention.h`: attention of X query tokens to Y key tokens of another sequence."""

from __future__ import annotations

import ctypes
from typing import Any

from vorta_trt.plugins.library import PluginLibrary, SizedStructure, Strides, as_strides

TENSORS = ("query", "key", "value", "output")
"""Tensors of a call: [B, X, N, D], [B, Y, N, D], [B, Y, N, D], [B, X, N, D]."""


class CrossAttentionParams(SizedStructure):
    """`vorta_cross_attention_params`: everything about a call.

    Pointers are integers, strides (batch, token, head) any sequence, `dtype` may be a name:
    `CrossAttentionParams(dtype="bfloat16", batch=1, query_tokens=72000, key_tokens=512, heads=40, head_dim=128, ...)`.
    """

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


def validate(library: PluginLibrary, params: CrossAttentionParams) -> None:
    """Checks that the kernels take a call; pointers and strides are not looked at. Needs no GPU.

    Args:
        library: The library.
        params: The call.

    Raises:
        LibraryError: They do not; the message names argument, value, rule and remedy.
    """
    library.call("vorta_cross_attention_validate", ctypes.byref(params))


def enqueue(library: PluginLibrary, params: CrossAttentionParams, stream: int) -> None:
    """Launches the operator on a stream and returns at once. It needs no workspace.

    Args:
        library: The library.
        params: The call; its memory stays valid until the stream has done the work.
        stream: A cudaStream_t as an integer, 0 for the default stream.

    Raises:
        LibraryError: An argument breaks a rule, there is no kernel for this GPU, or CUDA refuses the launch.
    """
    library.call("vorta_cross_attention_enqueue", ctypes.byref(params), ctypes.c_void_p(stream))
