# SPDX-License-Identifier: Apache-2.0
"""The numbers of a training run; the defaults are those that the published routers were trained with."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.training.objective import LossWeights

PRECISIONS = ("bf16", "fp32")  # gradients underflow in fp16
# Of a run that is resumed; everything else decides what the numbers are.
_MAY_CHANGE = ("steps", "checkpoint_every", "gradient_checkpointing")


@dataclass(frozen=True)
class TrainingSettings:
    """Numbers of a run; ValueError names the one that breaks a rule.

    Attributes:
        steps: optimiser steps. accumulation: micro-batches per step and process. batch: samples per micro-batch.
        learning_rate, weight_decay: of AdamW, whose other numbers are torch's defaults. max_grad_norm: gradients are
            scaled down to it.
        weights: of the loss terms. intervals: of the timesteps, see `timesteps.py`. seed: of everything random.
        precision: "bf16" or "fp32", of the frozen weights and the activations; routers, losses and optimiser are
            float32.
        gradient_checkpointing: blocks are computed again in the backward pass; slower, and far less memory.
        checkpoint_every: steps between checkpoints.
    """

    steps: int = 100
    accumulation: int = 4
    batch: int = 1
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    weights: LossWeights = field(default_factory=LossWeights)
    intervals: int = 5
    seed: int = 0
    precision: str = "bf16"
    gradient_checkpointing: bool = True
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "batch", "intervals", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)}: must be positive and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay {self.weight_decay}: must be 0 or more, and finite")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed}: must be 0 or more")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision {self.precision!r}: must be {' or '.join(PRECISIONS)}; gradients underflow in fp16"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights and the activations."""
        return torch_dtype(self.precision)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def decisive(self) -> dict[str, Any]:
        """The settings without which a resumed run would not continue the interrupted one."""
        return {name: value for name, value in self.to_dict().items() if name not in _MAY_CHANGE}
