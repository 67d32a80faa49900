# SPDX-License-Identifier: Apache-2.0
"""Runs the sides of a verification on the same cases, and measures how far apart they are.

Polygraphy's `Comparator.run` runs one side after the other, each loaded only for its own cases. Its comparison
functions have no relative L2 error and no notion of "twice another runner's error", so metric and rule are ours.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vorta_trt.runtime.verification.cases import Case
from vorta_trt.runtime.verification.report import TensorError, limit

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

    from vorta_trt.runtime.verification.runners import TorchRunner

Outputs = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Sides:
    """The outputs of one case: of the engine, of torch in fp32, and of torch in the engine's type (None for fp32).

    fp8_attention: whether the engine computed its attention in fp8.
    """

    engine: Outputs
    truth: Outputs
    same_dtype: Outputs | None
    fp8_attention: bool = False

    def error(self, name: str, engine_name: str | None = None) -> TensorError:
        """How far output `name` (in the engine: `engine_name`) is from the truth, and what the rule allows."""
        truth = self.truth[name]
        max_abs, relative = _distance(self.engine[engine_name or name], truth)
        torch_max_abs, torch_relative = (
            (None, None) if self.same_dtype is None else _distance(self.same_dtype[name], truth)
        )
        return TensorError(
            name=name,
            max_abs=max_abs,
            relative_l2=relative,
            torch_max_abs=torch_max_abs,
            torch_relative_l2=torch_relative,
            limit=limit(torch_relative, self.fp8_attention),
        )

    def different(self, name: str) -> int:
        """How many elements of an integer output differ from torch's in the engine's type."""
        expected = (self.same_dtype or self.truth)[name]
        given = self.engine[name]
        return int((given != expected).sum()) if given.shape == expected.shape else expected.size


def run_sides(
    engine: BaseRunner, truth: TorchRunner, same_dtype: TorchRunner | None, cases: Sequence[Case]
) -> list[Sides]:
    """Runs every case on every side."""
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    runners = [engine, *([same_dtype] if same_dtype else []), truth]
    feeds = [OrderedDict(case.feeds) for case in cases]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # it would print every input and output
        results = Comparator.run(runners, data_loader=feeds)
    by_side = [[dict(iteration.items()) for iteration in iterations] for _, iterations in results]
    return [
        Sides(outputs[0], outputs[-1], outputs[1] if same_dtype else None) for outputs in zip(*by_side, strict=True)
    ]


def _distance(given: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Largest absolute difference, and |given - truth| / |truth|; inf for another size, nan if not finite."""
    if given.size != truth.size:
        return math.inf, math.inf
    difference = given.astype(np.float64).ravel() - truth.astype(np.float64).ravel()
    norm = float(np.linalg.norm(truth.astype(np.float64)))
    error = float(np.linalg.norm(difference))
    return float(np.abs(difference).max(initial=0.0)), error / norm if norm else (0.0 if error == 0.0 else math.inf)
