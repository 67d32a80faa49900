# SPDX-License-Identifier: Apache-2.0
"""The training loop: one optimiser step after another, on one device or on many.

A step has `batch_size` samples, shared out over processes and micro-batches; gradients and metrics are the mean over
them, so neither the number of processes nor the size of a micro-batch changes what a run computes, but for rounding.

Letters: B batch, L layers, N heads.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from vorta_trt.model.geometry import Branch
from vorta_trt.model.router import hard_routes
from vorta_trt.model.training.data import LatentDataset
from vorta_trt.model.training.devices import accumulating, place
from vorta_trt.model.training.objective import RouterObjective, router_parameters
from vorta_trt.model.training.run_folder import TrainingState
from vorta_trt.model.training.settings import TrainingSettings
from vorta_trt.model.training.timesteps import ALL_TIMESTEPS, draw_noise, draw_timesteps, interval_of, sample_indices
from vorta_trt.plugins.errors import VortaError

_TERMS = ("total", "diffusion", "distillation", "regularisation")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


class TrainingError(VortaError):
    """Training cannot go on; the message says at which step, and what to do."""


class RouterTrainer:
    """Routers, their optimiser, and the data.

    Args:
        accelerator: Accelerator of the library accelerate.
        objective: Model and loss, not placed on the devices yet.
        dataset: The data, checked.
        settings: Numbers of the run.
        fsdp: Whether to shard the model over the processes.
        timesteps: Timesteps to draw from, from the highest down.

    Raises:
        ValueError: The samples of a step cannot be shared out evenly over the processes.
    """

    def __init__(
        self,
        accelerator: Any,
        objective: RouterObjective,
        dataset: LatentDataset,
        settings: TrainingSettings,
        fsdp: bool = False,
        timesteps: range = ALL_TIMESTEPS,
    ) -> None:
        from diffusers.optimization import get_scheduler

        self.accelerator, self.dataset, self.settings = accelerator, dataset, settings
        self.timesteps = timesteps
        self.micro_batches = settings.micro_batches(accelerator.num_processes)
        self.model = objective.model
        self.model.gradient_checkpointing = settings.gradient_checkpointing
        self.objective = place(accelerator, objective, objective.family.facts.block_classes, fsdp)
        self.routers = list(router_parameters(self.model).values())  # after `place`: sharding replaces parameters
        self.optimizer = torch.optim.AdamW(self.routers, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = get_scheduler(
            settings.schedule,
            self.optimizer,
            num_warmup_steps=settings.warmup_steps,
            num_training_steps=settings.steps,
            num_cycles=settings.schedule_cycles,
            power=settings.schedule_power,
        )
        self._factor = schedule.lr_lambdas[0]  # factor of the learning rate, by the steps done

    def step(self, number: int) -> dict[str, Any]:
        """Does the step `number` (from 1 on) and returns its line of the log.

        Raises:
            TrainingError: The loss or its gradient is not finite; nothing was changed.
        """
        began = time.perf_counter()
        settings = self.settings
        rate = settings.learning_rate * self._factor(number - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        terms, routes = [], []
        for part in range(self.micro_batches):
            losses = self._backward(number, part)
            terms.append(torch.stack([losses[name].detach().float() for name in _TERMS]))  # [terms]
            routes.append(_branch_shares(losses["scores"], self.model.tau))  # [2, 3]
        norm: Any = torch.nn.utils.clip_grad_norm_(self.routers, settings.max_grad_norm)  # []
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        values = self._mean(torch.stack(terms).mean(dim=0))  # [terms]
        if not math.isfinite(norm) or not bool(values.isfinite().all()):
            found = ", ".join(f"{name} {value:g}" for name, value in zip(_TERMS, values.tolist(), strict=True))
            raise TrainingError(
                f"step {number}: the loss or its gradient is not finite ({found}, gradient norm {norm:g}); the "
                f"last checkpoint is intact: start another run from it with --router and a lower --learning-rate, or "
                f"try --precision fp32"
            )
        self.optimizer.step()
        scores, shares = self._mean(torch.stack(routes).mean(dim=0)).tolist()  # [3] each
        metrics: dict[str, Any] = {
            "step": number,
            **dict(zip(("loss", *_TERMS[1:]), values.tolist(), strict=True)),
            "grad_norm": norm,
            "learning_rate": rate,
            "interval": interval_of(settings.seed, number, settings.intervals),
            "timesteps": self._timesteps(number, range(settings.batch_size)).tolist(),
            **{f"score_{branch.name.lower()}": scores[branch] for branch in Branch},
            **{f"share_{branch.name.lower()}": shares[branch] for branch in Branch},
            "seconds": time.perf_counter() - began,
        }
        if self.accelerator.device.type == "cuda":
            metrics["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return metrics

    def state(self, step: int, decisive: dict[str, Any]) -> tuple[dict[str, Tensor], TrainingState]:
        """Returns what a checkpoint holds, in the main process. Every process must call it."""
        model = get_model_state_dict(self.objective, options=_WHOLE)
        router: dict[str, Any] = {
            name.removeprefix("model."): tensor for name, tensor in model.items() if ".router." in name
        }
        optimizer = get_optimizer_state_dict(self.objective, self.optimizer, options=_WHOLE)
        return router, TrainingState(step=step, decisive=decisive, optimizer=optimizer)

    def restore(self, state: TrainingState) -> None:
        """Restores a checkpoint's optimiser; the model got the checkpoint's routers when it was made."""
        set_optimizer_state_dict(self.objective, self.optimizer, state.optimizer, options=_WHOLE)

    def _backward(self, number: int, part: int) -> dict[str, Tensor]:
        """Adds one micro-batch of this process to the gradients; returns its losses."""
        settings, accelerator = self.settings, self.accelerator
        device, size = accelerator.device, settings.micro_batch_size
        first = (part * accelerator.num_processes + accelerator.process_index) * size
        inside = range(first, first + size)  # of the step's samples
        indices = sample_indices(settings.seed, (number - 1) * settings.batch_size + first, size, len(self.dataset))
        latents, conditions = self.dataset.batch(indices)  # [B, C, F, H, W]
        noise = torch.stack([draw_noise(settings.seed, number, at, tuple(latents.shape[1:])) for at in inside])
        with accumulating(accelerator, self.objective, part == self.micro_batches - 1):
            losses: dict[str, Tensor] = self.objective(
                latents.to(device),
                noise.to(device),
                self._timesteps(number, inside).to(device),
                {name: tensor.to(device) for name, tensor in conditions.items()},
            )
            accelerator.backward(losses["total"] / self.micro_batches)
        return losses

    def _timesteps(self, number: int, samples: range) -> Tensor:
        """The timesteps of samples of a step: float32 [B]."""
        seed, intervals = self.settings.seed, self.settings.intervals
        return torch.cat([draw_timesteps(seed, number, at, 1, intervals, self.timesteps) for at in samples])

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, on the CPU."""
        reduced: Tensor = self.accelerator.reduce(values, "mean")
        return reduced.cpu()


def _branch_shares(scores: Tensor, tau: float) -> Tensor:
    """Mean scores, and shares of the hard routes: scores [L, B, N, 3] -> float32 [2, 3]."""
    routes = hard_routes(scores, tau)  # [L, B, N]
    shares = torch.stack([(routes == int(branch)).float().mean() for branch in Branch])  # [3]
    return torch.stack([scores.float().mean(dim=(0, 1, 2)), shares])
