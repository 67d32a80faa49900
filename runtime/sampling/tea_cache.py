# SPDX-License-Identifier: Apache-2.0
"""`TeaCache`: steps are skipped while the timestep embedding has changed little (arXiv 2411.19108).

    distance of a step     d = mean |e - e'| / mean |e'|, e' the embedding of the step before
    accumulated            a += polynomial(d), an estimate of how much the model's output changes
    a < threshold          the step is skipped; otherwise it is computed and a = 0

The original takes one of three signals for e: the timestep embedding; its projection to the blocks' modulation
("use_ret_steps"); or the modulated input of the first block. The last one depends on the latents, so it is not known
before sampling, and an engine does not return it. Here e is the timestep embedding, or the modulation where that
depends on the timestep alone.

The polynomial belongs to a signal and a checkpoint, not to an architecture: the output of a fine-tuned or distilled
model, or of another release of the same size, changes by other amounts. So published coefficients are used only for
checkpoints that carry the published name (see `ModelFamily.tea_cache_model`), or where the user says which checkpoint
it is. For all others, coefficients have to be fitted, see `tea_fit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import pydantic

from vorta_trt.model.families import get_family
from vorta_trt.runtime.sampling.step_cache import SETTINGS, ends_and

if TYPE_CHECKING:
    from vorta_trt.model.timestep_path import Signal, TimestepPath


IDENTITY = (1.0, 0.0)  # the polynomial that gives the distance itself; thresholds are then about ten times smaller


def known_path(path: TimestepPath | None) -> TimestepPath:
    """Returns the path; for None raises a ValueError that says how to get one."""
    if path is None:
        raise ValueError(
            "TeaCache: the model's timestep embedder is not at hand, and it decides which steps are skipped; build the "
            "bundle again, which puts the embedder into it, or use the broadcast cache"
        )
    return path


@pydantic.dataclasses.dataclass(frozen=True, config=SETTINGS)
class TeaCache:
    """A `StepCache`.

    Args:
        threshold: Threshold of the accumulated change. 0 computes every step; None takes the published threshold.
        coefficients: Coefficients of the polynomial, highest power first. None takes the published coefficients of the
            model that is planned for, and raises `first` to the published number.
        signal: The embedding that is compared: "embedding" or "modulation".
        first: How many steps at the beginning are always computed.
        last: How many steps at the end are always computed.
        fitted_range: The smallest and the largest distance that the polynomial was fitted on, if known.
        model: Name of the published checkpoint that the model is, where the name of its folder does not say.
        method: Name of this kind of cache in JSON.
    """

    threshold: float | None = None
    coefficients: tuple[float, ...] | None = None
    signal: str = "embedding"
    first: int = 1
    last: int = 1
    fitted_range: tuple[float, float] | None = None
    model: str | None = None
    method: Literal["tea"] = "tea"

    def __post_init__(self) -> None:
        from vorta_trt.model.timestep_path import SIGNALS  # imports torch, so only here

        if self.threshold is None and self.coefficients is not None:
            raise ValueError(
                "threshold None: must be given with coefficients (--cache-threshold); try a plan with a dry run"
            )
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f"threshold {self.threshold}: must be 0, which skips nothing, or more; use e.g. 0.1")
        if self.coefficients is not None and not (self.coefficients and all(map(math.isfinite, self.coefficients))):
            raise ValueError(f"coefficients {self.coefficients}: must be finite numbers, highest power first")
        if self.signal not in SIGNALS:
            raise ValueError(f"signal {self.signal!r}: must be one of {', '.join(SIGNALS)}")
        if self.first < 1 or self.last < 1:
            raise ValueError(f"first {self.first}, last {self.last}: the first and last step are always computed")

    @classmethod
    def published(
        cls, path: TimestepPath, threshold: float | None = None, signal: Signal = "embedding", model: str | None = None
    ) -> TeaCache:
        """A cache with the settings that are published for the checkpoint.

        Args:
            path: Timestep path of the model.
            threshold: Threshold of the accumulated change; None takes the published one.
            signal: The embedding that is compared.
            model: Name of the published checkpoint that the model is; None goes by the name of the folder that the
                model came from.

        Raises:
            ValueError: Nothing is published for the checkpoint and signal, or the published checkpoint is not known.
        """
        family = get_family(path.family)
        names = family.tea_cache_models()
        if model is not None and model not in names:
            raise ValueError(f"TeaCache model {model!r}: must be one of {', '.join(names) or 'none'} for {family}")
        model = model or family.tea_cache_model(path.checkpoint, path.num_layers, path.num_heads)
        known = None if model is None else family.tea_cache(model, signal)
        if known is None:
            what = f"the checkpoint {path.checkpoint!r}" if path.checkpoint else "a model without a checkpoint's name"
            some = f"if it is {' or '.join(names)} under another name, say so (--cache-coefficients NAME); otherwise "
            raise ValueError(
                f"TeaCache coefficients for {what} of {path.num_layers} layers and {path.num_heads} heads, signal "
                f"{signal!r}: none are published under that name; {some if names else ''}fit them "
                f"(vorta_trt.runtime.sampling.tea_fit) and give the file, or take the distance as it is "
                f"(--cache-coefficients none)"
            )
        return cls(known.threshold if threshold is None else threshold, known.coefficients, signal, known.first)

    def for_model(self, path: TimestepPath | None) -> TeaCache:
        if self.coefficients is not None:
            return self
        known = self.published(known_path(path), self.threshold, cast("Signal", self.signal), self.model)
        return replace(known, first=max(self.first, known.first), last=self.last)

    def compute(
        self, timesteps: Sequence[float], path: TimestepPath | None, forced: Sequence[bool]
    ) -> tuple[bool, ...]:
        if self.threshold is None:
            return self.for_model(path).compute(timesteps, path, forced)
        if self.threshold == 0:
            return (True,) * len(forced)
        flags, accumulated = [], 0.0
        changes = self.changes(self.distances(timesteps, path))
        if 2 * sum(change < 0 for change in changes) > len(changes):
            raise ValueError(
                f"TeaCache coefficients: at most of the {len(changes)} steps they say that the output changes by less "
                f"than nothing, so they belong to another model or another schedule (the published ones to 50 steps); "
                f"fit them anew (vorta_trt.runtime.sampling.tea_fit), or take the distance as it is "
                f"(--cache-coefficients none)"
            )
        for change, force in zip((math.inf, *changes), ends_and(forced, self.first, self.last), strict=True):
            accumulated += change
            computed = force or not accumulated < self.threshold
            if computed:
                accumulated = 0.0
            flags.append(computed)
        return tuple(flags)

    def distances(self, timesteps: Sequence[float], path: TimestepPath | None) -> list[float]:
        """Relative L1 distance of each embedding to the previous one: P - 1 numbers."""
        embeddings = known_path(path).embedding(timesteps, cast("Signal", self.signal)).double()  # [P, E]
        before, after = embeddings[:-1], embeddings[1:]
        distances: list[float] = ((after - before).abs().mean(dim=1) / before.abs().mean(dim=1)).tolist()
        return distances

    def changes(self, distances: Sequence[float]) -> list[float]:
        """The polynomial's estimates for the distances. As in the original, some may be negative; see `notes`."""
        estimates = []
        for distance in distances:
            value = 0.0
            for coefficient in self.coefficients or IDENTITY:
                value = value * distance + coefficient
            estimates.append(value)
        return estimates

    def notes(self, timesteps: Sequence[float], path: TimestepPath | None) -> list[str]:
        distances = self.distances(timesteps, path)
        notes = []
        if self.fitted_range is not None:
            low, high = self.fitted_range
            outside = sum(not low <= distance <= high for distance in distances)
            if outside:
                notes.append(
                    f"{outside} of {len(distances)} distances lie outside {low:.3g} to {high:.3g}, on which the "
                    f"polynomial was fitted; fit it on this schedule"
                )
        negative = sum(change < 0 for change in self.changes(distances))
        if negative:
            notes.append(
                f"the polynomial says that the output changes by less than nothing at {negative} of {len(distances)} "
                f"steps: it was fitted on other distances, and steps may be skipped that should not be; use a schedule "
                f"like the one it was fitted on (50 steps), fit it anew, or use other coefficients"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": "tea",
            "threshold": self.threshold,
            "coefficients": None if self.coefficients is None else list(self.coefficients),
            "signal": self.signal,
            "first": self.first,
            "last": self.last,
        }
