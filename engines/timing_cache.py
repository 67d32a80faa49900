# SPDX-License-Identifier: Apache-2.0
"""TensorRT's timing cache as a file, so that the second build need not time the same kernels again.

TensorRT-RTX has none: its calls are no-ops there; what it caches are kernels compiled at run time (IRuntimeCache).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vorta_trt.engines.flavours import Flavour
from vorta_trt.model.files import make_way, new_file

logger = logging.getLogger(__name__)


class TimingCache:
    """The cache of one build; `save` writes what the build added."""

    def __init__(self, path: Path, cache: Any) -> None:
        self.path = path
        self._cache = cache

    @classmethod
    def attach(cls, flavour: Flavour, config: Any, path: Path | None) -> TimingCache | None:
        """Gives the builder the cache in `path`, or an empty one if there is no such file yet."""
        if path is None:
            return None
        if not flavour.has_timing_cache:
            logger.warning("timing_cache %s: %s has no timing cache; the option does nothing", path, flavour.title)
            return None
        data = path.read_bytes() if path.exists() else b""
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            # Made by another TensorRT version or on another GPU: its timings mean nothing here.
            logger.warning("timing_cache %s: made by another TensorRT or GPU; starting an empty one", path)
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cls(path, cache)

    def save(self) -> None:
        """Replaces the file in one step, so that builds that run side by side never read half of it."""
        make_way(self.path)
        with new_file(self.path) as unfinished:
            unfinished.write_bytes(memoryview(self._cache.serialize()))
