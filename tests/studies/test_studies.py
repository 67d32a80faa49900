# SPDX-License-Identifier: Apache-2.0
"""Every study can be imported, says in its README what it is for, and starts."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sizes
from memory import PeakMemory
from running_server import wait_for

STUDIES = Path(__file__).parents[2] / "studies"
NAMES = sorted(path.relative_to(STUDIES).with_suffix("").as_posix() for path in STUDIES.rglob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_imported(name: str) -> None:
    assert importlib.import_module(Path(name).name).__doc__


def test_the_readme_names_every_study() -> None:
    rows = re.findall(r"^\| `([\w/]+)\.py` \|", (STUDIES / "README.md").read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == NAMES


def test_a_study_starts_as_a_program() -> None:
    """Its siblings are found beside it, from any folder."""
    for name in ("real_size", "calibration"):
        command = [sys.executable, str(STUDIES / f"{name}.py"), "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
        assert "wan-1.3b" in shown


def test_the_table_of_sizes_is_of_this_rule() -> None:
    assert sizes.table() in (STUDIES.parent / "docs/sizes.md").read_text(encoding="utf-8")


def test_peak_memory_sees_the_command(tmp_path: Path) -> None:
    """Which lives until its memory has been seen."""
    seen = tmp_path / "seen"
    code = "import os, sys, time; x = bytearray(200 << 20)\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    run = PeakMemory([sys.executable, "-c", code, str(seen)])
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run.run)
        try:
            wait_for(lambda: run.peak_anonymous_gib > 0.19)
        finally:
            seen.touch()
        assert done.result() is run
    assert run.peak_anonymous_gib < 1 and run.seconds > 0
    with pytest.raises(subprocess.CalledProcessError):
        PeakMemory([sys.executable, "-c", "raise SystemExit(3)"]).run()
