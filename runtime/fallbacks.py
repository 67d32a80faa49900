# SPDX-License-Identifier: Apache-2.0
"""`Fallbacks`: counts and logs whatever runs otherwise than asked for; in strict mode it is an error."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from vorta_trt.plugins.errors import VortaError

logger = logging.getLogger(__name__)

# Kind of fallback -> what happens instead. Code that falls back names one of these kinds.
KINDS = {
    "cuda graph capture": "the engine is launched without a CUDA graph",
    "batched guidance": "conditional and unconditional samples run one after the other",
    "fp8 attention": "attention runs in the precision of the activations",
    "sparse kernels": "routed heads run in a dense or reference kernel",
    "planned routes": "the routes are not known before sampling, or others are taken than planned",
    "unfinished plan": "a video was sampled with fewer steps of this model than planned",
    "device memory": "weights or activations leave the GPU between uses",
    "executor": "another executor runs the model",
    "prompt length": "the end of the text is cut off",
}
OF_REQUESTS = ("prompt length",)  # kinds that differ from request to request, so they are logged each time


class FallbackError(VortaError):
    """Something would run otherwise than asked for, in strict mode."""


class Fallbacks:
    """The fallbacks of one run; threads may share the object.

    Args:
        strict: Whether every fallback is an error.

    Attributes:
        strict: Whether every fallback is an error.
        counts: Number of fallbacks of each kind.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def record(self, kind: str, reason: str) -> None:
        """Records a fallback; to be called before it happens.

        Args:
            kind: One of `KINDS`.
            reason: The reason, with the values that led to it.

        Raises:
            FallbackError: The mode is strict.
            ValueError: The kind is unknown.
        """
        if kind not in KINDS:
            raise ValueError(f"fallback {kind!r}: must be one of {', '.join(KINDS)}; add it to runtime.fallbacks.KINDS")
        if self.strict:
            raise FallbackError(
                f"{kind}: {reason}; strict mode refuses what would happen instead: {KINDS[kind]}; mend the cause, or "
                f"run without --strict"
            )
        with self._lock:
            self.counts[kind] += 1
            first = self.counts[kind] == 1
        if kind in OF_REQUESTS:
            logger.warning("%s: %s; %s", kind, reason, KINDS[kind])
        elif first:
            logger.warning("%s: %s; %s (said once, counted)", kind, reason, KINDS[kind])

    def lines(self) -> list[str]:
        """One line per kind that happened."""
        return [f"{kind}: {count} times: {KINDS[kind]}" for kind, count in sorted(self.counts.items())]
