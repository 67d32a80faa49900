# SPDX-License-Identifier: Apache-2.0
"""Python runs this file when it starts with this folder on its path: then videos wait at the step that a test sets.

See `held_videos.py`, which writes the file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "vorta_trt.serving.job_videos"


class _Finder(MetaPathFinder):
    """Changes the module once something imports it. Importing it here would cost every process seconds."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _hold(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _hold(module: Any) -> None:
    make = module.make_videos

    def make_videos(job: Any, pipeline: Any, files: Any, tell: Any, began: float) -> Any:
        def told(stage: str, step: int | None) -> None:
            tell(stage, step)
            while step is not None and _is_held(job.request["prompt"], step):
                time.sleep(0.01)

        return make(job, pipeline, files, told, began)

    module.make_videos = make_videos


def _is_held(prompt: str, step: int) -> bool:
    try:
        held = json.loads(Path(os.environ["VORTA_TEST_HELD"]).read_text())
    except FileNotFoundError:
        return False
    return held["prompt"] in (None, prompt) and step >= held["step"]


sys.meta_path.insert(0, _Finder())
