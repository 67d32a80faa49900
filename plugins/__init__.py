# SPDX-License-Identifier: Apache-2.0
"""The compiled part: kernels, C API and TensorRT plugin in libvorta_trt.so, and the Python that finds and loads it."""

from vorta_trt.plugins.errors import LibraryNotFoundError, VortaError
from vorta_trt.plugins.library import (
    KERNEL_DTYPES,
    LibraryError,
    PluginLibrary,
    Problem,
    Status,
    Tensors,
    library_path,
    load_library,
    rtx_shim_path,
)
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

__all__ = [
    "KERNEL_DTYPES",
    "ROUTED_ATTENTION",
    "LibraryError",
    "LibraryNotFoundError",
    "PluginLibrary",
    "Problem",
    "Status",
    "Tensors",
    "VortaError",
    "library_path",
    "load_library",
    "rtx_shim_path",
]
