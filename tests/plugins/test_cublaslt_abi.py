# SPDX-License-Identifier: Apache-2.0
"""Our declarations of cuBLASLt agree with its header: values, sizes and the functions' arguments.

The header is that of the package nvidia-cublas, which torch's CUDA build brings, or the one in the folder that
``VORTA_CUBLAS_INCLUDE_DIR`` names. Without one these tests skip.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT


def package_folder(name: str) -> Path | None:
    """A folder of the packages named nvidia that has the file."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        for include in sorted(Path(folder).glob("*/include"), reverse=True):
            if (include / name).is_file():
                return include
    return None


def test_declarations_agree_with_the_header() -> None:
    named = os.environ.get("VORTA_CUBLAS_INCLUDE_DIR")
    cublas = Path(named) if named else package_folder("cublasLt.h")
    cuda = package_folder("cuda_runtime_api.h")
    compiler = shutil.which("g++")
    if cublas is None or cuda is None or compiler is None:
        pytest.skip("needs g++, cublasLt.h and cuda_runtime_api.h: those of nvidia-cublas and nvidia-cuda-runtime")
    includes = [f"-I{folder}" for folder in (ROOT / "plugins" / "kernels", cublas, cuda)]
    source = ROOT / "tests" / "plugins" / "driver" / "compare_cublaslt.cpp"
    command = [compiler, "-std=c++17", "-fsyntax-only", *includes, str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
