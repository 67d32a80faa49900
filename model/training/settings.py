# SPDX-License-Identifier: Apache-2.0
"""The numbers of a training run; the defaults are those that the published routers were trained with."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from vorta_trt.model.precision import TrainingPrecision
from vorta_trt.model.records import Settings

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
_ENDLESS = ("constant", "constant_with_warmup")  # schedules that need not know how many steps there are
# Numbers that may differ in a run that is resumed; the others decide what it computes.
_MAY_CHANGE = ("steps", "checkpoint_every", "gradient_checkpointing", "micro_batch_size")


class LossWeights(Settings):
    """Weights of the loss terms, see `objective.py`.

    Raises:
        ValueError: A weight is negative or not finite, or there is nothing to learn from.
    """

    diffusion: float = Field(default=1.0, ge=0, description="Weight of the error against flow matching's target.")
    distillation: float = Field(default=20.0, ge=0, description="Weight of the error against full attention.")
    regularisation: float = Field(default=0.02, ge=0, description="Weight of the squared scores of the full branch.")

    @model_validator(mode="after")
    def _check_target(self) -> LossWeights:
        if self.diffusion == self.distillation == 0:
            raise ValueError("weights of diffusion and distillation 0: there is nothing to learn from; use 1 and 20")
        return self


class TrainingSettings(Settings):
    """Numbers of a run. AdamW's other numbers are torch's defaults; routers, losses and optimiser are float32.

    Raises:
        ValueError: A number breaks a rule; the message names it.
    """

    steps: int = Field(default=100, ge=1, description="How many optimiser steps to do.")
    batch_size: int = Field(default=4, ge=1, description="Samples of a step, shared out over all processes.")
    micro_batch_size: int = Field(
        default=1, ge=1, description="Samples that a process computes at once; decides speed and memory alone."
    )
    learning_rate: float = Field(default=1e-2, gt=0, description="AdamW's learning rate, at its highest.")
    schedule: Schedule = Field(default="constant", description="How the learning rate changes, by diffusers' names.")
    warmup_steps: int = Field(default=0, ge=0, description="First steps, over which the learning rate rises from 0.")
    schedule_cycles: int = Field(default=1, ge=1, description="Restarts of schedule cosine_with_restarts.")
    schedule_power: float = Field(default=1.0, gt=0, description="Exponent of schedule polynomial.")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Norm that longer gradients are scaled down to.")
    weights: LossWeights = LossWeights()
    intervals: int = Field(default=5, ge=1, description="Intervals of the timesteps; a step draws from one of them.")
    seed: int = Field(default=0, ge=0, lt=2**64, description="Seed of everything random.")
    precision: TrainingPrecision = Field(default="bf16", description="Type of frozen weights and activations.")
    gradient_checkpointing: bool = Field(
        default=True,
        description="Compute blocks again in the backward pass: slower, but with far less memory.",
    )
    checkpoint_every: int = Field(default=10, ge=1, description="Steps between checkpoints.")

    @model_validator(mode="after")
    def _check_warmup(self) -> TrainingSettings:
        if self.schedule == "constant" and self.warmup_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps}: schedule 'constant' has no warm-up; use 'constant_with_warmup'"
            )
        if self.schedule not in _ENDLESS and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps}: must be fewer than the {self.steps} steps")
        return self

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
        """Returns the settings that must be the same for a resumed run to continue the interrupted one."""
        left_out = {*_MAY_CHANGE} if self.schedule in _ENDLESS else {*_MAY_CHANGE} - {"steps"}
        return self.model_dump(mode="json", exclude=left_out)
