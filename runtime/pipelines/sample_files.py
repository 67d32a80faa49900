# SPDX-License-Identifier: Apache-2.0
"""The output files of the videos of many prompts: how they are named, and which of them exist already."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

VBENCH_LETTERS = 180  # most letters of a prompt in a file name, as in VBench 2.0; the prompts of VBench are shorter
AUTHORS_LETTERS = 20  # most letters of a prompt in a file name of the authors' script
MOST_BYTES = 255  # longest file name, on usual file systems


class Naming(str, Enum):
    """How a video is named.

    Attributes:
        number: 000.mp4, and 000-0.mp4 for several videos of a prompt.
        vbench: PROMPT-0.mp4, as VBench and VBench 2.0 look for them.
        authors: 000-the-prompts-first-20-.mp4, as the script of VORTA's authors writes them.
    """

    number = "number"
    vbench = "vbench"
    authors = "authors"


@dataclass(frozen=True)
class SampleFile:
    """A video to make.

    Attributes:
        prompt: The prompt of the video.
        file: The output file.
        index: Number of the video among those of its prompt, from 0. It is added to the seed of the first one.
    """

    prompt: str
    file: Path
    index: int


def sample_files(
    folder: Path,
    prompts: Sequence[str],
    suffix: str,
    *,
    naming: Naming = Naming.number,
    samples: int = 1,
    names: Sequence[str] | None = None,
    keep: bool = False,
) -> list[SampleFile]:
    """Lists the videos to make for many prompts; makes their folder, and checks that every file is writable.

    Args:
        folder: Folder of the videos.
        prompts: The prompts. A repeated prompt that gives the same file name is made once.
        suffix: Suffix of the files, with the leading dot.
        naming: See `Naming`.
        samples: Number of videos of each prompt.
        names: Texts that the videos are named by, one for each of `prompts`; None names them by `prompts`. For example,
            VBench expects its own prompts in the names, even if the videos were made from rewritten prompts.
        keep: Whether to leave out videos whose file exists already.

    Raises:
        FileExistsError: The folder is a file.
        ValueError: A file cannot have such a name, two prompts share a name, or there are more or fewer names than
            prompts.
        WriteError: A file cannot be written.
    """
    from vorta_trt.model.files import make_folder
    from vorta_trt.runtime.video_file import check_output

    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, and several videos go into a folder; give another --output")
    named = prompts if names is None else names
    if len(named) != len(prompts):
        raise ValueError(
            f"names: {len(named)} of them for {len(prompts)} prompts; both files must have a line for each video"
        )
    made: dict[str, str] = {}  # name -> prompt
    files = []
    for number, (prompt, name) in enumerate(zip(prompts, named, strict=True)):
        for index in range(samples):
            stem = _stem(naming, number, name, index, samples)
            _check_name(stem + suffix, name)
            if stem in made:
                if made[stem] != prompt:
                    raise ValueError(
                        f"prompts {made[stem]!r} and {prompt!r}: both go to {stem}{suffix}; make them in two runs with "
                        f"two folders"
                    )
                continue
            made[stem] = prompt
            file = folder / (stem + suffix)
            if keep and file.is_file():
                continue
            files.append(SampleFile(prompt, file, index))
    make_folder(folder)
    for each in files:
        check_output(each.file)
    return files


def _stem(naming: Naming, number: int, name: str, index: int, samples: int) -> str:
    if naming is Naming.vbench:
        return f"{name[:VBENCH_LETTERS]}-{index}"
    several = f"-{index}" if samples > 1 else ""
    if naming is Naming.number:
        return f"{number:03d}{several}"
    words = re.sub(r"\s+", "-", re.sub(r"[^\w\s]", "", name).strip()).lower()
    return f"{number:03d}-{words[:AUTHORS_LETTERS]}{several}"


def _check_name(name: str, prompt: str) -> None:
    problem = "a slash" if "/" in name else "a NUL" if "\0" in name else "a line break" if "\n" in name else None
    if problem is None and len(name.encode()) > MOST_BYTES:
        problem = f"{len(name.encode())} bytes of at most {MOST_BYTES}"
    if problem is not None:
        raise ValueError(
            f"prompt {prompt!r}: would name a file with {problem}; name the videos by number, or by other prompts"
        )
