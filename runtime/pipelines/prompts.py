# SPDX-License-Identifier: Apache-2.0
"""Reads prompts from a file, and warns of empty prompts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from vorta_trt.model.files import absence, refuse_pointer

logger = logging.getLogger(__name__)

JSON_LINES = (".jsonl", ".ndjson")
_KEYS = ("caption", "prompt_en")  # keys of the prompt in JSON objects: that of VORTA's authors, and VBench's


def read_prompts(path: Path) -> list[str]:
    """The prompts of a UTF-8 file, with or without a byte order mark.

    Args:
        path: A text file with one prompt per line; only a newline ends a line, and empty lines are left out. Or a JSON
            list of strings or of objects. An object holds its prompt as `caption`, as in the files of VORTA's authors,
            or as `prompt_en`, as in VBench's VBench_full_info.json. Or JSON lines: one such string or object per line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not text, holds no prompt, or its JSON holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"prompts {path}: {absence(path)}; give a text file with one prompt per line, or a JSON list"
        )
    refuse_pointer(path, "prompts")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts {path}: is not UTF-8 text ({error}); save it as UTF-8") from error
    lines = _captions(path, text)
    prompts = [line.strip() for line in (text.split("\n") if lines is None else lines) if line.strip()]
    if not prompts:
        raise ValueError(f"prompts {path}: holds no prompt; write one per line")
    return prompts


def warn_of_empty(prompt: str) -> None:
    """Logs a warning if a prompt is empty or blank. Pipelines accept it, but often a shell variable was not set."""
    if not prompt.strip():
        logger.warning(
            "prompt %r is empty: the video follows no text, but for a negative prompt; give one with --prompt", prompt
        )


def _captions(path: Path, text: str) -> list[str] | None:
    """The prompts of a JSON file; None for plain text, whose first prompt may also begin with a bracket."""
    suffix, lines = path.suffix.lower(), [line for line in text.split("\n") if line.strip()]
    is_json = suffix in (".json", *JSON_LINES)
    # If every line begins with a brace, the text is JSON lines: no prompt begins so.
    by_line = suffix in JSON_LINES or (not is_json and all(line.lstrip().startswith("{") for line in lines))
    if not is_json and not by_line and not text.lstrip().startswith("["):
        return None
    try:
        content = [json.loads(line) for line in lines] if by_line else json.loads(text)
    except (ValueError, RecursionError) as error:
        if is_json:
            raise ValueError(f"prompts {path}: is not JSON ({error}); give a list of strings") from error
        return None
    if not isinstance(content, list):
        raise ValueError(f"prompts {path}: must hold a list of strings, or of objects with a caption")
    entries = [_text(entry) for entry in content]
    for number, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise ValueError(
                f"prompts {path}: entry {number} is {content[number]!r}; must be a string, or an object with a "
                f"{' or '.join(_KEYS)}"
            )
        try:
            entry.encode()
        except UnicodeEncodeError as error:  # half of a pair of escapes, "\ud83d" without its second half
            raise ValueError(f"prompts {path}: entry {number} is no text ({error}); write it anew") from error
    return entries


def _text(entry: Any) -> Any:
    """The prompt of a JSON entry: that of an object (None without one), or any other entry unchanged."""
    if isinstance(entry, dict):
        return next((entry[key] for key in _KEYS if key in entry), None)
    return entry
