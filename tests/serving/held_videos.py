# SPDX-License-Identifier: Apache-2.0
"""`HeldVideos`: stops the making of videos in other processes at a step, until a test lets it go on."""

from __future__ import annotations

import json
import os
from pathlib import Path


class HeldVideos:
    """Holds videos of the processes that are started with `environment`. A held video's step stays the same.

    Args:
        folder: Folder for the file that tells the processes what to hold.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "held"
        path = [str(Path(__file__).with_name("holding")), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {"VORTA_TEST_HELD": str(self._file), "PYTHONPATH": os.pathsep.join(path)}

    def at(self, step: int, prompt: str | None = None) -> None:
        """Holds videos once this many steps are done, from now on: those of a prompt, or all. Others go on."""
        new = self._file.with_name("held.new")
        new.write_text(json.dumps({"step": step, "prompt": prompt}))
        new.replace(self._file)

    def release(self) -> None:
        """Lets all videos go on."""
        self._file.unlink()
