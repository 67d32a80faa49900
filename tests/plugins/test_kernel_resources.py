# SPDX-License-Identifier: Apache-2.0
"""Kernels spill no more registers than is known of them, and the library holds every kernel that it says it has.

It reads the machine code of the installed library, whatever that was compiled for: without a GPU a build has SM80
alone; `test_compiled_kernels` compiles for others. `make wheel` checks all architectures.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kernel_resources import Kernel, accepted_stack, elf_sections, library_kernels

from vorta_trt.plugins import KERNEL_DTYPES, library_path, load_library
from vorta_trt.plugins.gpu import split_architecture

from .conftest import ROOT

PROGRAM = ROOT / "studies" / "kernel_resources.py"
#: CUTLASS's names of the types, as they stand in the kernels'.
TYPES = {"float16": "half_t", "bfloat16": "bfloat16_t"}
#: Registers of a multiprocessor, which the resident thread blocks share; a thread has 255 at most.
MAX_REGISTERS = 255
MAX_STATIC_SHARED = 48 * 1024


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return library_kernels(library_path().read_bytes())


def test_no_kernel_spills_more_registers_than_is_known(kernels: list[Kernel]) -> None:
    assert [kernel for kernel in kernels if kernel.stack_bytes > accepted_stack(kernel)] == []


def test_registers_and_shared_memory_are_those_of_a_gpu(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        assert 0 < kernel.registers <= MAX_REGISTERS, kernel
        assert 0 <= kernel.shared_bytes <= MAX_STATIC_SHARED, kernel
        assert kernel.code_bytes > 0, kernel


def test_every_instance_is_there_for_every_architecture(kernels: list[Kernel]) -> None:
    """The table of families against the machine code itself."""
    found = {(kernel.architecture, kernel.title) for kernel in kernels}
    for family in load_library().kernel_families:
        parts = [split_architecture(name) for name in family.architectures]
        for number in (int(number) for number, _, kind in parts if kind != "-virtual"):
            titles = [title.split() for architecture, title in found if architecture == number]
            instances = [title for title in titles if title[0] == family.name and "attention" in title[1]]
            wanted = {(TYPES[dtype], str(head_dim)) for dtype in KERNEL_DTYPES for head_dim in family.head_dims}
            assert {tuple(title[2:4]) for title in instances} == wanted, (family.name, number)


def test_the_program_says_the_same(kernels: list[Kernel]) -> None:
    command = [sys.executable, str(PROGRAM), "--brief", str(library_path())]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    for architecture in {kernel.architecture for kernel in kernels}:
        count = sum(kernel.architecture == architecture for kernel in kernels)
        assert f"sm_{architecture:<4} {count} kernels, " in result.stdout


@pytest.mark.parametrize(
    ("content", "words"), [(b"not an ELF file", "not the beginning"), (None, "no section .nv_fatbin")]
)
def test_a_file_without_gpu_code(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(content or Path(sys.executable).resolve().read_bytes())
    command = [sys.executable, str(PROGRAM), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 2 and words in result.stderr and str(path) in result.stderr


def test_sections_of_a_file_that_is_cut_short() -> None:
    with pytest.raises(ValueError, match="64-bit ELF"):
        elf_sections(b"\x7fELF")
