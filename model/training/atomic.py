# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_UNFINISHED = ".unfinished-"


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path` and renames what it wrote into place."""
    unfinished = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    try:
        write(unfinished)
        _sync(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """JSON with an indentation of 2."""
    text = json.dumps(content, indent=2) + "\n"
    write_file(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Calls `fill` with an empty folder and renames it to `path`, which must not exist."""
    unfinished = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        fill(unfinished)
        for file in unfinished.iterdir():
            _sync(file)
        _sync(unfinished)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _sync(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left unfinished in `folder`."""
    for entry in folder.glob(f"{_UNFINISHED}*"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync(path: Path) -> None:
    """Has the system put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
