# SPDX-License-Identifier: Apache-2.0
"""The names that a model's authors give its modules, for files that use them, such as LoRA files.

A family lists them in `ModelFamily.authors_names`. The authors may keep one matrix where diffusers keeps several, so a
name stands for rows of one or more modules of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """Rows of a module's parameters in diffusers.

    Attributes:
        module: Name of the module, or of a parameter that belongs to no module of its own.
        part: Which of the parts, from 0.
        parts: Into how many equal parts the rows are cut; 1 takes all of them.
    """

    module: str
    part: int = 0
    parts: int = 1


AuthorsNames = Mapping[str, tuple[Rows, ...]]
"""The authors' name of a module -> the rows that follow each other in it."""


def renamed(names: Mapping[str, str], authors: str = "", diffusers: str = "") -> dict[str, tuple[Rows, ...]]:
    """Modules that correspond one to one.

    Args:
        names: The authors' name -> diffusers' name.
        authors: Prefix of the authors' names.
        diffusers: Prefix of diffusers' names.
    """
    return {authors + theirs: (Rows(diffusers + ours),) for theirs, ours in names.items()}


def joined(names: Mapping[str, tuple[str, ...]], authors: str = "", diffusers: str = "") -> dict[str, tuple[Rows, ...]]:
    """Modules of the authors that hold the rows of several diffusers modules, one after the other.

    Args:
        names: The authors' name -> diffusers' names, in the order of the rows.
        authors: Prefix of the authors' names.
        diffusers: Prefix of diffusers' names.
    """
    return {authors + theirs: tuple(Rows(diffusers + name) for name in ours) for theirs, ours in names.items()}
