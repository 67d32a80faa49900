# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a transformer, without a model: it is fast, and records its calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vorta_trt.runtime.pipelines.denoiser import Denoiser
from vorta_trt.runtime.pipelines.transformer import VortaTransformer

SHAPE = (4, 2, 4, 4)  # C, F, H, W
LAYERS, HEADS, TEXT = 2, 3, 5


class RecordingDenoiser(Denoiser):
    """A Wan whose sample is a function of latents, timestep and prompt, row by row.

    Attributes:
        launches: Batch size of every launch.
        overrides: Route override of every launch.
        taus: Tau of every launch.
        routes: Routes that it reports, int32 [L, N].
    """

    family, text_tokens = "wan", TEXT
    config: Mapping[str, Any] = {"in_channels": SHAPE[0], "patch_size": [1, 2, 2], "text_dim": 3, "image_dim": None}
    latent_shape = SHAPE
    heads = (LAYERS, HEADS)
    dtype, device, on_cpu = torch.float32, torch.device("cpu"), True

    def __init__(self) -> None:
        self.launches: list[int] = []
        self.overrides: list[Tensor | None] = []
        self.taus: list[float | None] = []
        self.routes = torch.zeros(LAYERS, HEADS, dtype=torch.int32)

    def run(
        self, inputs: Mapping[str, Tensor], tau: float | None, route_override: Tensor | None, step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        latents, timestep, text = inputs.values()
        self.launches.append(len(latents))
        self.overrides.append(route_override)
        self.taus.append(tau)
        scale = timestep + text.mean(dim=(1, 2))  # [B]
        return latents * scale[:, None, None, None, None], self.routes[:, None].expand(-1, len(latents), -1)

    def timestep_path(self) -> None:
        return None

    def locate(self, inputs: Mapping[str, Any]) -> str:
        return f"looked at {', '.join(inputs)}"


def transformer_of(denoiser: Denoiser) -> VortaTransformer:
    return VortaTransformer(denoiser)
