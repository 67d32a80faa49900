# SPDX-License-Identifier: Apache-2.0
"""The numbers of a training run; the defaults are those that the published routers were trained with."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.records import Settings

TrainingPrecision = Literal["bf16", "fp32"]  # gradients underflow in fp16
# Schedules that need not know how many steps there are.
_ENDLESS = ("constant", "constant_with_warmup")
# Numbers that may differ in a run that is resumed; the others decide what it computes.
_MAY_CHANGE = ("steps", "checkpoint_every", "gradient_checkpointing", "micro_batch_size")


class LossWeights(Settings):
    """Weights of the loss terms, see `objective.py`.

    Attributes:
        diffusion: Weight of the error against the target of flow matching.
        distillation: Weight of the error against full attention.
        regularisation: Weight of the squared scores of the full branch.

    Raises:
        ValueError: A weight is negative or not finite, or there is nothing to learn from.
    """

    diffusion: float = Field(default=1.0, ge=0)
    distillation: float = Field(default=20.0, ge=0)
    regularisation: float = Field(default=0.02, ge=0)

    @model_validator(mode="after")
    def _check_target(self) -> LossWeights:
        if self.diffusion == self.distillation == 0:
            raise ValueError("weights of diffusion and distillation 0: there is nothing to learn from; use 1 and 20")
        return self


class TrainingSettings(Settings):
    """Numbers of a run.

    Attributes:
        steps: Optimiser steps.
        batch_size: Samples of a step, over all processes and micro-batches.
        micro_batch_size: Samples that one process computes at once; how many it has of a step, it does one after the
            other. It decides speed and memory, and nothing else.
        learning_rate: Of AdamW, at its highest.
        schedule: How the learning rate changes from step to step, by diffusers' names.
        warmup_steps: First steps, over which the learning rate rises from 0; "constant" has none.
        schedule_cycles: Restarts of "cosine_with_restarts".
        schedule_power: Exponent of "polynomial".
        weight_decay: Of AdamW, whose other numbers are torch's defaults.
        max_grad_norm: Norm that gradients are scaled down to.
        weights: Weights of the loss terms.
        intervals: Number of intervals of the timesteps, see `timesteps.py`.
        seed: Of everything random.
        precision: Type of the frozen weights and the activations; routers, losses and optimiser are float32.
        gradient_checkpointing: Computes blocks again in the backward pass; slower, and far less memory.
        checkpoint_every: Steps between checkpoints.

    Raises:
        ValueError: A number breaks a rule; the message names it.
    """

    steps: int = Field(default=100, ge=1)
    batch_size: int = Field(default=4, ge=1)
    micro_batch_size: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-2, gt=0)
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"] = (
        "constant"
    )
    warmup_steps: int = Field(default=0, ge=0)
    schedule_cycles: int = Field(default=1, ge=1)
    schedule_power: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    weights: LossWeights = LossWeights()
    intervals: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)
    precision: TrainingPrecision = "bf16"
    gradient_checkpointing: bool = True
    checkpoint_every: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _check_warmup(self) -> TrainingSettings:
        if self.schedule == "constant" and self.warmup_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps}: schedule 'constant' has no warm-up; use 'constant_with_warmup'"
            )
        if self.schedule not in _ENDLESS and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps}: must be fewer than the {self.steps} steps")
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen weights and the activations."""
        return torch_dtype(self.precision)

    def micro_batches(self, processes: int) -> int:
        """Returns how many micro-batches a process does in a step.

        Raises:
            ValueError: The samples of a step cannot be shared out evenly.
        """
        at_once = self.micro_batch_size * processes
        if self.batch_size % at_once:
            nearest = max(1, round(self.batch_size / at_once)) * at_once
            raise ValueError(
                f"batch_size {self.batch_size}: must be a multiple of the {at_once} samples that {processes} processes "
                f"with micro_batch_size {self.micro_batch_size} compute at once; use {nearest}, or other processes"
            )
        return self.batch_size // at_once

    def decisive(self) -> dict[str, Any]:
        """Returns the settings without which a resumed run would not continue the interrupted one."""
        left_out = {*_MAY_CHANGE} if self.schedule in _ENDLESS else {*_MAY_CHANGE} - {"steps"}
        return self.model_dump(mode="json", exclude=left_out)
