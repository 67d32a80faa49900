# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while packages are imported, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import os, signal, time
before = time.monotonic()
os.kill(os.getpid(), signal.SIGINT)
while time.monotonic() < before + 0.3:  # the signal comes again and again meanwhile
    pass
whole = True
"""
PROGRAM = """
import sys, time
from vorta_trt.commands.interrupts import guard_imports
{before}
guard_imports()
try:
    import interrupted_module
    print("imported", interrupted_module.whole, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", sys.modules["interrupted_module"].whole, flush=True)
"""


def run(tmp_path: Path, before: str) -> tuple[int, list[str]]:
    (tmp_path / "interrupted_module.py").write_text(MODULE)
    command = [sys.executable, "-c", PROGRAM.format(before=before)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    return result.returncode, [*result.stdout.split("\n"), result.stderr]


@pytest.mark.usefixtures("interruptible")
def test_an_import_ends_before_the_interrupt(tmp_path: Path) -> None:
    code, said = run(tmp_path, "")
    assert (code, said[-1]) == (0, "")
    assert "interrupted True" in said


def test_another_handler_stays(tmp_path: Path) -> None:
    before = "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('mine'))\ntime.sleep = lambda _: None"
    code, said = run(tmp_path, before)
    assert (code, said) == (0, ["mine", "imported True", "", ""])
