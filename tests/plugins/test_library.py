# SPDX-License-Identifier: Apache-2.0
"""Finding, loading and calling libvorta_trt.so from Python."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vorta_trt import plugins
from vorta_trt.plugins import (
    LibraryError,
    LibraryNotFoundError,
    PluginLibrary,
    Problem,
    Status,
    Tensors,
    VortaError,
    library_path,
    load_library,
    rtx_shim_path,
)


def problem(**changed: Any) -> Problem:
    values: dict[str, Any] = {
        "dtype": "bfloat16",
        "batch": 1,
        "heads": 2,
        "head_dim": 64,
        "grid": (4, 6, 4),
        "tile": (2, 3, 2),
        "window": (1, 1, 1),
        "bucket": (2, 3, 2),
        "keep": 6,
        "coreset_keys": "query",
        "text_tokens": 0,
        "scale": 0.0,
    }
    return Problem(**{**values, **changed})


@pytest.fixture
def without_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VORTA_TRT_LIBRARY", raising=False)


def test_library_is_found_and_says_what_it_is(without_override: None) -> None:
    library = load_library()
    assert library.path == library_path()
    assert library.path.is_absolute()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", library.version)
    assert re.fullmatch(r"[0-9a-f]{64}", library.abi_hash)
    assert all(re.fullmatch(r"\d+[af]?(-real|-virtual)?", name) for name in library.cuda_architectures)
    assert load_library() is library


def test_library_shows_only_its_interface(without_override: None) -> None:
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("needs nm and readelf")
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", library_path()], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in symbols.splitlines()}
    entry_points = {name for name in names if not name.startswith("vorta_")}
    entry_points -= {"getPluginCreators"}  # of a library that was built with VORTA_TENSORRT8=ON
    assert entry_points == {"getCreators", "setLoggerFinder"}
    dynamic = subprocess.run(["readelf", "-d", library_path()], capture_output=True, text=True, check=True).stdout
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert not [name for name in needed if re.search(r"nvinfer|tensorrt|cuda|cudart", name)]


def test_validate_and_workspace(without_override: None) -> None:
    library = load_library()
    library.validate(problem())
    small, large = library.workspace_size(problem()), library.workspace_size(problem(batch=2))
    assert 0 < small <= large


def test_validate_names_argument_value_rule_and_remedy(without_override: None) -> None:
    with pytest.raises(LibraryError, match=r"window \(2, 1, 1\): every entry must be odd.*; use") as caught:
        load_library().validate(problem(window=(2, 1, 1)))
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert isinstance(caught.value, VortaError)


def test_enqueue_refuses_null_pointers(without_override: None) -> None:
    with pytest.raises(LibraryError) as caught:
        load_library().enqueue(problem(), Tensors(), 0)
    assert caught.value.status is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["grid", "tile", "window", "bucket"])
def test_triples_have_three_entries(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} \(1, 2\): must have 3 entries"):
        problem(**{name: (1, 2)})


def test_structures_know_their_size() -> None:
    assert problem().struct_size == 96
    assert Tensors().struct_size == 168


def test_override_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    shutil.copy(library_path(), folder / "mine.so")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VORTA_TRT_LIBRARY", "mine.so")
    assert library_path() == folder / "mine.so"
    assert load_library().path == folder / "mine.so"


def test_override_to_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTA_TRT_LIBRARY", "/nowhere/libvorta_trt.so")
    with pytest.raises(LibraryNotFoundError, match="VORTA_TRT_LIBRARY /nowhere/libvorta_trt.so: no such file"):
        library_path()
    assert issubclass(LibraryNotFoundError, FileNotFoundError)
    assert issubclass(LibraryNotFoundError, VortaError)


def test_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "libvorta_trt.so"
    path.write_text("not an ELF file")
    with pytest.raises(VortaError, match="the loader refuses it"):
        PluginLibrary(path)


def test_library_of_something_else(compile_cpp: Any, tmp_path: Path) -> None:
    source = tmp_path / "other.cpp"
    source.write_text('extern "C" int other() { return 0; }\n')
    path = compile_cpp("libother.so", source, shared=True)
    with pytest.raises(VortaError, match="has no function vorta_routed_attention_validate"):
        PluginLibrary(path)


def test_library_with_another_interface(compile_cpp: Any, tmp_path: Path) -> None:
    """A future library whose structures grew says so, and is refused at load."""
    include = Path(plugins.__file__).parent / "include"
    source = tmp_path / "future.cpp"
    source.write_text(
        """#include "vorta_trt/kernel_families.h"
        vorta_status vorta_routed_attention_validate(const vorta_routed_attention_problem* problem) {
          return problem->struct_size == 104 ? VORTA_OK : VORTA_INVALID_ARGUMENT;
        }
        vorta_status vorta_routed_attention_workspace_size(const vorta_routed_attention_problem*, size_t*) {
          return VORTA_OK;
        }
        vorta_status vorta_routed_attention_enqueue(const vorta_routed_attention_problem*,
                                                    const vorta_routed_attention_tensors*, void*) {
          return VORTA_OK;
        }
        vorta_status vorta_force_kernels(const char*) { return VORTA_OK; }
        const char* vorta_forced_kernels(void) { return ""; }
        const char* vorta_last_error(void) { return "problem.struct_size 96: must be 104"; }
        const char* vorta_version(void) { return "9.9.9"; }
        const char* vorta_abi_hash(void) { return ""; }
        const char* vorta_cuda_architectures(void) { return ""; }
        int32_t vorta_cuda_version(void) { return 13000; }
        const vorta_kernel_family* vorta_kernel_families(size_t* count) { *count = 0; return nullptr; }
        """
    )
    path = compile_cpp("libfuture.so", f"-I{include}", source, shared=True)
    with pytest.raises(VortaError, match=r"version 9\.9\.9 has another interface .*struct_size 96: must be 104"):
        PluginLibrary(path)


def test_shim_is_there() -> None:
    path = rtx_shim_path()
    assert path.is_absolute()
    assert path.name == "libtensorrt_rtx.so"
