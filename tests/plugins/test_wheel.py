# SPDX-License-Identifier: Apache-2.0
"""What the wheel asks of a machine; `make wheel` gives a release wheel the tag that these facts allow.

The wheel of this installation stands for it: `make test` and `make demo` keep theirs in the environment.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from vorta_trt.plugins import library_path

NEWEST_GLIBC = (2, 39)  # of Ubuntu 24.04; a library that asks for more would run almost nowhere


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = sorted((Path(sys.prefix) / "wheel").glob("vorta_trt-*.whl"))
    if not found:
        pytest.skip("this environment keeps no wheel; make test and make demo do")
    return found[-1]


def required_versions(library: Path) -> dict[str, tuple[int, ...]]:
    """The newest version that a library asks for of each set of symbols, such as {"GLIBC": (2, 34)}."""
    text = subprocess.run(["readelf", "--version-info", library], capture_output=True, text=True, check=True).stdout
    newest: dict[str, tuple[int, ...]] = {}
    for name, version in re.findall(r"Name: ([A-Z]+)_([\d.]+)", text):
        numbers = tuple(map(int, version.split(".")))
        newest[name] = max(newest.get(name, ()), numbers)
    return newest


def test_the_library_asks_for_no_recent_system() -> None:
    versions = required_versions(library_path())
    assert versions["GLIBC"] <= NEWEST_GLIBC
    assert versions["GLIBCXX"] <= (3, 4, 30)  # GCC 12's; that of Ubuntu 22.04


def test_auditwheel_finds_a_platform_for_the_wheel(wheel: Path) -> None:
    pytest.importorskip("auditwheel", reason="needs auditwheel, which make test installs")
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert re.search(r"manylinux_2_\d+_x86_64", result.stdout.replace("\n", "")), result.stdout


def test_the_wheel_is_for_any_python_and_holds_no_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (tags,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        stated = Parser().parsestr(content.read(tags).decode())
    assert stated["Root-Is-Purelib"] == "false"
    assert all(tag.startswith("py3-none-") and not tag.endswith("-any") for tag in stated.get_all("Tag", []))
    assert {"vorta_trt/plugins/libvorta_trt.so", "vorta_trt/plugins/shims/libtensorrt_rtx.so"} <= set(names)
    assert not [name for name in names if name.endswith((".cu", ".cuh", ".cpp", ".cmake")) or "/cmake/" in name]
