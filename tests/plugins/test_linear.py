# SPDX-License-Identifier: Apache-2.0
"""The C API of the linear layers without a GPU: what it refuses, workspace, and where cuBLASLt is looked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.plugins import LibraryError, Status, load_library
from vorta_trt.plugins.library import library_path
from vorta_trt.plugins.linear import LinearParams, QuantizeParams, prepare_products, workspace_size
from vorta_trt.plugins.operator_calls import enqueue, validate

ADDRESS = 0x7F0000000000  # never read: every call is refused before the launch
SPACING = 1 << 30  # further than any tensor here reaches
SIZES: dict[str, Any] = {"dtype": "bfloat16", "rows": 300, "in_features": 512, "out_features": 256}
FP8_SIZES = {**SIZES, "precision": "fp8"}
TENSORS: dict[str, Any] = {
    "input": ADDRESS, "weight": ADDRESS + SPACING, "bias": ADDRESS + 2 * SPACING, "output": ADDRESS + 3 * SPACING,
    "workspace": ADDRESS + 4 * SPACING, "workspace_bytes": 1 << 30,
}  # fmt: skip
FP8_TENSORS = {**TENSORS, "weight_scale": ADDRESS + 6 * SPACING, "input_scale": ADDRESS + 7 * SPACING}
PRODUCT_WORKSPACE = 32 << 20


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(LibraryError) as caught:
        call(load_library(), *arguments)
    assert caught.value.status is Status.INVALID_ARGUMENT
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": 2}, "dtype 2: must be 0 (float16) or 1 (bfloat16); pass one of them"),
        ({"precision": 7}, "precision 7: must be 0 (same) or 1 (fp8); pass one of them"),
        ({"activation": -1}, "activation -1: must be 0 (none) or 1 (gelu_tanh); pass one of them"),
        ({"in_features": 12}, "in_features 12: must be a multiple of 8 (16 bytes), at least that and at most 1048576"),
        ({"in_features": 0}, "in_features 0: must be a multiple of 8"),
        ({"out_features": 1 << 21}, "out_features 2097152: must be a multiple of 8"),
        ({"out_features": 24, "precision": "fp8"}, "must be a multiple of 16 (16 bytes), at least that and at most "
         "1048576 with fp8 products; pad weights and input with zeros, or leave this layer to the framework"),
        ({"rows": -1}, "rows -1: must be 0 to 2147482624; split the input"),
        ({"candidate": 64}, "candidate 64: must be -1 (the library's own kernel) to 63"),
        ({"second_features": 4}, "second_features 4 of in_features 512, reserved 0: must be a multiple of 8 (16 "),
        ({"second_features": 512}, "must be a multiple of 8 (16 bytes) below in_features, with reserved 0; pass 0 "),
        ({"second_features": 128, "precision": "fp8"}, "with precision 1 (fp8): must be 0; quantise both inputs"),
        ({"struct_size": 8}, "params.struct_size 8: must be 144 in this library"),
    ],
)  # fmt: skip
def test_a_bad_problem_is_refused(changed: dict[str, Any], message: str) -> None:
    size = changed.pop("struct_size", None)
    params = LinearParams(**{**SIZES, **changed})
    if size is not None:
        params.struct_size = size
    assert message in refusal(validate, params)
    assert message in refusal(workspace_size, params)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": None}, "input (nil): must be a device pointer to [R, K], aligned to 16 bytes; pass one"),
        ({"weight": ADDRESS + 8}, "must be a device pointer to [O, K], aligned to 16 bytes; pass one"),
        ({"bias": ADDRESS + 2}, "must be aligned to 16 bytes; copy it to a fresh allocation"),
        ({"input_stride": 511}, "input_stride 511: must be a multiple of 8 elements (16 bytes) and at least the 512"),
        ({"input_stride": 256}, "input_stride 256: must be a multiple of 8 elements (16 bytes) and at least the 512"),
        ({"output_stride": 1 << 55}, "output_stride 36028797018963968: must be a multiple of 8 elements"),
        ({"output": ADDRESS + 512}, "must not share memory with input or weight; pass memory of its own"),
        ({"workspace": ADDRESS + 16}, "must be a device pointer aligned to 256 bytes; pass one"),
        ({"workspace": ADDRESS + 3 * SPACING}, "must not share memory with input, weight or output"),
        ({"workspace_bytes": 77}, "workspace_bytes 77: this call needs 33554432; allocate what"),
        ({"weight_scale": ADDRESS}, "NULL with 0 (same), which has no scales; pass both or none"),
        (
            {"second_features": 128},
            "second_input (nil) with second_features 128: must be NULL and 0, or a device",
        ),
        ({"second_features": 128, "second_input": ADDRESS + 8}, "must be a device pointer to [R, K2], aligned to 16"),
        (
            {"second_features": 128, "second_input": ADDRESS, "second_stride": 64},
            "second_stride 64: must be a",
        ),
        (
            {"second_features": 128, "second_input": ADDRESS + 3 * SPACING},
            "output 0x7f00c0000000: must not share ",
        ),
    ],
)
def test_a_bad_tensor_is_refused(changed: dict[str, Any], message: str) -> None:
    assert message in refusal(enqueue, LinearParams(**{**SIZES, **TENSORS, **changed}), 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight_scale": None}, "weight_scale (nil): must be device pointers to float32 [R] and [O] with precision 1"),
        ({"input_scale": None}, "input_scale (nil) and weight_scale"),
        ({"input": ADDRESS + 8}, "must be a device pointer to [R, K] e4m3, aligned to 16 bytes; pass one"),
        ({"input_stride": 520}, "input_stride 520: must be a multiple of 16 elements (16 bytes)"),
    ],
)  # fmt: skip
def test_a_bad_tensor_of_fp8_is_refused(changed: dict[str, Any], message: str) -> None:
    assert message in refusal(enqueue, LinearParams(**{**FP8_SIZES, **FP8_TENSORS, **changed}), 0)


QUANTIZE_SIZES: dict[str, Any] = {"dtype": "bfloat16", "rows": 300, "features": 512}
QUANTIZE_TENSORS: dict[str, Any] = {
    "input": ADDRESS, "quantized": ADDRESS + SPACING, "quantized_scale": ADDRESS + 2 * SPACING,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": 2}, "dtype 2: must be 0 (float16) or 1 (bfloat16); pass one of them"),
        ({"features": 24}, "features 24: must be a multiple of 16 (16 bytes)"),
        ({"rows": -1}, "rows -1: must be 0 to 2147482624; split the input"),
        ({"input": None}, "input (nil): must be a device pointer to [R, K], aligned to 16 bytes; pass one"),
        ({"input_stride": 504}, "input_stride 504: must be a multiple of 8 elements (16 bytes) and at least the 512"),
        ({"quantized": ADDRESS + 8}, "must be a device pointer to [R, K] e4m3, aligned to 16 bytes; pass one"),
        ({"quantized": ADDRESS + 512}, "must share no memory with the input or each other"),
        ({"second_features": 12}, "second_features 12 of features 512, reserved 0: must be a multiple of 8 (16 bytes)"),
        ({"second_features": 64}, "second_input (nil) with second_features 64: must be NULL and 0, or a device"),
        ({"second_features": 64, "second_input": ADDRESS + SPACING}, "must share no memory with the input or each"),
        ({"quantized_scale": None}, "quantized_scale (nil): must be a device pointer to float32 [R]"),
        ({"quantized_scale": ADDRESS + SPACING + 1024}, "must share no memory with the input or each other"),
    ],
)  # fmt: skip
def test_a_bad_quantisation_is_refused(changed: dict[str, Any], message: str) -> None:
    assert message in refusal(enqueue, QuantizeParams(**{**QUANTIZE_SIZES, **QUANTIZE_TENSORS, **changed}), 0)


def test_every_call_has_the_same_workspace() -> None:
    video = {"rows": 3 * 72000, "in_features": 13824}  # beyond 32 bits
    for sizes in (SIZES, FP8_SIZES, {**FP8_SIZES, **video}):
        assert workspace_size(load_library(), LinearParams(**sizes)) == PRODUCT_WORKSPACE


def test_an_empty_call_is_done_at_once() -> None:
    """Without a GPU, and without pointers."""
    params = LinearParams(**{**SIZES, "rows": 0})
    assert workspace_size(load_library(), params) == 0
    enqueue(load_library(), params, 0)
    enqueue(load_library(), QuantizeParams(**{**QUANTIZE_SIZES, "rows": 0}), 0)


def test_rows_are_dense_unless_strides_say_otherwise() -> None:
    assert (LinearParams(**SIZES).input_stride, LinearParams(**SIZES).output_stride) == (512, 256)
    assert LinearParams(**SIZES, input_stride=1536).input_stride == 1536


def in_a_process(program: str, **environment: str) -> str:
    """What a fresh process prints, in which no libcublasLt is loaded unless the program does."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return result.stdout


