# SPDX-License-Identifier: Apache-2.0
"""What a router is trained to minimise (VORTA, arXiv 2505.18809).

Of one noisy latent, the model with mixed branches gives a prediction p, and the same model with full attention gives q:

    diffusion        mean squared error of p and noise - latents, the target of flow matching
    distillation     mean squared error of p and q, the output of the last layer
    regularisation   sum over the layers of the mean over samples and heads of (score of the full branch)^2

Where there is the least noise (timesteps below 200) the diffusion term is left out and the distillation weighs twice:
there a prediction is nearly noise itself, whose error says little about the branches.

Letters: B batch, C latent channels, N heads, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vorta_trt.model.families.training import TrainingFamily
from vorta_trt.model.geometry import Branch
from vorta_trt.model.training.timesteps import add_noise, least_noise
from vorta_trt.model.transformer import AttentionMode, RoutedTransformer


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; the defaults are the published ones."""

    diffusion: float = 1.0
    distillation: float = 20.0
    regularisation: float = 0.02

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} weight {value}: must be a finite number, 0 or more; use 0 to leave it out")
        if self.diffusion == self.distillation == 0:
            raise ValueError("diffusion and distillation weight 0: nothing to learn from; use 1 and 20")


class RouterObjective(nn.Module):
    """A routed transformer with its loss as one module: what is wrapped for several devices.

    Args:
        model: frozen but for its routers. family: its inputs. weights: of the terms. intervals: of the timesteps; the
            one with the least noise has no diffusion term.
    """

    def __init__(
        self, model: RoutedTransformer, family: TrainingFamily, weights: LossWeights, intervals: int = 5
    ) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.weights = weights
        self.intervals = intervals

    def forward(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The losses of a micro-batch.

        Args:
            latents, noise: float32 [B, C, F, H, W]. timesteps: float32 [B]. conditions: the family's, [B, ...] each.

        Returns:
            total: the weighted sum, to be minimised. diffusion, distillation, regularisation: the terms before
            weighting. scores: the routers', [L, B, N, 3]. All but `total` are detached.
        """
        noisy = add_noise(latents, noise, timesteps).to(self.model.dtype)  # [B, C, F, H, W]
        inputs = self.family.model_inputs(noisy, timesteps, conditions, self.model.dtype)
        with torch.no_grad(), _attending(self.model, AttentionMode.FULL):
            full, _ = self.model(**inputs)  # [B, C, F, H, W]
        with _attending(self.model, AttentionMode.MIXED):
            mixed, scores = self.model(**inputs)  # [B, C, F, H, W], [L, B, N, 3]

        diffusion = _squared_error(mixed, noise - latents)  # [B]
        distillation = _squared_error(mixed, full)  # [B]
        regularisation = scores[..., int(Branch.FULL)].square().mean(dim=(1, 2)).sum()  # []
        weights = self.weights
        low = least_noise(timesteps, self.intervals) & (weights.diffusion > 0)  # [B]
        total = (
            (diffusion * weights.diffusion).masked_fill(low, 0.0).mean()
            + (distillation * weights.distillation * (1 + low.float())).mean()
            + regularisation * weights.regularisation
        )
        return {
            "total": total,
            "diffusion": diffusion.mean().detach(),
            "distillation": distillation.mean().detach(),
            "regularisation": regularisation.detach(),
            "scores": scores.detach(),
        }


def _squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over everything but the batch: [B, ...] twice -> float32 [B]."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


@contextmanager
def _attending(model: RoutedTransformer, mode: AttentionMode) -> Iterator[None]:
    before = model.attention_mode
    model.attention_mode = mode
    try:
        yield
    finally:
        model.attention_mode = before
