# SPDX-License-Identifier: Apache-2.0
"""Wan (text to video) for router training.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, X text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.families.training import TrainingFamily
from vorta_trt.model.families.wan import TEXT_SEQUENCE, two_timesteps


class WanTraining(TrainingFamily):
    """One condition: `prompt_embeds`, the text encoder's output, padded with zeros as the pipeline pads it."""

    condition_names = ("prompt_embeds",)

    def conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        embeds = tensors["prompt_embeds"]
        size = self.config["text_dim"]
        if embeds.ndim != 2 or embeds.shape[1] != size or not 0 < embeds.shape[0] <= TEXT_SEQUENCE:
            raise ValueError(
                f"prompt_embeds has shape {tuple(embeds.shape)}, must be [1 to {TEXT_SEQUENCE} tokens, {size}] for "
                f"this checkpoint; encode the captions with its own text encoder"
            )
        return {"prompt_embeds": functional.pad(embeds, (0, 0, 0, TEXT_SEQUENCE - embeds.shape[0]))}  # [X, text_dim]

    def reference_conditions(self, prompt: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return {"prompt_embeds": prompt.squeeze(0) if prompt.ndim == 3 else prompt}

    def model_inputs(
        self, noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Any]:
        return {
            "hidden_states": noisy,  # [B, C, F, H, W]
            # Text to video: the first frame is as noisy as the others.
            "timestep": timesteps.unsqueeze(1).expand(-1, 2) if two_timesteps(self.config) else timesteps,  # [B(, 2)]
            "encoder_hidden_states": conditions["prompt_embeds"].to(dtype),  # [B, X, text_dim]
        }

    def encode_caption(self, pipeline: Any, caption: str, device: torch.device) -> dict[str, Tensor]:
        embeds, _ = pipeline.encode_prompt(
            caption, do_classifier_free_guidance=False, max_sequence_length=TEXT_SEQUENCE, device=device
        )  # [1, X, text_dim]
        return {"prompt_embeds": embeds[0]}
