# SPDX-License-Identifier: Apache-2.0
"""Mirror of `include/vorta_trt/ulysses_attention.h` and `gather_tokens.h`: operators on tokens of several GPUs."""

from __future__ import annotations

import ctypes
from enum import IntFlag

from vorta_trt.plugins.library import PluginLibrary, Problem, Tensors
from vorta_trt.plugins.operator_calls import OperatorParams


class Part(IntFlag):
    """`vorta_ulysses_part`: what a call consists of, in this order."""

    TO_HEADS = 1
    ATTEND = 2
    TO_TOKENS = 4


class UlyssesAttentionParams(OperatorParams):
    """`vorta_ulysses_attention_params`: `attention` is the `Problem` of all ranks, `tensors` this rank's rows."""

    OPERATOR = "ulysses_attention"
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("ranks", ctypes.c_int32),
        ("rehearsal", ctypes.c_int32),
        ("attention", Problem),
        ("tensors", Tensors),
        ("head_order", ctypes.c_void_p),
        ("parts", ctypes.c_int32),
        ("tensor_heads", ctypes.c_int32),
    ]


class GatherTokensParams(OperatorParams):
    """`vorta_gather_tokens_params`: input [B, X, C] of this rank -> output [B, S, C] of all."""

    OPERATOR = "gather_tokens"
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("ranks", "rehearsal", "batch", "tokens")),
        ("row_bytes", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("input", "output")),
    ]


def workspace_size(library: PluginLibrary, params: UlyssesAttentionParams) -> int:
    """Asks for the scratch memory of one call, that of the exchange and the attention together. Needs no GPU.

    Args:
        library: The library.
        params: The call; its pointers do not matter.

    Returns:
        Bytes, the same on every rank.

    Raises:
        LibraryError: The library does not take the call.
    """
    size = ctypes.c_size_t()
    library.call("vorta_ulysses_attention_workspace_size", ctypes.byref(params), ctypes.byref(size))
    return size.value
