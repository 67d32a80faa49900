# SPDX-License-Identifier: Apache-2.0
"""The compiled part: kernels, C API and TensorRT plugin in libvorta_trt.so, and the Python that finds and loads it."""

from vorta_trt.plugins.errors import LibraryNotFoundError, VortaError
from vorta_trt.plugins.library import (
    ATTENTION_PRECISIONS,
    CORESET_KEYS,
    DTYPES,
    OPERATOR_NAME,
    OPERATOR_NAMESPACE,
    OPERATOR_VERSION,
    LibraryError,
    PluginLibrary,
    Problem,
    Status,
    Tensors,
    library_path,
    load_library,
    rtx_shim_path,
)

__all__ = [
    "ATTENTION_PRECISIONS",
    "CORESET_KEYS",
    "DTYPES",
    "OPERATOR_NAME",
    "OPERATOR_NAMESPACE",
    "OPERATOR_VERSION",
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
