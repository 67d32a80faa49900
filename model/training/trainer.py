# SPDX-License-Identifier: Apache-2.0
"""The training loop: one optimiser step after another, on one device or on many.

With several processes each takes its own samples and noise from the same step's interval of timesteps; gradients and
metrics are their mean.

Letters: B batch, L layers, N heads.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.geometry import Branch
from vorta_trt.model.router import hard_routes
from vorta_trt.model.training.dataset import LatentDataset
from vorta_trt.model.training.devices import accumulating, place, spread_like, whole
from vorta_trt.model.training.objective import RouterObjective
from vorta_trt.model.training.routers import router_parameters, router_state
from vorta_trt.model.training.run_folder import TrainingState
from vorta_trt.model.training.settings import TrainingSettings
from vorta_trt.model.training.timesteps import draw_noise, draw_timesteps, interval_of, sample_indices
from vorta_trt.plugins.errors import VortaError

_TERMS = ("total", "diffusion", "distillation", "regularisation")


class TrainingError(VortaError):
    """Training cannot go on; the message says at which step, and what to do."""


class RouterTrainer:
    """Routers, their optimiser, and the data.

    Args:
        accelerator: of accelerate. objective: model and loss, not placed on the devices yet. dataset: checked. fsdp:
            shard the model over the processes.
    """

    def __init__(
        self,
        accelerator: Any,
        objective: RouterObjective,
        dataset: LatentDataset,
        settings: TrainingSettings,
        fsdp: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.dataset = dataset
        self.settings = settings
        self.model = objective.model
        self.model.gradient_checkpointing = settings.gradient_checkpointing
        self.objective = place(accelerator, objective, objective.family.facts.block_classes, fsdp)
        self.routers = list(router_parameters(self.model).values())  # now: sharding puts others in their place
        self.optimizer = torch.optim.AdamW(self.routers, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def step(self, number: int) -> dict[str, Any]:
        """Does the step `number` (from 1 on) and returns its line of the log.

        Raises TrainingError, before anything is changed, if the loss or its gradient is not finite.
        """
        began = time.perf_counter()
        settings = self.settings
        self.optimizer.zero_grad()
        terms, routes, timesteps = [], [], []
        for part in range(settings.accumulation):
            losses, drawn = self._backward(number, part)
            terms.append(torch.stack([losses[name].detach().float() for name in _TERMS]))  # [terms]
            routes.append(_branch_shares(losses["scores"], self.model.tau))  # [2, 3]
            timesteps.append(drawn)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.routers, settings.max_grad_norm))  # []
        values = self._mean(torch.stack(terms).mean(dim=0))  # [terms]
        if not math.isfinite(float(norm)) or not bool(values.isfinite().all()):
            found = ", ".join(f"{name} {value:g}" for name, value in zip(_TERMS, values.tolist(), strict=True))
            raise TrainingError(
                f"step {number}: the loss or its gradient is not finite ({found}, gradient norm {float(norm):g}); the "
                f"last checkpoint is intact: start another run from it with --router and a lower --learning-rate, or "
                f"try --precision fp32"
            )
        self.optimizer.step()
        scores, shares = self._mean(torch.stack(routes).mean(dim=0)).tolist()  # [3] each
        metrics: dict[str, Any] = {
            "step": number,
            **dict(zip(("loss", *_TERMS[1:]), values.tolist(), strict=True)),
            "grad_norm": float(norm),
            "learning_rate": settings.learning_rate,
            "interval": interval_of(settings.seed, number, settings.intervals),
            "timesteps": torch.cat(timesteps).tolist(),
            **{f"score_{branch.name.lower()}": scores[branch] for branch in Branch},
            **{f"share_{branch.name.lower()}": shares[branch] for branch in Branch},
            "seconds": time.perf_counter() - began,
        }
        if self.accelerator.device.type == "cuda":
            metrics["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return metrics

    def state(self, step: int, decisive: dict[str, Any]) -> tuple[dict[str, Tensor], TrainingState]:
        """What a checkpoint holds. Every process must call it."""
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            index: {name: whole(value) for name, value in state.items()} for index, state in optimizer["state"].items()
        }
        return router_state(self.model), TrainingState(step, decisive, optimizer)

    def restore(self, state: TrainingState) -> None:
        """The optimiser of a checkpoint; the routers' parameters are the model's own when it is made."""
        optimizer = {**state.optimizer}
        optimizer["state"] = {
            index: {
                name: value if name == "step" else spread_like(value, self.routers[index])
                for name, value in held.items()
            }
            for index, held in optimizer["state"].items()
        }
        self.optimizer.load_state_dict(optimizer)

    def _backward(self, number: int, part: int) -> tuple[dict[str, Tensor], Tensor]:
        """One micro-batch: adds to the gradients, returns the losses and the timesteps [B]."""
        settings, accelerator = self.settings, self.accelerator
        processes, device = accelerator.num_processes, accelerator.device
        part_of_all = part * processes + accelerator.process_index
        position = ((number - 1) * settings.accumulation * processes + part_of_all) * settings.batch
        indices = sample_indices(settings.seed, position, settings.batch, len(self.dataset))
        latents, conditions = self.dataset.batch(indices)  # [B, C, F, H, W]
        timesteps = draw_timesteps(settings.seed, number, part_of_all, settings.batch, settings.intervals)  # [B]
        noise = draw_noise(settings.seed, number, part_of_all, tuple(latents.shape))  # [B, C, F, H, W]
        with accumulating(accelerator, self.objective, part == settings.accumulation - 1):
            losses: dict[str, Tensor] = self.objective(
                latents.to(device),
                noise.to(device),
                timesteps.to(device),
                {name: tensor.to(device) for name, tensor in conditions.items()},
            )
            accelerator.backward(losses["total"] / settings.accumulation)
        return losses, timesteps

    def _mean(self, values: Tensor) -> Tensor:
        """Over the processes, on the CPU."""
        reduced: Tensor = self.accelerator.reduce(values, "mean")
        return reduced.cpu()


def _branch_shares(scores: Tensor, tau: float) -> Tensor:
    """Mean scores, and shares of the hard routes: scores [L, B, N, 3] -> float32 [2, 3]."""
    routes = hard_routes(scores, tau)  # [L, B, N]
    shares = torch.stack([(routes == int(branch)).float().mean() for branch in Branch])  # [3]
    return torch.stack([scores.float().mean(dim=(0, 1, 2)), shares])
