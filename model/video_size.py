# SPDX-License-Identifier: Apache-2.0
"""`VideoSize`: frames, height and width of a video in pixels, as "77x720x1280"."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class VideoSize:
    """Frames, height and width in pixels."""

    frames: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> VideoSize:
        """Reads "77x720x1280"; ValueError names the format."""
        match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
        if match is None:
            raise ValueError(f"size {text!r}: must be FRAMESxHEIGHTxWIDTH in pixels; use e.g. 77x720x1280")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"
