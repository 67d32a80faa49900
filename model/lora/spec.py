# SPDX-License-Identifier: Apache-2.0
"""`LoraSpec`: a LoRA file, and how strongly it is added. Needs no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vorta_trt.model.files import absence

MOST_STRENGTH = 1000
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA to fuse.

    Attributes:
        path: The file.
        strength: Factor of all that the file adds; may be negative.

    Raises:
        ValueError: The strength adds nothing, is too large or no number.
    """

    path: Path
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < abs(self.strength) <= MOST_STRENGTH:
            raise ValueError(
                f"LoRA {self.path}: strength {self.strength:g} must not be 0 and at most {MOST_STRENGTH} in size; use "
                f"e.g. 1.0, or leave the LoRA out"
            )

    @classmethod
    def parse(cls, text: str) -> LoraSpec:
        """Reads "FILE" or "FILE:STRENGTH".

        What follows the last colon is the strength if it is a number, unless there is a file of the whole name.

        Raises:
            ValueError: There is no file name, or the strength is not allowed.
        """
        name, colon, last = text.rpartition(":")
        strength = _number(last) if colon and not Path(text).is_file() else None
        if strength is None:
            name, strength = text, 1.0
        if not name:
            raise ValueError(f"LoRA {text!r}: has no file name; must be FILE or FILE:STRENGTH")
        return cls(Path(name), strength)

    def __str__(self) -> str:
        return f"{self.path}:{self.strength:g}"


def sha256_of(path: Path) -> str:
    """The hash by which an exported file names a LoRA.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        there = absence(path, "does not exist")
        raise FileNotFoundError(f"LoRA {path}: {there}; give a LoRA file in safetensors format")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