BACKEND = (
    "from vorta_trt.plugins import load_library; from vorta_trt.plugins.linear import backend; "
    "print(*backend(load_library()))"
)


def test_without_cublaslt_it_is_our_kernel_and_says_so(tmp_path: Path) -> None:
    if "no libcublasLt" not in (text := in_a_process(BACKEND)):
        pytest.skip(f"this machine's loader finds a libcublasLt: {text}")
    assert text.startswith(
        "sm80 no libcublasLt.so of CUDA 12 or 13 is loaded, on the loader's path, in NVIDIA's wheels"
    )


STAND_IN = """
#include <cstddef>
extern "C" {
std::size_t cublasLtGetVersion() { return 130100; }
#define NAMED(name) int cublasLt##name() { return 15; }
NAMED(Create) NAMED(MatmulDescCreate) NAMED(MatmulDescDestroy) NAMED(MatmulDescSetAttribute) NAMED(MatrixLayoutCreate)
NAMED(MatrixLayoutDestroy) NAMED(MatmulPreferenceCreate) NAMED(MatmulPreferenceDestroy)
NAMED(MatmulPreferenceSetAttribute) NAMED(MatmulAlgoGetHeuristic) NAMED(Matmul)
}
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the functions of cuBLASLt."""
    compiler = shutil.which("g++") or pytest.skip("needs g++ to make a library")
    folder = tmp_path_factory.mktemp("stand in")
    (folder / "source.cpp").write_text(STAND_IN)
    library = folder / "libcublasLt.so.13"
    subprocess.run([compiler, "-shared", "-fPIC", folder / "source.cpp", "-o", library], check=True)
    return library


