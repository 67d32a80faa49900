# SPDX-License-Identifier: Apache-2.0
"""Documents and help say what is there: commands that parse, names that can be imported, links that lead somewhere.

tests/test_documents_run.py runs them.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from vorta_trt.cli import app

ROOT = Path(__file__).parents[1]
ROOMS = ("plugins", "model", "export", "engines", "runtime", "serving", "benchmarks", "commands", "studies")
# A docstring, or an entry of one, that makes sense only together with the name before it: "seed: Of the inputs."
RIDDLE = re.compile(r'("""|^ +\w+: )([Oo]f|The same|As given)\b', re.MULTILINE)
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "plugins/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The arguments of every `vorta-trt` in a text, whose lines may go on behind a backslash."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [
        shlex.split(line, comments=True) for line in lines if re.search(r"^\s*vorta-trt |-m vorta_trt\.cli ", line)
    ]
    return [line[line.index("vorta-trt" if "vorta-trt" in line else "vorta_trt.cli") + 1 :] for line in words]


def parse(arguments: list[str]) -> None:
    """Raises a usage error, as the command line would, or KeyError for an unknown command; runs nothing."""
    command: Any = get_command(app)
    while arguments and hasattr(command, "commands"):
        name = "run" if "run" in command.commands and arguments[0] not in command.commands else arguments[0]
        arguments = arguments[name == arguments[0] :]  # `train-router CHECKPOINT` is `train-router run CHECKPOINT`
        if name not in command.commands:
            raise KeyError(name)
        command = command.get_command(None, name)
    command.make_context("vorta-trt", arguments)


def helps(command: Any) -> list[str]:
    """The epilogs of all commands, which hold their examples."""
    children = [command.get_command(None, name) for name in getattr(command, "commands", {})]
    below = [text for child in children for text in helps(child)]
    return [command.epilog or "", *below]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_a_document(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for arguments in commands("\n".join(blocks(document, "bash"))):
        parse(arguments)
    for script in blocks(document, "python"):
        for node in ast.walk(ast.parse(script)):
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("vorta_trt"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        linked = document.parent / target if target else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_documented_commands_are_found_and_wrong_ones_are_noticed() -> None:
    found = [arguments[0] for arguments in commands("\n".join(blocks(ROOT / "README.md", "bash")))]
    assert {"doctor", "routes", "build", "inspect", "generate", "export", "verify"} <= set(found)
    assert ["compare", "dense.mp4", "routed.mp4", "--video", "compared.mp4"] in commands(
        "\n".join(blocks(ROOT / "docs/generate.md", "bash"))
    )
    assert ["train-router", "CHECKPOINT", "--data", "DATA", "-o", "ROUTER", "--fsdp"] in commands(
        "\n".join(blocks(ROOT / "docs/training.md", "bash"))
    )
    for wrong, message in (
        (["generate", "wan.bundle", "--promt", "a"], "No such option"),
        (["build", "wan.onnx"], "Missing parameter: output"),
        (["train-router", "CHECKPOINT", "--data", "DATA", "-o", "ROUTER", "--fsdpp"], "No such option"),
        (["sample"], "sample"),
    ):
        with pytest.raises(Exception, match=message):
            parse(wrong)


def test_examples_of_help() -> None:
    examples = [arguments for text in helps(get_command(app)) for arguments in commands(text)]
    assert len(examples) > 30
    for arguments in examples:
        parse(arguments)


def test_docstrings_say_what_a_thing_is() -> None:
    assert RIDDLE.search('    """Of the workers."""') and RIDDLE.search("        seed: Of the inputs.\n")
    found = [
        f"{path.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}: {match[0].strip()} ..."
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for text in [path.read_text(encoding="utf-8")]
        for match in RIDDLE.finditer(text)
    ]
    assert not found, f'write what it is, e.g. "seed: Seed of the random inputs": {found}'
