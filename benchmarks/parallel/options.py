# SPDX-License-Identifier: Apache-2.0
"""What a run of `vorta-trt bench parallel` measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import get_args

from vorta_trt.benchmarks.parallel.report import ONE_GPU
from vorta_trt.benchmarks.step.cases import StepCase
from vorta_trt.benchmarks.step.model_options import VARIANT_CHOICES, ModelOptions
from vorta_trt.benchmarks.step.models import Variant
from vorta_trt.model.parallel.exchange_choice import AUTO, ExchangeOption
from vorta_trt.model.parallel.placement import Placement, check_ranks

PLACEMENTS: tuple[str, ...] = get_args(Placement)
GPUS = (1, 2, 4)
OVERLAP = "+overlap"
EXCHANGES = tuple(name + suffix for suffix in ("", OVERLAP) for name in get_args(ExchangeOption))
MIXES = ("50/50", "10/45/45")


@dataclass(frozen=True)
class Layout:
    """How a step is spread over GPUs.

    Attributes:
        gpus: Number of GPUs.
        passes: Number of passes that run at once, each on its share of the GPUs.
        placement: How heads are placed on GPUs, one of PLACEMENTS; ONE_GPU where a pass has one GPU.
        exchange: One of EXCHANGES; "" where a pass has one GPU.
    """

    gpus: int
    passes: int
    placement: str
    exchange: str = ""

    @property
    def ulysses(self) -> int:
        """Number of GPUs of a pass."""
        return self.gpus // self.passes

    def __str__(self) -> str:
        each = ", ".join(part for part in (self.placement, self.exchange) if part)
        if self.passes > 1:
            each = f"{self.passes} passes at once, {each}"
        return f"{self.gpus} GPU{'s' * (self.gpus > 1)}, {each}"


@dataclass(frozen=True)
class ParallelOptions(ModelOptions):
    """What a run measures.

    Attributes:
        gpus: Numbers of GPUs; 1, which the others are compared with, is always measured.
        placements: The placements that are measured, from PLACEMENTS.
        exchanges: The exchanges that are measured, from EXCHANGES: what exchanges, see `RoutedTransformer.parallelize`,
            and whether it overlaps with attention.
        guidance: Whether the two passes of guidance are measured on two halves of the GPUs, too.
        variant: How the blocks are computed.
        kind: "cuda", or "cpu" for tests.
    """

    mixes: tuple[str, ...] = MIXES
    steps: int = 3
    gpus: tuple[int, ...] = GPUS
    placements: tuple[str, ...] = PLACEMENTS
    exchanges: tuple[str, ...] = (AUTO,)
    guidance: bool = False
    variant: Variant = Variant(block_ops="plugin")
    kind: str = "cuda"

    def __post_init__(self) -> None:
        """Raises ValueError for what is not known, and numbers of GPUs that cannot share the model's heads."""
        parts = zip(self.variant._asdict().items(), VARIANT_CHOICES, strict=True)
        known: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
            name: ((value,), allowed) for (name, value), allowed in parts
        }
        known |= {"placements": (self.placements, PLACEMENTS), "exchanges": (self.exchanges, EXCHANGES)}
        self.check(known, {"placements": self.placements, "exchanges": self.exchanges, "gpus": self.gpus})
        if min(self.gpus) < 1:
            raise ValueError(f"gpus {min(self.gpus)}: must be at least 1; leave it out")
        list(self.layouts(self.case, self.case.heads))

    def layouts(self, case: StepCase, heads: int) -> Iterator[Layout]:
        """The layouts to measure, that of one GPU first.

        Raises:
            ValueError: A number of GPUs does not divide the heads, or two passes are asked for where a step has one.
        """
        yield Layout(1, 1, ONE_GPU)
        if self.guidance and case.passes == 1:
            raise ValueError(f"guidance: a step of {case.name} has one pass; leave it out, or take another model")
        for gpus in sorted(set(self.gpus) - {1}):
            for passes in (1, 2) if self.guidance and gpus % 2 == 0 else (1,):
                check_ranks(heads, gpus // passes)
                if gpus == passes:
                    yield Layout(gpus, passes, ONE_GPU)
                    continue
                for placement, exchange in product(self.placements, self.exchanges):
                    yield Layout(gpus, passes, placement, exchange)
