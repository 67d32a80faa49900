# SPDX-License-Identifier: Apache-2.0
"""Wan for router training, and its conditions in generation.

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

    def encode_caption(
        self, pipeline: Any, caption: str, device: torch.device, images: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        embeds, _ = pipeline.encode_prompt(
            caption, do_classifier_free_guidance=False, max_sequence_length=TEXT_SEQUENCE, device=device
        )  # [1, X, text_dim]
        return {"prompt_embeds": embeds[0]}

    def condition(
        self, pipeline: Any, images: Mapping[str, Any], size: tuple[int, int, int], device: torch.device
    ) -> None:
        frames, height, width = size
        if self.config["image_dim"] is not None:
            pipeline.encode_image([*images.values()] if len(images) > 1 else images["image"], device)
        pixels = {
            name: pipeline.video_processor.preprocess(image, height=height, width=width).to(device, torch.float32)
            for name, image in images.items()
        }  # [1, 3, H, W] each
        pipeline.prepare_latents(
            pixels["image"],
            batch_size=1,
            num_channels_latents=pipeline.vae.config.z_dim,
            height=height,
            width=width,
            num_frames=frames,
            dtype=torch.float32,
            device=device,
            latents=torch.zeros(()),  # nothing is drawn
            last_image=pixels.get("last_image"),
        )
