# SPDX-License-Identifier: Apache-2.0
"""Calls of the C API that are the same for every operator whose call is one structure: check it, launch it."""

from __future__ import annotations

import ctypes
from typing import ClassVar

from vorta_trt.plugins.library import PluginLibrary, SizedStructure


class OperatorParams(SizedStructure):
    """`vorta_<OPERATOR>_params`: everything about a call; pointers are integers, `dtype` may be a name.

    Attributes:
        OPERATOR: Name of the operator in the names of the C API's functions, such as `vorta_<OPERATOR>_enqueue`.
    """

    OPERATOR: ClassVar[str]


def validate(library: PluginLibrary, params: OperatorParams) -> None:
    """Checks that the library takes a call; pointers and strides are not looked at. Needs no GPU.

    Args:
        library: The library.
        params: The call.

    Raises:
        LibraryError: It does not; the message names argument, value, rule and remedy.
    """
    library.call(f"vorta_{params.OPERATOR}_validate", ctypes.byref(params))


def enqueue(library: PluginLibrary, params: OperatorParams, stream: int) -> None:
    """Launches the operator on a stream and returns at once.

    Args:
        library: The library.
        params: The call, with its workspace if it needs one; its memory stays valid until the stream has done the work.
        stream: A cudaStream_t as an integer, 0 for the default stream.

    Raises:
        LibraryError: An argument breaks a rule, there is no kernel for this GPU, or CUDA or cuBLASLt refuses the
            launch.
    """
    library.call(f"vorta_{params.OPERATOR}_enqueue", ctypes.byref(params), ctypes.c_void_p(stream))
