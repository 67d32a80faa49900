# SPDX-License-Identifier: Apache-2.0
"""Faults of the CUDA driver, injected on any machine: a call says what is wrong and what to do, and nothing crashes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .conftest import DRIVER, Compile
from .test_c_api import PROBLEM, TENSORS, strides

MACHINE = "run on a machine with an NVIDIA GPU and a driver of CUDA 13.0 or newer"
SCRIPT = """
    from vorta_trt.plugins import LibraryError, Problem, Tensors, load_library
    library = load_library()
    problem, tensors = Problem(**{problem!r}), Tensors(**{tensors!r})
    print(library.workspace_size(problem) > 0)
    for _ in range(2):  # the second call says the same as the first
        try:
            library.enqueue(problem, tensors, 0)
        except LibraryError as error:
            print(error.status.name, error)
"""


@pytest.mark.parametrize("head_dim", [64, 96])
@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ({"VORTA_FAULT_INIT": "100"}, "CUDA_ERROR", ("cudaErrorNoDevice", MACHINE)),
        ({"VORTA_FAULT_INIT": "803"}, "CUDA_ERROR", ("cudaErrorSystemDriverMismatch", MACHINE)),
        ({"VORTA_FAULT_INIT": "804"}, "CUDA_ERROR", ("cudaErrorCompatNotSupportedOnDevice", MACHINE)),
        ({"VORTA_FAULT_INIT": "34"}, "CUDA_ERROR", ("cudaErrorStubLibrary", MACHINE)),
        ({"VORTA_FAULT_VERSION": "11000"}, "CUDA_ERROR", ("cudaErrorInsufficientDriver", MACHINE)),
        ({"VORTA_FAULT_INIT": "999"}, "CUDA_ERROR", ("cudaErrorUnknown", "check the pointers")),
        ({}, "CUDA_ERROR", ("cudaErrorUnknown", "check the pointers")),  # of a function behind cuInit()
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_call_says_what_is_wrong(
    fault: dict[str, str], status: str, said: tuple[str, str], head_dim: int, compile_cpp: Compile, tmp_path: Path
) -> None:
    (tmp_path / "libcuda.so.1").symlink_to(
        compile_cpp("libfaultycuda.so", DRIVER / "faulty_cuda_driver.cpp", shared=True)
    )
    problem, tensors = {**PROBLEM, "head_dim": head_dim}, {**TENSORS, **strides(head_dim)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).format(problem=problem, tensors=tensors)],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), **fault},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, *calls = result.stdout.splitlines()
    assert first == "True"  # what needs no GPU works
    assert len(calls) == 2 and calls[0] == calls[1]
    assert calls[0].startswith(f"{status} ")
    assert all(part in calls[0] for part in said), calls[0]
