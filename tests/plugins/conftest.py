# SPDX-License-Identifier: Apache-2.0
"""Seeds; the C++ driver that plays TensorRT, and a plugin library that records its calls, compiled once per session."""

from __future__ import annotations

import datetime
import hashlib
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vorta_trt.plugins import library_path, load_library

from ..kept import Kept

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "tensorrt"
PLUGIN8 = ROOT / "plugins" / "tensorrt8"
PLUGIN_SOURCES = [*sorted(PLUGIN.glob("*.cpp")), *sorted((PLUGIN / "operators").glob("*.cpp"))]
DRIVER = Path(__file__).parent / "driver"

#: Default result of getInferLibVersion() of the TensorRT that the driver plays.
TENSORRT_11 = 110400
TENSORRT_8 = 8600

Compile = Callable[..., Path]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed every day and test, printed when the test fails."""
    value = zlib.crc32(f"{request.node.nodeid}{datetime.date.today()}".encode())
    print(f"seed {value}")
    return value


@pytest.fixture
def force_kernels() -> Iterator[Callable[[str], None]]:
    """Forces the calls of one test to use a family of kernels; with "", as at the start, the GPU decides."""
    library = load_library()
    before = library.forced_kernels
    library.force_kernels("")
    yield library.force_kernels
    library.force_kernels(before)


@pytest.fixture(scope="session")
def compile_cpp(kept: Kept) -> Compile:
    """Compiles C++ sources into a program or, with ``shared``, a library; warnings are errors. Both are kept."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the plugin driver")
    sources = [path for folder in (PLUGIN, PLUGIN8, ROOT / "plugins" / "include", DRIVER) for path in folder.rglob("*")]
    digest = hashlib.sha256(subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout)
    for path in sorted(path for path in sources if path.is_file()):
        digest.update(path.read_bytes())

    def compile_(name: str, *arguments: str | Path, shared: bool = False) -> Path:
        form = ["-shared", "-fPIC"] if shared else ["-rdynamic"]
        common = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
        command = [compiler, *common, *form, *map(str, arguments), "-ldl"]
        made_by = digest.copy()
        made_by.update(" ".join(command).encode())

        def make(path: Path) -> None:
            result = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"

        return kept.make(kept.root / "by g++" / made_by.hexdigest()[:16] / name, make)

    return compile_


@dataclass
class Findings:
    """What the driver printed: ``key: value`` lines, and stderr."""

    lines: list[tuple[str, str]]
    stderr: str

    def all(self, key: str) -> list[str]:
        return [value for name, value in self.lines if name == key]

    def one(self, key: str) -> str:
        values = self.all(key)
        assert len(values) == 1, f"{key}: {values} in {self}"
        return values[0]


class Driver:
    """Runs the driver in a process of its own: a crash of the plugin is a failed test, not a dead session."""

    def __init__(self, program: Path, library: Path, version: int = TENSORRT_11) -> None:
        self.program = program
        self.library = library
        self.version = version

    def __call__(self, command: str, *arguments: str, version: int | None = None) -> Findings:
        said = self.version if version is None else version
        line = [str(self.program), str(self.library), str(said), command, *arguments]
        result = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        pairs = [text.partition(":") for text in result.stdout.splitlines()]
        findings = Findings([(key, value.strip()) for key, _, value in pairs], result.stderr)
        assert result.returncode == 0, f"exit code {result.returncode} of {' '.join(line)}\n{findings}"
        assert findings.one("done") == "yes"
        return findings


@pytest.fixture(scope="session")
def driver_program(compile_cpp: Compile) -> Path:
    return compile_cpp("driver", f"-I{PLUGIN}", DRIVER / "driver.cpp")


@pytest.fixture(scope="session")
def driver(driver_program: Path) -> Driver:
    """Drives the library of this installation."""
    return Driver(driver_program, library_path())


@pytest.fixture(scope="session")
def recording_library(compile_cpp: Compile) -> Path:
    """The plugin with the interfaces of all versions of TensorRT, over a C API that prints its arguments."""
    sources = [*PLUGIN_SOURCES, *sorted(PLUGIN8.glob("*.cpp")), DRIVER / "recording_c_api.cpp"]
    includes = [f"-I{PLUGIN}", f"-I{ROOT / 'plugins' / 'include'}"]
    return compile_cpp("librecording.so", *includes, *sources, shared=True)


@pytest.fixture(scope="session")
def recording_driver(driver_program: Path, recording_library: Path) -> Driver:
    """Drives the same plugin over a C API that prints its arguments."""
    return Driver(driver_program, recording_library)


@pytest.fixture(scope="session")
def driver8(compile_cpp: Compile, recording_library: Path) -> Driver:
    """Drives the plugin as TensorRT 8.6 does."""
    program = compile_cpp("driver8", f"-I{PLUGIN}", f"-I{PLUGIN8}", DRIVER / "driver8.cpp")
    return Driver(program, recording_library, TENSORRT_8)
