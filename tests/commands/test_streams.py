# SPDX-License-Identifier: Apache-2.0
"""Pipes that nobody reads, full disks and closed descriptors, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vorta_trt.commands.app import COMMANDS

VORTA = [sys.executable, "-m", "vorta_trt.cli"]
REFUSED = "error: standard output: cannot be written: "


def run(*arguments: object, shell: str = "", code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command with redirections as a shell writes them."""
    command = [*VORTA] if code is None else [sys.executable, "-c", code]
    return subprocess.run(
        ["bash", "-c", f'"$@" {shell}', "bash", *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def into_a_broken_pipe(*command: object) -> tuple[int, str]:
    """Exit code, and what stands on stderr, of a command whose reader has gone before it writes."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        result = subprocess.run([str(part) for part in command], stdout=pipe, stderr=subprocess.PIPE, timeout=120)
    return result.returncode, result.stderr.decode()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_into_a_broken_pipe_is_silent(command: str) -> None:
    assert into_a_broken_pipe(*VORTA, *filter(None, [command]), "--help") == (141, "")


PRINTING = """
from vorta_trt.commands import app, streams
from vorta_trt.runtime.console import output_console
import sys, typer
streams.guard_streams()
@app.command("example")
def show() -> None:
    {body}
try:
    typer.main.get_command(app._programs["show"])(prog_name="show", args=[])
finally:
    sys.stdout.flush()
"""
WAYS = {"echo": "typer.echo('a')", "print": "print('a')", "rich": "output_console().print('a')"}


@pytest.mark.parametrize("way", WAYS)
def test_results_into_a_broken_pipe_are_silent(way: str) -> None:
    code = PRINTING.format(body=WAYS[way])
    assert into_a_broken_pipe(sys.executable, "-c", code) == (141, "")
    whole = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (whole.returncode, whole.stdout, whole.stderr) == (0, "a\n", "")


def test_another_broken_pipe_is_an_error() -> None:
    """Only standard output ends a command in silence."""
    code = PRINTING.format(body="raise BrokenPipeError(32, 'Broken pipe', 'a peer')")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "error: a peer: Broken pipe\n")


def test_a_real_command_into_a_broken_pipe(tmp_path: Path) -> None:
    for options in ((), ("--json",)):
        assert into_a_broken_pipe(*VORTA, "doctor", *options) == (141, "")


@pytest.mark.parametrize(
    ("shell", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_results_that_cannot_be_written(shell: str, reason: str) -> None:
    for arguments in (["--help"], ["--version"], ["generate", "--help"]):
        result = run(*arguments, shell=shell)
        assert result.returncode == 1
        assert result.stderr.startswith(f"{REFUSED}{reason}") and result.stderr.count("\n") == 1


def test_without_standard_error() -> None:
    for shell in ("2>&-", "2>/dev/full", "2> >(true)"):
        assert run("--version", shell=shell).stdout.startswith("vorta-trt ")
        failed = run("inspect", "absent.onnx", shell=shell)
        assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", "")
        assert run("generat", shell=shell).returncode == 2


def test_nothing_at_all_is_open(tmp_path: Path) -> None:
    """A file that is opened does not get the number of a closed stream, where libraries would write into it."""
    code = (
        "from vorta_trt.commands.streams import guard_streams\n"
        "guard_streams()\n"
        f"descriptor = open({str(tmp_path / 'file')!r}, 'w').fileno()\n"
        "raise SystemExit(descriptor)"
    )
    assert run(shell="<&- >&- 2>&-", code=code).returncode > 2


def test_characters_that_the_terminal_lacks_are_escaped() -> None:
    code = PRINTING.format(body="print('caf\\u00e9 \\udcff')")
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (result.returncode, result.stdout) == (0, b"caf\\xe9 \\udcff\n")
