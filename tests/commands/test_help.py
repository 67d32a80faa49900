# SPDX-License-Identifier: Apache-2.0
"""Every command and option has a help that a newcomer can read, and showing it loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.commands.app import COMMANDS

HEAVY = ("torch", "numpy", "onnx", "diffusers", "transformers", "tensorrt_rtx", "rich", "matplotlib")


def walk(command: Any, name: str = "vorta-trt") -> Iterator[tuple[str, Any]]:
    """A command and all below it, with their names."""
    yield name, command
    for child in getattr(command, "commands", ()):
        yield from walk(command.get_command(None, child), f"{name} {child}")


EVERY_COMMAND = dict(walk(get_command(app)))


def test_all_commands_are_there() -> None:
    groups = {
        "bench attention",
        "bench blocks",
        "bench step",
        "bench parallel",
        "train-router run",
        "train-router prepare",
    }
    assert {name.removeprefix("vorta-trt ") for name in EVERY_COMMAND} == {"vorta-trt", *COMMANDS, *groups}


@pytest.mark.parametrize("name", EVERY_COMMAND)
def test_help_of_a_command(name: str) -> None:
    command = EVERY_COMMAND[name]
    lines = (command.help or "").strip().splitlines()
    assert lines and lines[0].endswith("."), "the first line is one sentence"
    assert len(lines[0]) <= 60 or name == "vorta-trt", f"{lines[0]!r}: too long for the list of commands"
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    assert examples, "no example"
    known = name.removesuffix(" run")  # which may be left out
    assert any(f" -m {known.replace('vorta-trt', 'vorta_trt.cli')}" in line or known in line for line in examples)
    for text in (command.help, *(parameter.help for parameter in command.params)):
        assert text, [parameter.name for parameter in command.params if not parameter.help]
        assert not text.startswith(("Of ", "[")), text
        assert text.rstrip().endswith("."), text


FLOATS = [
    (name, option.opts[-1])
    for name, command in EVERY_COMMAND.items()
    for option in command.params
    if option.param_type_name == "option" and "float" in str(option.type_descriptor.annotation)
]


@pytest.mark.parametrize(("name", "flag"), FLOATS, ids=[f"{name} {flag}" for name, flag in FLOATS])
@pytest.mark.parametrize("number", ["nan", "inf", "1e999"])
def test_numbers_are_finite(name: str, flag: str, number: str) -> None:
    """Before anything is read, whatever the option is."""
    command = EVERY_COMMAND[name]
    required = [other for other in command.params if other.required and flag not in other.opts]
    words = [text for other in required if other.param_type_name == "option" for text in (other.opts[-1], "x")]
    words += ["x" for other in required if other.param_type_name == "argument"]
    result = CliRunner().invoke(app, [*name.split()[1:], *words, flag, number])
    assert result.exit_code == 2, result
    assert "finite" in result.stderr or "less than" in result.stderr or "greater than" in result.stderr, result.stderr


def test_of_several_numbers_the_one_that_is_not_finite_is_named() -> None:
    result = CliRunner().invoke(app, ["inspect", "model.bundle", "--memory", "24", "--memory", "nan"])
    assert result.exit_code == 2 and "nan: must be a finite number" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *[(["serve", "a.onnx"], option) for option in ("--keep", "--stall", "--max-upload", "--workers")],
        *[(["generate", "a.onnx"], option) for option in ("--gpu-timeout", "--samples")],
        (["verify", "a.onnx", "a"], "--batch"),
    ],
)
def test_numbers_that_would_overflow(command: list[str], option: str) -> None:
    result = CliRunner().invoke(app, [*command, option, "1" + 30 * "0"])
    assert result.exit_code == 2 and "less than or equal to" in result.stderr, result


def test_help_is_light() -> None:
    """Of all commands together, whatever one of them would import."""
    code = (
        "import sys, json\n"
        "from typer.testing import CliRunner\n"
        "from vorta_trt.cli import app\n"
        f"results = [CliRunner().invoke(app, [*name.split()[1:], '--help']) for name in {list(EVERY_COMMAND)}]\n"
        "assert all(result.exit_code == 0 for result in results)\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []


def test_the_version() -> None:
    from importlib.metadata import version

    result = subprocess.run([sys.executable, "-m", "vorta_trt.cli", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"vorta-trt {version('vorta-trt')}\n")
