# SPDX-License-Identifier: Apache-2.0
"""Fitting TeaCache's polynomial: how much the model's output changes, from how much the timestep embedding does.

As in the original: sample a few prompts without any cache, note the relative L1 distance of the embedding and of the
output at every step but the first, and fit a polynomial of degree 4 by least squares over all of them.

    changes = output_changes(samples)               # of one prompt and context, one sample per step
    distances = TeaCache(0, IDENTITY).distances(timesteps, path)
    TeaCoefficients.fit(distances, changes).save("tea.json")

Letters: P denoising steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.model.files import write_json
from vorta_trt.model.timestep_path import SIGNALS, Signal
from vorta_trt.runtime.sampling.tea_cache import TeaCache

if TYPE_CHECKING:
    from torch import Tensor

DEGREE = 4
FORMAT = 1


def output_changes(samples: Iterable[Tensor]) -> list[float]:
    """Relative L1 distance of every sample to the one before: P - 1 numbers of P samples, any shape."""
    changes = []
    before: Tensor | None = None
    for sample in samples:
        if before is not None:
            changes.append(float((sample.double() - before).abs().mean() / before.abs().mean()))
        before = sample.double()
    return changes


def fit_coefficients(
    distances: Sequence[float], output_changes: Sequence[float], degree: int = DEGREE
) -> tuple[float, ...]:
    """The polynomial from distances to output changes by least squares, highest power first.

    Raises: ValueError, for other lengths, too few distances to fix the polynomial, or numbers that are not finite.
    """
    import numpy as np

    if len(distances) != len(output_changes):
        raise ValueError(f"{len(distances)} distances, {len(output_changes)} output changes: must be as many")
    if not all(map(math.isfinite, (*distances, *output_changes))):
        raise ValueError("distances or output changes that are not finite: leave that prompt out")
    if len(set(distances)) <= degree:
        raise ValueError(
            f"{len(set(distances))} different distances: a polynomial of degree {degree} needs at least {degree + 1}; "
            f"sample with more steps"
        )
    return tuple(map(float, np.polyfit(np.asarray(distances), np.asarray(output_changes), degree)))


@dataclass(frozen=True)
class TeaCoefficients:
    """A fitted polynomial, highest power first, the signal it belongs to, and the distances it was fitted on."""

    coefficients: tuple[float, ...]
    signal: Signal
    fitted_range: tuple[float, float]

    @classmethod
    def fit(
        cls, distances: Sequence[float], output_changes: Sequence[float], signal: Signal = "embedding"
    ) -> TeaCoefficients:
        coefficients = fit_coefficients(distances, output_changes)
        return cls(coefficients, signal, (min(distances), max(distances)))

    def cache(self, threshold: float) -> TeaCache:
        return TeaCache(threshold, self.coefficients, self.signal, fitted_range=self.fitted_range)

    def save(self, path: str | Path) -> None:
        """As JSON; the file is replaced once the new one is complete."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> TeaCoefficients:
        """Raises ValueError for a file that `save` did not write."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["signal"] not in SIGNALS:
                raise ValueError(f"format {content['format']!r}, signal {content['signal']!r}")
            low, high = map(float, content["fitted_range"])
            return cls(tuple(map(float, content["coefficients"])), content["signal"], (low, high))
        except (ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: not a file of TeaCache coefficients ({type(error).__name__}: {error}); write it with "
                f"TeaCoefficients.fit(...).save(...)"
            ) from error
