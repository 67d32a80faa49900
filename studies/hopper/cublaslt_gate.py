# SPDX-License-Identifier: Apache-2.0
"""Can cuBLASLt add a gated residual? output = residual + gate[o] * (input weight^T + bias) in one call.

cuBLASLt counts in columns, so its D [O, R] has a row for each output feature: alpha may be a vector of one factor for
each row of D (pointer mode ALPHA_DEVICE_VECTOR_BETA_HOST), which is the gate; C with beta 1 is the residual; and the
bias of its epilogue is gate * bias, a vector that is made before. Called through ctypes, for a measurement.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vorta_trt.plugins import load_library
from vorta_trt.plugins.linear import cublaslt_path

HALF, BFLOAT16, FLOAT32 = 2, 14, 0  # cudaDataType_t
COMPUTE_FLOAT32, TRANSPOSED = 68, 1
POINTER_MODE, TRANSPOSE_A, EPILOGUE, BIAS_POINTER = 2, 3, 7, 8  # cublasLtMatmulDescAttributes_t
ALPHA_VECTOR_BETA_HOST, EPILOGUE_BIAS = 4, 4
MAX_WORKSPACE = 1  # cublasLtMatmulPreferenceAttributes_t
WORKSPACE = 32 << 20


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


def gated_calls(
    input: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, residual: Tensor, output: Tensor, count: int = 4
) -> list[Callable[[], Tensor]]:
    """A call for each kernel that cuBLASLt lists, best first.

    Args:
        input: [R, K], as all others but the gate of one 16-bit type and contiguous.
        weight: [O, K].
        bias: [O].
        gate: Float32 [O].
        residual: [R, O].
        output: [R, O].
        count: Kernels that are asked for.

    Raises:
        RuntimeError: cuBLASLt refuses, or lists none.
    """
    load_library()
    path = cublaslt_path(load_library())
    library = ctypes.CDLL(path or "libcublasLt.so.13")
    rows, k = input.shape
    features = weight.shape[0]
    kind = HALF if input.dtype == torch.float16 else BFLOAT16
    scaled_bias = (gate * bias.float()).to(bias.dtype)

    def check(status: int, step: str) -> None:
        if status:
            raise RuntimeError(f"{step}: cublasStatus_t {status}")

    def layout(first: int, second: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        check(
            library.cublasLtMatrixLayoutCreate(
                ctypes.byref(made), kind, ctypes.c_uint64(first), ctypes.c_uint64(second), ctypes.c_int64(first)
            ),
            "layout",
        )
        return made

    handle, desc, preference = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    check(library.cublasLtCreate(ctypes.byref(handle)), "create")
    check(library.cublasLtMatmulDescCreate(ctypes.byref(desc), COMPUTE_FLOAT32, FLOAT32), "description")
    attributes: list[tuple[int, Any]] = [
        (TRANSPOSE_A, ctypes.c_int32(TRANSPOSED)),
        (POINTER_MODE, ctypes.c_int32(ALPHA_VECTOR_BETA_HOST)),
        (EPILOGUE, ctypes.c_uint32(EPILOGUE_BIAS)),
        (BIAS_POINTER, ctypes.c_void_p(scaled_bias.data_ptr())),
    ]
    for number, value in attributes:
        status = library.cublasLtMatmulDescSetAttribute(
            desc, number, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
        )
        check(status, f"attribute {number}")
    a, b, d = layout(k, features), layout(k, rows), layout(features, rows)
    check(library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), "preference")
    most = ctypes.c_uint64(WORKSPACE)
    status = library.cublasLtMatmulPreferenceSetAttribute(
        preference, MAX_WORKSPACE, ctypes.byref(most), ctypes.c_size_t(8)
    )
    check(status, "workspace")
    results, returned = (Heuristic * count)(), ctypes.c_int()
    check(
        library.cublasLtMatmulAlgoGetHeuristic(
            handle, desc, a, b, d, d, preference, count, results, ctypes.byref(returned)
        ),
        "heuristic",
    )
    if returned.value == 0:
        raise RuntimeError("heuristic: no kernel")
    workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")
    beta = ctypes.c_float(1.0)

    def call_of(result: Heuristic) -> Callable[[], Tensor]:
        def call() -> Tensor:
            status = library.cublasLtMatmul(
                handle, desc, ctypes.c_void_p(gate.data_ptr()), ctypes.c_void_p(weight.data_ptr()), a,
                ctypes.c_void_p(input.data_ptr()), b, ctypes.byref(beta), ctypes.c_void_p(residual.data_ptr()), d,
                ctypes.c_void_p(output.data_ptr()), d, ctypes.byref(result.algorithm),
                ctypes.c_void_p(workspace.data_ptr()), ctypes.c_size_t(WORKSPACE),
                ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
            )  # fmt: skip
            check(status, "product")
            return output

        call.kept = (scaled_bias, results, input, weight, gate, residual)  # type: ignore[attr-defined]
        return call

    return [call_of(results[i]) for i in range(returned.value) if results[i].state == 0]
