# SPDX-License-Identifier: Apache-2.0
"""What the build compiles for: the machine's GPUs, what is asked for, and what it warns of."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vorta_trt.plugins.gpu import ComputeCapability

from .conftest import ROOT

PATH = ROOT / "plugins" / "cmake" / "gpu_architectures.py"
CODES = "sm_75 sm_80 sm_86 sm_87 sm_88 sm_89 sm_90 sm_100 sm_110 sm_103 sm_120 sm_121".split()
NONE = "no NVIDIA driver: libcuda.so.1 is not on this machine"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_architectures", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _load()


def choose(asked: str, *gpus: str) -> dict[str, Any]:
    found = [(f"GPU of {text}", script.gpu.ComputeCapability.parse(text)) for text in gpus]
    answer: dict[str, Any] = script.choose(asked, CODES, found, NONE)
    return answer


@pytest.mark.parametrize(
    ("gpus", "architectures", "sm90", "sm89"),
    [
        ((), ["80"], [], []),
        (("8.0",), ["80"], [], []),
        (("8.6", "8.6"), ["80", "86-real"], [], []),
        (("8.9",), ["80", "89-real"], [], ["89-real"]),
        (("9.0",), ["80", "90a-real"], ["90a-real"], ["90a-real"]),
        (("12.0", "9.0", "8.9"), ["80", "89-real", "90a-real", "120-real"], ["90a-real"],
         ["89-real", "90a-real", "120-real"]),
        (("10.3",), ["80", "103-real"], [], ["103-real"]),
        (("7.5",), ["80"], [], []),  # older than the kernels
        (("15.0",), ["80"], [], []),  # newer than nvcc: PTX
    ],
)  # fmt: skip
def test_the_gpus_of_the_machine(
    gpus: tuple[str, ...], architectures: list[str], sm90: list[str], sm89: list[str]
) -> None:
    answer = choose("", *gpus)
    assert (answer["architectures"], answer["sm90"], answer["sm89"]) == (architectures, sm90, sm89)
    assert all(f"GPU of {text} ({text})" in answer["reason"] for text in gpus) if gpus else NONE in answer["reason"]


@pytest.mark.parametrize(
    ("asked", "gpu", "missing"),
    [
        ("80", "9.0", ["kernels/sm90*", "no compiling at the first launch", "90a-real"]),
        ("80;90-real", "9.0", ["kernels/sm90*", "90a-real"]),
        ("80;90a-real", "9.0", []),
        ("80", "12.0", ["kernels/sm89*", "no compiling at the first launch", "120-real"]),
        ("90a-real", "8.0", ["any code", "80-real"]),
        ("80", "8.9", ["kernels/sm89*", "89-real"]),
        ("80;86-real", "8.9", ["kernels/sm89*", "89-real"]),
        ("80", "8.6", []),
        ("80-real", "8.6", []),
        ("80;120-real", "12.1", []),
        ("release", "8.0", []), ("release", "8.6", []), ("release", "8.9", []), ("release", "9.0", []),
        ("release", "10.0", []), ("release", "10.3", []), ("release", "12.0", []), ("release", "12.1", []),
        ("80", "15.0", ["kernels/sm89*", "makes no code for it: build with a newer CUDA"]),
        ("80", "7.0", []),  # no kernels for it at all, which the program says where it matters
    ],
)  # fmt: skip
def test_warnings_of_what_this_machines_gpu_will_miss(asked: str, gpu: str, missing: list[str]) -> None:
    answer = choose(asked, gpu)
    assert bool(answer["warnings"]) is bool(missing)
    assert all(text in answer["warnings"][0] for text in (f"GPU of {gpu}", *missing) if missing)
    assert answer["architectures"] == (list(script.RELEASE) if asked == "release" else asked.split(";"))


@pytest.mark.parametrize("asked", ["9.0", "native", "80;;90a", "sm_90", "90a-fast"])
def test_a_list_that_is_none(asked: str) -> None:
    line = [sys.executable, str(PATH), asked, " ".join(CODES)]
    result = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    wrong = next(name for name in asked.split(";") if name != "80")
    assert result.returncode == 1 and result.stdout == ""
    assert f"VORTA_CUDA_ARCHITECTURES {asked}: architecture {wrong!r}" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["80"], ["80", "sm_80", "sm_90"]])
def test_other_arguments_than_two(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, str(PATH), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 2 and "ASKED CODES" in result.stderr and "Traceback" not in result.stderr


def test_the_program_answers_on_this_machine() -> None:
    line = [sys.executable, "-I", str(PATH), "80-real;120", " ".join(CODES)]
    result = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120)
    answer = json.loads(result.stdout)
    assert (answer["architectures"], answer["sm89"], answer["sm90"]) == (["80-real", "120"], ["120"], [])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise SystemExit('libcuda is broken')", "exit code 1: libcuda is broken"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
        ("import time; time.sleep(60)", "did not answer within 0.5 s"),
    ],
)
def test_a_driver_that_crashes_or_hangs_has_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, reason: str
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(program)
    monkeypatch.setattr(script, "__file__", str(broken))
    monkeypatch.setattr(script, "TIMEOUT", 0.5 if "sleep" in program else 60)
    gpus, why = script.machine_gpus()
    assert gpus == [] and reason in why
    assert script.choose("", CODES, gpus, why)["architectures"] == ["80"]


def test_the_driver_is_asked_for_gpus_that_are_hidden_from_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    says = tmp_path / "says.py"
    says.write_text(
        "import json, os\n"
        "hidden = 'CUDA_VISIBLE_DEVICES' in os.environ\n"
        "print(json.dumps({'gpus': [] if hidden else [['A card', '8.9']], 'reason': None}))\n"
    )
    monkeypatch.setattr(script, "__file__", str(says))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (gpu,), _ = script.machine_gpus()
    assert (gpu[0], str(gpu[1])) == ("A card", str(ComputeCapability(8, 9)))


DRIVER = """
#include <cstring>
extern "C" {
int cuInit(unsigned) { return %(init)d; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGetCount(int* count) { *count = 3; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int, int device) {
  std::strcpy(name, device == 1 ? "NVIDIA L40S" : "NVIDIA H100 MIG 1g.10gb");
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? (device == 1 ? 8 : 9) : (device == 1 ? 9 : 0);
  return 0;
}
int cuDeviceTotalMem_v2(std::size_t* bytes, int) { *bytes = std::size_t{10} << 30; return 0; }
}
"""


@pytest.mark.parametrize(
    ("init", "architectures", "reason"),
    [
        (0, ["80", "89-real", "90a-real"], "NVIDIA L40S (8.9); NVIDIA H100 MIG 1g.10gb (9.0)"),
        (999, ["80"], "no usable GPU: the CUDA driver's cuInit returned error 999"),
    ],
)
def test_what_a_driver_lists(
    compile_cpp: Any, tmp_path: Path, init: int, architectures: list[str], reason: str
) -> None:
    """The whole way, with a library that plays the driver: GPUs of two kinds, one in parts; a broken one."""
    source = tmp_path / "driver.cpp"
    source.write_text(DRIVER % {"init": init})
    driver = tmp_path / "libcuda.so.1"
    driver.symlink_to(compile_cpp(f"libcuda-{init}.so", source, shared=True))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, str(PATH), "", " ".join(CODES)]
    result = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120, env=environment)
    answer = json.loads(result.stdout)
    assert answer["architectures"] == architectures
    assert reason in answer["reason"]
