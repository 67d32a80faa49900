# SPDX-License-Identifier: Apache-2.0
"""`HeldVideos`: videos of other processes stand still at a step until a test has done what it wants to do meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path


class HeldVideos:
    """Of the processes that are started with `environment`; a video that is held says so by its step.

    Args:
        folder: For a file.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "held"
        path = [str(Path(__file__).with_name("holding")), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {"VORTA_TEST_HELD": str(self._file), "PYTHONPATH": os.pathsep.join(path)}

    def at(self, step: int, prompt: str | None = None) -> None:
        """From now on, videos wait when this many steps are done: those of a prompt, or all. Others go on."""
        new = self._file.with_name("held.new")
        new.write_text(json.dumps({"step": step, "prompt": prompt}))
        new.replace(self._file)

    def release(self) -> None:
        """All go on."""
        self._file.unlink()
