# SPDX-License-Identifier: Apache-2.0
"""The Hopper kernels compile for sm_90a, with no register spilled and no product serialised.

A default build holds no code for Hopper, so this is where a machine without a GPU compiles it. It only compiles:
`pytest -m gpu tests/plugins` runs the kernels.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT

KERNELS = ROOT / "plugins" / "kernels"
TUNED = sorted((KERNELS / "sm90" / "instances").glob("*_bf16_*.cu"))


def package_file(package: str, name: str) -> Path:
    """`name` in one of the package's folders; skips where the build's packages are not installed."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / name).exists():
            return path
    return pytest.skip(f"needs {name} of the package {package}, which the build installs")


def test_there_are_instances_to_compile() -> None:
    assert [path.stem for path in TUNED] == ["attention_bf16_d128", "attention_bf16_d64"]


@pytest.mark.parametrize("source", TUNED, ids=lambda path: path.stem)
def test_no_spills_and_no_serialised_products(source: Path, tmp_path: Path) -> None:
    nvcc = package_file("nvidia", "cu13/bin/nvcc")
    cutlass = package_file("cutlass_library", "source/include")
    command = [
        nvcc, "-std=c++17", "-O3", "-DNDEBUG", "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED", "--expt-relaxed-constexpr",
        f"-I{ROOT / 'plugins' / 'include'}", f"-I{KERNELS}", f"-I{cutlass}",
        "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v", "-cubin", source, "-o", tmp_path / "kernel.cubin",
    ]  # fmt: skip
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, report
    assert "serialized" not in report, report  # ptxas: "wgmma.mma_async instructions are serialized due to ..."
