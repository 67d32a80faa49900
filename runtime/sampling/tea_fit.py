# SPDX-License-Identifier: Apache-2.0
"""Fits TeaCache's polynomial, which estimates the change of the model's output from that of the timestep embedding.

The method is that of the original: sample a few prompts without any cache, note the relative L1 distance of the
embedding and of the output at every step but the first, and fit a polynomial of degree 4 to all of them by least
squares.

    changes = output_changes(samples)               # samples of one prompt and context, one per step
    distances = TeaCache(0, IDENTITY).distances(timesteps, path)
    TeaCoefficients.fit(distances, changes).save("tea.json")

Letters: P denoising steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vorta_trt.model.files import write_text
from vorta_trt.model.records import Record, load_record
from vorta_trt.model.timestep_path import Signal
from vorta_trt.runtime.sampling.tea_cache import TeaCache

if TYPE_CHECKING:
    from torch import Tensor

DEGREE = 4


def output_changes(samples: Iterable[Tensor]) -> list[float]:
    """Relative L1 distance of each sample to the previous one: P - 1 numbers for P samples of any shape."""
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
    """Coefficients, highest power first, of the least-squares polynomial from distances to output changes.

    Raises:
        ValueError: The lengths differ, there are too few distances to determine the polynomial, or numbers are not
            finite.
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


class TeaCoefficients(Record, extra="forbid"):
    """A fitted polynomial.

    Attributes:
        format: Version of the file format.
        coefficients: Coefficients of the polynomial, highest power first.
        signal: The embedding that the polynomial was fitted for.
        fitted_range: The smallest and the largest distance that the polynomial was fitted on.
    """

    format: Literal[1] = 1
    coefficients: tuple[float, ...] = Field(min_length=1)
    signal: Signal
    fitted_range: tuple[float, float]

    @classmethod
    def fit(
        cls, distances: Sequence[float], output_changes: Sequence[float], signal: Signal = "embedding"
    ) -> TeaCoefficients:
        """Fits a polynomial; raises what `fit_coefficients` raises."""
        coefficients = fit_coefficients(distances, output_changes)
        return cls(coefficients=coefficients, signal=signal, fitted_range=(min(distances), max(distances)))

    def cache(self, threshold: float) -> TeaCache:
        """A cache with this polynomial."""
        return TeaCache(threshold, self.coefficients, self.signal, fitted_range=self.fitted_range)

    def save(self, path: str | Path) -> None:
        """Writes JSON; the file is replaced once the new one is complete."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> TeaCoefficients:
        """Reads a file that `save` wrote; raises FileNotFoundError, or ValueError for other content."""
        return load_record(cls, path, "TeaCache coefficients", "write them with TeaCoefficients.fit(...).save(...)")
