# SPDX-License-Identifier: Apache-2.0
"""Prompts from a file, and the files that their videos go to."""

from __future__ import annotations

from pathlib import Path

from vorta_trt.runtime.video_file import check_output


def read_prompts(path: Path) -> list[str]:
    """One prompt per line of a UTF-8 file; empty lines are left out.

    Raises: FileNotFoundError; ValueError, for a file that is not text or holds no prompt.
    """
    if not path.is_file():
        raise FileNotFoundError(f"prompts {path}: no such file; give a text file with one prompt per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts {path}: is not UTF-8 text ({error}); save it as UTF-8") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"prompts {path}: holds no prompt; write one per line")
    return prompts


def output_files(folder: Path, count: int, suffix: str) -> list[Path]:
    """`count` files in a folder, 000.mp4 and so on, by which `vorta-trt compare` pairs two folders; the folder is made.

    Raises: FileExistsError, if the folder is a file; what `check_output` raises.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, and several videos go into a folder; give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:03d}{suffix}" for number in range(count)]
    for file in files[:1]:
        check_output(file)
    return files
