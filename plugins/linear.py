# SPDX-License-Identifier: Apache-2.0
"""Mirror of `include/vorta_trt/linear.h`: linear layers in 16 bits or with fp8 products, and quantisation for them."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from typing import Any, get_args

from vorta_trt.plugins.library import PluginLibrary
from vorta_trt.plugins.operator_calls import OperatorParams
from vorta_trt.plugins.operator_schema import Activation, LinearPrecision

logger = logging.getLogger(__name__)

ACTIVATIONS = get_args(Activation)
"""Activations that may follow the product; the index is the C API's value."""
LINEAR_PRECISIONS = get_args(LinearPrecision)
"""Types that are multiplied: the activations' own ("same"), or e4m3 ("fp8"); the index is the C API's value."""
OWN_KERNEL = -1
"""`candidate` of the kernel that is part of the library, which runs on every GPU; 0 is cuBLASLt's first choice."""
_NAMES = {"activation": ACTIVATIONS, "precision": LINEAR_PRECISIONS}


class LinearParams(OperatorParams):
    """`vorta_linear_params`: everything about a call. Letters: R rows, K input features, O output features.

    `activation` and `precision` may be names, too. Without strides rows are dense:
    `LinearParams(dtype="bfloat16", rows=72000, in_features=5120, out_features=13824, activation="gelu_tanh", ...)`.
    """

    OPERATOR = "linear"
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("dtype", ctypes.c_int32),
        ("precision", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("in_features", ctypes.c_int32),
        ("out_features", ctypes.c_int32),
        ("candidate", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("input", ctypes.c_void_p),
        ("input_scale", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("weight_scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("input_stride", ctypes.c_int64),
        ("output_stride", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("second_input", ctypes.c_void_p),
        ("second_stride", ctypes.c_int64),
        ("second_features", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]

    def __init__(self, **values: Any) -> None:
        for name, choices in _NAMES.items():
            if isinstance(values.get(name), str):
                values[name] = choices.index(values[name])
        second = values.get("second_features", 0)
        values.setdefault("input_stride", values.get("in_features", 0) - second)
        values.setdefault("second_stride", second)
        values.setdefault("output_stride", values.get("out_features", 0))
        super().__init__(**values)


class QuantizeParams(OperatorParams):
    """`vorta_quantize_params`: input [R, K] -> quantized e4m3 [R, K] and quantized_scale float32 [R].

    Rows are dense without strides.
    """

    OPERATOR = "quantize"
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("dtype", ctypes.c_int32),
        ("features", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("input", ctypes.c_void_p),
        ("quantized", ctypes.c_void_p),
        ("quantized_scale", ctypes.c_void_p),
        ("input_stride", ctypes.c_int64),
        ("second_input", ctypes.c_void_p),
        ("second_stride", ctypes.c_int64),
        ("second_features", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]

    def __init__(self, **values: Any) -> None:
        second = values.get("second_features", 0)
        values.setdefault("input_stride", values.get("features", 0) - second)
        values.setdefault("second_stride", second)
        super().__init__(**values)


def workspace_size(library: PluginLibrary, params: LinearParams) -> int:
    """Asks for the scratch memory of one call. Needs no GPU.

    Args:
        library: The library.
        params: The call; its pointers do not matter.

    Returns:
        Bytes, the same for every call that has rows.

    Raises:
        LibraryError: The library does not take the call.
    """
    size = ctypes.c_size_t()
    library.call("vorta_linear_workspace_size", ctypes.byref(params), ctypes.byref(size))
    return size.value


def backend(library: PluginLibrary, precision: str = "same") -> tuple[str, str]:
    """Asks which kernels calls on torch's current GPU take for their products.

    Args:
        library: The library.
        precision: One of `LINEAR_PRECISIONS`.

    Returns:
        Name of the kernels: "sm90" (fp8 on Hopper), a cuBLASLt such as "cublaslt 13.1.0", or "sm80" (the slow kernel).
        And the reason if it is the slow kernel, else "".
    """
    reason = ctypes.c_char_p()
    precision_value = ctypes.c_int32(LINEAR_PRECISIONS.index(precision))
    name = library.call_text("vorta_linear_backend", precision_value, ctypes.byref(reason))
    return name, (reason.value or b"").decode()


def cublaslt_path(library: PluginLibrary) -> str:
    """File of the cuBLASLt that products take; "" if none was found (`backend` says why). Needs no GPU.

    Args:
        library: The library.
    """
    return library.call_text("vorta_cublaslt_path")


@cache
def prepare_products(library: PluginLibrary, precision: str, index: int) -> None:
    """Warns once per process and GPU where linear layers take the library's own kernel, slower than cuBLASLt's.

    Args:
        library: The library.
        precision: One of `LINEAR_PRECISIONS`.
        index: Number of torch's current GPU.
    """
    _, reason = backend(library, precision)
    if reason:
        logger.warning(
            "linear layers with precision %s take the library's own kernel on GPU %d, which is slower: %s",
            precision,
            index,
            reason,
        )
