# SPDX-License-Identifier: Apache-2.0
"""`ModelOptions`: the options that benchmarks of whole transformers share: the model, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from vorta_trt.benchmarks.names import DEFAULT_MODEL
from vorta_trt.benchmarks.step.cases import StepCase, mixed_routes, select_case
from vorta_trt.model.precision import PRECISIONS
from vorta_trt.plugins.operator_schema import BlockOps, LinearPrecision, choices

VARIANT_CHOICES: tuple[tuple[str, ...], ...] = (
    choices("attention_precision"),
    get_args(BlockOps),
    get_args(LinearPrecision),
)
"""What each part of a `step.models.Variant` may be, in its order."""
Known = Mapping[str, tuple[Sequence[str], Sequence[str]]]
"""The given and the allowed values of each option, by its name."""


@dataclass(frozen=True)
class ModelOptions:
    """A model of `cases.CASES`, and how it is run.

    Attributes:
        model: Name of one of the cases.
        layers: Fewer layers than the model has; None for all.
        mixes: Shares of the branches, see `mixed_routes`.
        steps: Timed passes of each row.
        dtype: Precision of the weights.
        seed: Seed of weights, inputs and routes.
    """

    model: str = DEFAULT_MODEL
    layers: int | None = None
    mixes: tuple[str, ...] = ()
    steps: int = 5
    dtype: str = "bf16"
    seed: int = 0

    @property
    def case(self) -> StepCase:
        """The model at its size."""
        return select_case(self.model, self.layers)

    def check(self, known: Known, needed: Mapping[str, Sequence[object]]) -> None:
        """Refuses unknown values, and options that lack an entry.

        Args:
            known: Values to check, besides those of this class.
            needed: Options that must have an entry, besides the mixes.

        Raises:
            ValueError: A value is not known, or an option lacks an entry.
        """
        select_case(self.model, self.layers)
        for mix in self.mixes:
            mixed_routes(mix, 1, 1)
        for name, (given, allowed) in {**known, "dtype": ((self.dtype,), tuple(PRECISIONS))}.items():
            for value in given:
                if value not in allowed:
                    raise ValueError(f"{name} {value!r}: must be one of {', '.join(allowed)}")
        needed = {"mixes": self.mixes, **needed}
        if not all(needed.values()):
            *names, last = needed
            raise ValueError(
                f"{', '.join(names)} and {last}: must each have at least one entry; leave them out for all"
            )
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: must be at least 1; leave it out")
