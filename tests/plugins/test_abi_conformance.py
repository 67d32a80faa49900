# SPDX-License-Identifier: Apache-2.0
"""Our declarations of TensorRT's plugin interface agree with its headers: values, layouts, slots, names.

``tests/data/tensorrt_abi.json`` holds the facts of TensorRT 10.0 to 11.1, which ``list_abi.cpp`` listed from their
headers, ``tensorrt8_abi.json`` those of TensorRT 8.6. With ``VORTA_TENSORRT_INCLUDE_DIR`` or
``VORTA_TENSORRT8_INCLUDE_DIR`` set, those headers are compared too (``VORTA_CUDA_INCLUDE_DIR`` names the folder of
cuda_runtime_api.h if it is not that of the package nvidia-cuda-runtime).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import PLUGIN_SOURCES

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "tensorrt"
LISTING = PLUGIN / "conformance" / "list_abi.cpp"
KNOWN = json.loads((ROOT / "tests" / "data" / "tensorrt_abi.json").read_text())

Facts = dict[str, Any]


def listed(program: Path) -> Facts:
    facts: Facts = json.loads(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
    return facts


@pytest.fixture(scope="session")
def our_facts(compile_cpp: Any) -> Facts:
    return listed(compile_cpp("list_abi_ours", f"-I{PLUGIN}", LISTING))


def assert_agree(ours: Facts, theirs: Facts) -> None:
    """All of theirs, except that we know both layouts of the logger and a TensorRT has one."""
    [(layout, logger)] = theirs["loggers"].items()
    assert ours["loggers"][layout] == logger
    assert {**ours, "loggers": None} == {**theirs, "loggers": None}


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: f"TensorRT {known['tensorrt'][0]}-{known['tensorrt'][-1]}")
def test_declarations_agree_with_known_versions(our_facts: Facts, known: Facts) -> None:
    assert_agree(our_facts, known["facts"])


def test_every_slot_is_virtual(our_facts: Facts) -> None:
    slots = {**our_facts["slots"], **our_facts["loggers"]}
    assert all(slot >= 0 for functions in slots.values() for slot in functions.values())


def test_plain_logger_is_tensorrt_10_and_versioned_is_11() -> None:
    layouts = {version: next(iter(known["facts"]["loggers"])) for known in KNOWN for version in known["tensorrt"]}
    assert layouts["10.0"] == layouts["10.16"] == "plain"
    assert layouts["11.0"] == layouts["11.1"] == "versioned"


def cuda_include() -> str | None:
    """The folder of cuda_runtime_api.h: as named, else out of the package nvidia-cuda-runtime."""
    if named := os.environ.get("VORTA_CUDA_INCLUDE_DIR"):
        return named
    package = importlib.util.find_spec("nvidia")
    folders = (package.submodule_search_locations or []) if package else []
    found = (Path(folder) / "cu13" / "include" for folder in folders)
    return next((str(folder) for folder in found if (folder / "cuda_runtime_api.h").is_file()), None)


def test_declarations_agree_with_installed_headers(our_facts: Facts, compile_cpp: Any) -> None:
    headers = os.environ.get("VORTA_TENSORRT_INCLUDE_DIR")
    if not headers:
        pytest.skip("VORTA_TENSORRT_INCLUDE_DIR is not set: no TensorRT headers to compare with")
    cuda = cuda_include()
    system = [argument for folder in (headers, cuda) if folder for argument in ("-isystem", folder)]
    quiet = "-Wno-error=deprecated-declarations"
    program = compile_cpp("list_abi_theirs", "-DVORTA_USE_TENSORRT_HEADERS", quiet, f"-I{PLUGIN}", *system, LISTING)
    assert_agree(our_facts, listed(program))


# -- TensorRT 8.6 ------------------------------------------------------------------------------------------------------

PLUGIN8 = ROOT / "plugins" / "tensorrt8"
LISTING8 = PLUGIN8 / "conformance" / "list_abi.cpp"
INCLUDES8 = [f"-I{PLUGIN}", f"-I{PLUGIN / 'conformance'}", f"-I{PLUGIN8}"]
KNOWN8 = json.loads((ROOT / "tests" / "data" / "tensorrt8_abi.json").read_text())


def test_declarations_agree_with_tensorrt_8(compile_cpp: Any) -> None:
    ours = listed(compile_cpp("list_abi8_ours", *INCLUDES8, LISTING8))
    assert KNOWN8 and all(known["facts"] == ours for known in KNOWN8)
    assert all(slot >= 0 for functions in ours["slots"].values() for slot in functions.values())


def test_declarations_agree_with_installed_headers_of_tensorrt_8(compile_cpp: Any) -> None:
    headers = os.environ.get("VORTA_TENSORRT8_INCLUDE_DIR")
    if not headers:
        pytest.skip("VORTA_TENSORRT8_INCLUDE_DIR is not set: no TensorRT 8.6 headers to compare with")
    system = [argument for folder in (headers, cuda_include()) if folder for argument in ("-isystem", folder)]
    real = ["-DVORTA_USE_TENSORRT8_HEADERS", "-Wno-error=deprecated-declarations"]
    assert listed(compile_cpp("list_abi8_theirs", *real, *INCLUDES8, *system, LISTING8)) == KNOWN8[0]["facts"]


def test_plugin_compiles_against_installed_headers(compile_cpp: Any) -> None:
    headers = os.environ.get("VORTA_TENSORRT_INCLUDE_DIR")
    if not headers:
        pytest.skip("VORTA_TENSORRT_INCLUDE_DIR is not set: no TensorRT headers to compile against")
    system = [argument for folder in (headers, cuda_include()) if folder for argument in ("-isystem", folder)]
    includes = [f"-I{PLUGIN}", f"-I{ROOT / 'plugins' / 'include'}", *system]
    sources = [*PLUGIN_SOURCES, Path(__file__).parent / "driver" / "recording_c_api.cpp"]
    compile_cpp("libtheirs.so", "-DVORTA_USE_TENSORRT_HEADERS", *includes, *sources, shared=True)
