# SPDX-License-Identifier: Apache-2.0
"""The routers that are trained, one per block of a frozen model, and their loss (VORTA, arXiv 2505.18809).

For one noisy latent, the model with mixed branches predicts p, and the same model with full attention predicts q:

    diffusion        mean squared error of p and noise - latents, the target of flow matching
    distillation     mean squared error of p and q, the output of the last layer
    regularisation   sum over the layers of the mean over samples and heads of (score of the full branch)^2

Where there is the least noise (timesteps below 200) the diffusion term is left out and the distillation weighs twice:
there a prediction is nearly noise itself, whose error says little about the branches.

Letters: B batch, C latent channels, N heads, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vorta_trt.model.families.training import TrainingFamily
from vorta_trt.model.geometry import Branch
from vorta_trt.model.router import Router
from vorta_trt.model.training.settings import LossWeights
from vorta_trt.model.training.timesteps import add_noise, least_noise
from vorta_trt.model.transformer import AttentionMode, RoutedTransformer


def attach_routers(model: RoutedTransformer, seed: int) -> None:
    """Gives every block that has no router one with random weights, as torch starts linear layers, from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    dim = model.num_heads * model.head_dim
    for block in list(model.modules()):
        if getattr(block, "router", model) is None:  # a routed block without a router
            router = Router(dim, model.num_heads)
            for parameter in router.parameters():
                nn.init.uniform_(parameter, -1 / math.sqrt(dim), 1 / math.sqrt(dim), generator=generator)
            block.router = router
    model.has_router = True


def freeze_all_but_routers(model: RoutedTransformer) -> None:
    """Lets gradients reach the routers alone."""
    model.requires_grad_(False).eval()
    for parameter in router_parameters(model).values():
        parameter.requires_grad_(True)


def router_parameters(model: RoutedTransformer) -> dict[str, nn.Parameter]:
    """Returns `<stack>.{i}.router.linear.{weight,bias}` -> parameter, the names of the published checkpoints."""
    return {name: parameter for name, parameter in model.named_parameters() if ".router." in name}


class RouterObjective(nn.Module):
    """A routed transformer with its loss as one module: what is wrapped for several devices.

    Args:
        model: The transformer, frozen but for its routers.
        family: Family of the model, which makes its inputs.
        weights: Weights of the terms.
        intervals: Intervals of the timesteps; the one with the least noise has no diffusion term.
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
        """Computes the losses of a micro-batch.

        Args:
            latents: float32 [B, C, F, H, W].
            noise: Noise, float32 [B, C, F, H, W].
            timesteps: float32 [B].
            conditions: Conditions of the family, [B, ...] each.

        Returns:
            total, the weighted sum, to be minimised; diffusion, distillation, regularisation, the terms before
            weighting; scores, the routers', [L, B, N, 3]. All but `total` are detached.
        """
        noisy = add_noise(latents, noise, timesteps).to(self.model.dtype)  # [B, C, F, H, W]
        inputs = self.family.model_inputs(noisy, timesteps, conditions, self.model.dtype)
        with torch.no_grad(), _attending(self.model, AttentionMode.FULL):
            full, _ = self.model(**inputs)  # [B, C, F, H, W]
        with _attending(self.model, AttentionMode.MIXED):
            mixed, scores = self.model(**inputs)  # [B, C, F, H, W], [L, B, N, 3]

        full, mixed, target = map(self.family.stepped, (full, mixed, noise - latents))
        diffusion = _squared_error(mixed, target)  # [B]
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
