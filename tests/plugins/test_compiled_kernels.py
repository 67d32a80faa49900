# SPDX-License-Identifier: Apache-2.0
"""The kernels of GPUs that this machine does not have compile, spill no registers and serialise no product.

A default build on a machine without a GPU holds code for SM80 alone (see `test_kernel_resources`), so this is where the
others are compiled, and the generic instances with the most registers for the newest GPU. It only compiles: `pytest -m
gpu tests/plugins` runs the kernels.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest
from kernel_resources import accepted_stack, cubin_kernels

from vorta_trt.plugins import load_library

from .conftest import ROOT

KERNELS = ROOT / "plugins" / "kernels"
#: What the kernels of a folder are compiled for, by the beginning of its name.
ARCHITECTURES = {"sm80": ("120",), "sm89": ("89", "120"), "sm90": ("90a",)}
#: The bfloat16 instances; float16 differs by a few conversions.
CASES = [
    (f"{family.name}/instances/{path.stem}", architecture)
    for family in load_library().kernel_families
    for path in sorted((KERNELS / family.name / "instances").glob("*_bf16_*.cu"))
    for architecture in ARCHITECTURES[family.name[:4]]
    if family.name != "sm80" or path.stem.endswith(("_d64", "_d128"))
] + [("sm90_linear/instances/fp8_bf16_gelu", "90a")]


def package_file(package: str, name: str) -> Path:
    """`name` in one of the package's folders; skips where the build's packages are not installed."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / name).exists():
            return path
    return pytest.skip(f"needs {name} of the package {package}, which the build installs")


def test_there_are_instances_to_compile() -> None:
    assert {("sm90/instances/attention_bf16_d128", "90a"), ("sm80/instances/attention_bf16_d64", "120")} < {*CASES}
    assert len(CASES) >= 6


@pytest.mark.parametrize(("instance", "architecture"), CASES)
def test_no_spills_and_no_serialised_products(instance: str, architecture: str, tmp_path: Path) -> None:
    nvcc = package_file("nvidia", "cu13/bin/nvcc")
    cutlass = package_file("cutlass_library", "source/include")
    cubin = tmp_path / "kernel.cubin"
    command = [
        nvcc, "-std=c++17", "-O3", "-DNDEBUG", "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED", "--expt-relaxed-constexpr",
        f"-I{ROOT / 'plugins' / 'include'}", f"-I{KERNELS}", f"-I{cutlass}",
        f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-cubin", KERNELS / f"{instance}.cu",
        "-o", cubin,
    ]  # fmt: skip
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    assert "serialized" not in report, report  # ptxas: "wgmma.mma_async instructions are serialized due to ..."
    kernels = cubin_kernels(cubin.read_bytes(), int(architecture.rstrip("a")))
    assert kernels
    assert [kernel for kernel in kernels if kernel.stack_bytes > accepted_stack(kernel)] == []
