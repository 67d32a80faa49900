# SPDX-License-Identifier: Apache-2.0
"""Mirror of `include/vorta_trt/block_operators.h`: the norms of a transformer block, fused with what surrounds them.

Letters: B batch, X tokens, N heads, D head dimension, E features of a token (= N D), M rows of a modulation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, ClassVar

from vorta_trt.plugins.library import PluginLibrary, SizedStructure

_RowStrides = ctypes.c_int64 * 2


class Modulation(ctypes.Structure):
    """`vorta_modulation`: a float32 tensor [B or 1, M, E] with its strides, 0 along an axis that repeats."""

    _fields_ = [("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("row_stride", ctypes.c_int64)]


class BlockOperatorParams(SizedStructure):
    """What the structures of all block operators have in common.

    Pointers are integers, strides (batch, token) any sequence, a modulation is (pointer, batch stride, row stride), and
    `dtype` may be a name: `NormModulateParams(dtype="bfloat16", batch=1, token_count=72000, features=5120, ...)`.

    Attributes:
        OPERATOR: What the functions of the C API are named after: `vorta_<OPERATOR>_enqueue`.
    """

    OPERATOR: ClassVar[str]

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


def validate(library: PluginLibrary, params: BlockOperatorParams) -> None:
    """Checks that the kernels take a call; pointers and strides are not looked at. Needs no GPU.

    Args:
        library: The library.
        params: The call.

    Raises:
        LibraryError: They do not; the message names argument, value, rule and remedy.
    """
    library.call(f"vorta_{params.OPERATOR}_validate", ctypes.byref(params))


def enqueue(library: PluginLibrary, params: BlockOperatorParams, stream: int) -> None:
    """Launches the operator on a stream and returns at once. It needs no workspace.

    Args:
        library: The library.
        params: The call; its memory stays valid until the stream has done the work.
        stream: A cudaStream_t as an integer, 0 for the default stream.

    Raises:
        LibraryError: An argument breaks a rule, there is no kernel for this GPU, or CUDA refuses the launch.
    """
    library.call(f"vorta_{params.OPERATOR}_enqueue", ctypes.byref(params), ctypes.c_void_p(stream))
