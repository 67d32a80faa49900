# SPDX-License-Identifier: Apache-2.0
"""Prompts from files as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vorta_trt.runtime.pipelines.prompts import read_prompts, warn_of_empty

CAPTIONS = ["a red wall", "ein grüner Wald"]


def written(folder: Path, content: bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_line_ends_at_a_newline_only(tmp_path: Path, separator: str) -> None:
    path = written(tmp_path, f"a red wall,{separator}golden hour\n\n  a cat\r\n".encode())
    assert read_prompts(path) == [f"a red wall,{separator}golden hour", "a cat"]


def test_byte_order_marks(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, "\n".join(CAPTIONS).encode("utf-8-sig"))) == CAPTIONS
    assert read_prompts(written(tmp_path, json.dumps(CAPTIONS).encode("utf-8-sig"), "prompts.json")) == CAPTIONS


@pytest.mark.parametrize("name", ["prompt.json", "prompt.txt"])
@pytest.mark.parametrize("indent", [None, 2])
def test_lists_of_captions(tmp_path: Path, name: str, indent: int | None) -> None:
    objects = [{"caption": caption, "path": f"{number}.mp4"} for number, caption in enumerate(CAPTIONS)]
    for content in (objects, CAPTIONS):
        assert read_prompts(written(tmp_path, json.dumps(content, indent=indent).encode(), name)) == CAPTIONS


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.ndjson", "prompts.txt"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    content = "".join(json.dumps({"caption": caption}) + "\r\n\n" for caption in CAPTIONS)
    assert read_prompts(written(tmp_path, content.encode(), name)) == CAPTIONS
    assert read_prompts(written(tmp_path, b'"a cat"\n"a dog"', "strings.jsonl")) == ["a cat", "a dog"]
    assert read_prompts(written(tmp_path, b"{wide} a cat\n{close} a dog")) == ["{wide} a cat", "{close} a dog"]


def test_text_that_begins_with_a_bracket(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, b"[wide shot] a cat\n[close-up] a dog")) == [
        "[wide shot] a cat",
        "[close-up] a dog",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.txt", b"caf\xe9 at night", "is not UTF-8 text .*; save it as UTF-8"),
        ("prompts.txt", "a cat".encode("utf-16"), "is not UTF-8 text"),
        ("prompts.txt", b" \n\n", "holds no prompt"),
        ("prompts.json", b"[]", "holds no prompt"),
        ("prompts.json", b"a cat", "is not JSON"),
        ("prompts.jsonl", b'{"caption": "a cat"}\na dog', "is not JSON"),
        ("prompts.txt", b'{"prompt": "a cat"}', "entry 0 is .* must be a string, or an object with a "),
        ("prompts.json", b'{"caption": "a cat"}', "must hold a list"),
        ("prompts.json", b'["a cat", "a \\ud83d"]', "entry 1 is no text"),
        ("prompts.json", b"[" * 100_000, "is not JSON"),
        ("prompts.txt", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("prompts.json", b'["a cat", 3]', "entry 1 is 3; must be a string"),
        ("prompts.json", b'[{"text": "a cat"}]', "entry 0 is {'text': 'a cat'}; must be a string, or an object with"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"prompts .*{name}: {message}"):
        read_prompts(written(tmp_path, content, name))
    with pytest.raises(FileNotFoundError, match="absent"):
        read_prompts(tmp_path / "absent")


def test_vbench_and_the_authors(tmp_path: Path) -> None:
    content = [{"prompt_en": text, "dimension": ["color"], "auxiliary_info": {}} for text in CAPTIONS]
    assert read_prompts(written(tmp_path, json.dumps(content).encode(), "VBench_full_info.json")) == CAPTIONS


@pytest.mark.parametrize(("prompt", "warnings"), [("", 1), (" \t\n", 1), ("a", 0)])
def test_an_empty_prompt_is_warned_of(prompt: str, warnings: int, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_empty(prompt)
    assert len(caplog.records) == warnings
    assert all("is empty: the video follows no text" in record.getMessage() for record in caplog.records)