WHERE = (
    "from vorta_trt.plugins import load_library; from vorta_trt.plugins.linear import cublaslt_path; "
    "print(cublaslt_path(load_library()))"
)


def test_cublaslt_of_the_wheels_is_found_without_torch(stand_in: Path, tmp_path: Path) -> None:
    """In the Python environment, whatever folder libvorta_trt.so is in; and beside it without any Python's help."""
    if in_a_process(WHERE).strip():
        pytest.skip("this machine has a cuBLASLt of its own")
    wheel = tmp_path / "site" / "nvidia" / "cu13" / "lib" / stand_in.name
    wheel.parent.mkdir(parents=True)
    shutil.copy(stand_in, wheel)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    assert in_a_process(WHERE, PYTHONPATH=path).strip() == str(wheel)
    library = tmp_path / "site" / "vorta_trt" / "plugins" / library_path().name
    library.parent.mkdir(parents=True)
    shutil.copy(library_path(), library)
    program = (
        f"import ctypes; library = ctypes.CDLL({str(library)!r}); "
        "library.vorta_cublaslt_path.restype = ctypes.c_char_p; print(library.vorta_cublaslt_path().decode())"
    )
    assert Path(in_a_process(program).strip()).resolve() == wheel


def test_a_library_that_was_suggested_is_found_later(stand_in: Path) -> None:
    if in_a_process(WHERE).strip():
        pytest.skip("this machine has a cuBLASLt of its own")
    suggest = f"load_library()._library.vorta_suggest_cublaslt({str(stand_in).encode()!r})"
    assert in_a_process(f"{WHERE}; {suggest}; {WHERE}").splitlines() == ["", str(stand_in)]


def test_a_wrong_file_in_the_environment_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "libcublasLt.so.13"
    text = in_a_process(BACKEND, VORTA_TRT_CUBLASLT=str(missing))
    assert f"sm80 VORTA_TRT_CUBLASLT={missing} in the environment: must name a libcublasLt.so of CUDA 12 or 13" in text
    assert "No such file" in text


def test_an_empty_stand_in_is_no_cublaslt(tmp_path: Path) -> None:
    """TensorRT 8.6 runs beside empty libraries of that name."""
    compiler = shutil.which("g++") or pytest.skip("needs g++ to make an empty library")
    library = tmp_path / "libcublasLt.so.12"
    options = ["-shared", "-fPIC", "-x", "c++", "/dev/null", f"-Wl,-soname,{library.name}"]
    subprocess.run([compiler, *options, "-o", library], check=True)
    loaded = in_a_process(f"import ctypes; ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL); {BACKEND}")
    assert loaded == in_a_process(BACKEND)
    named = in_a_process(BACKEND, VORTA_TRT_CUBLASLT=str(library))
    assert "(a function of cuBLASLt is missing in it); correct the path or unset it" in named


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuBLASLt answers")
def test_the_slower_kernel_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    prepare_products.cache_clear()
    for _ in range(2):
        prepare_products(load_library(), "fp8", 0)
    [message] = caplog.messages
    assert message.startswith(
        "linear layers with precision fp8 take the library's own kernel on GPU 0, which is slower: "
    )
