# SPDX-License-Identifier: Apache-2.0
"""Every study can be imported, says in its README what it is for, and starts."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sizes
from memory import PeakMemory

STUDIES = Path(__file__).parents[2] / "studies"
NAMES = sorted(path.stem for path in STUDIES.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_the_readme_names_every_study() -> None:
    rows = re.findall(r"^\| `(\w+)\.py` \|", (STUDIES / "README.md").read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == NAMES


def test_a_study_starts_as_a_program() -> None:
    """Its siblings are found beside it, from any folder."""
    for name in ("real_size", "calibration"):
        command = [sys.executable, str(STUDIES / f"{name}.py"), "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
        assert "wan-1.3b" in shown


def test_the_table_of_sizes_is_of_this_rule() -> None:
    assert sizes.table() in (STUDIES.parent / "docs/sizes.md").read_text(encoding="utf-8")


def test_peak_memory_sees_the_command() -> None:
    run = PeakMemory([sys.executable, "-c", "import time; x = bytearray(200 << 20); time.sleep(0.5)"]).run()
    assert 0.19 < run.peak_anonymous_gib < 1 and run.seconds > 0.5
    with pytest.raises(subprocess.CalledProcessError):
        PeakMemory([sys.executable, "-c", "raise SystemExit(3)"]).run()
