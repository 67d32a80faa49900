# SPDX-License-Identifier: Apache-2.0
"""Wan for router training, and its conditions in generation.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, X text tokens, Y image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.families.training import TokenCount, TrainingFamily
from vorta_trt.model.families.wan import TEXT_SEQUENCE, two_timesteps


class WanTraining(TrainingFamily):
    """`prompt_embeds`, the text encoder's output, padded with zeros as the pipeline pads it.

    Models that take images also have `image_condition`, the mask and the encoded images, and, if they use CLIP,
    `image_embeds`. Models of two timesteps may have `image_condition`, the latents of the first frame.
    """

    condition_names = ("prompt_embeds",)

    @property
    def image_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """See the class."""
        if not self._condition_channels:
            return ()
        return ("image_condition",) if self.config["image_dim"] is None else ("image_condition", "image_embeds")

    @property
    def _condition_channels(self) -> int:
        return int(self.config["in_channels"]) - self.facts.latent_channels(self.config)

    def conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        embeds = tensors["prompt_embeds"]
        size = self.config["text_dim"]
        if embeds.ndim != 2 or embeds.shape[1] != size or not 0 < embeds.shape[0] <= TEXT_SEQUENCE:
            raise ValueError(
                f"prompt_embeds has shape {tuple(embeds.shape)}, must be [1 to {TEXT_SEQUENCE} tokens, {size}] for "
                f"this checkpoint; encode the captions with its own text encoder"
            )
        padded = functional.pad(embeds, (0, 0, 0, TEXT_SEQUENCE - embeds.shape[0]))  # [X, text_dim]
        images = {name: tensors[name] for name in self.image_names if name in tensors}
        for name, tensor in images.items():
            axes, where = (4, 0) if name == "image_condition" else (2, 1)
            wanted = self._condition_channels if name == "image_condition" else self.config["image_dim"]
            if tensor.ndim != axes or tensor.shape[where] != wanted:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, must have {wanted} channels for this checkpoint; encode "
                    f"the images with its own VAE and image encoder"
                )
        return {"prompt_embeds": padded, **images}

    def reference_conditions(self, prompt: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return {"prompt_embeds": prompt.squeeze(0) if prompt.ndim == 3 else prompt}

    def model_inputs(
        self, noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Any]:
        seen, timestep = {}, timesteps
        if two_timesteps(self.config):
            # Without an image the first frame is as noisy as the others.
            first = torch.zeros_like(timesteps) if "image_condition" in conditions else timesteps
            timestep = torch.stack((first, timesteps), dim=1)  # [B, 2]
            if "image_condition" in conditions:
                noisy = torch.cat((conditions["image_condition"].to(noisy.dtype), noisy[:, :, 1:]), dim=2)
        elif "image_condition" in conditions:
            noisy = torch.cat((noisy, conditions["image_condition"].to(noisy.dtype)), dim=1)  # [B, C + ..., F, H, W]
        if "image_embeds" in conditions:
            seen = {"encoder_hidden_states_image": conditions["image_embeds"].to(dtype)}  # [B, Y, image_dim]
        return {
            "hidden_states": noisy,  # [B, C, F, H, W]
            "timestep": timestep,  # [B(, 2)]
            "encoder_hidden_states": conditions["prompt_embeds"].to(dtype),  # [B, X, text_dim]
            **seen,
        }

    def token_counts(self, pipeline: Any, text: str) -> list[TokenCount]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        cleaned = prompt_clean(text)  # type: ignore[no-untyped-call]
        return [TokenCount(len(pipeline.tokenizer(cleaned, verbose=False).input_ids), TEXT_SEQUENCE)]

    def encode_caption(
        self, pipeline: Any, caption: str, device: torch.device, images: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        embeds, _ = pipeline.encode_prompt(
            caption, do_classifier_free_guidance=False, max_sequence_length=TEXT_SEQUENCE, device=device
        )  # [1, X, text_dim]
        return {"prompt_embeds": embeds[0]}

    def condition(
        self, pipeline: Any, images: Mapping[str, Any], size: tuple[int, int, int], device: torch.device
    ) -> dict[str, Tensor]:
        frames, height, width = size
        made = {}
        if self.config["image_dim"] is not None:
            shown = [*images.values()] if len(images) > 1 else images["image"]
            made["image_embeds"] = pipeline.encode_image(shown, device).flatten(0, 1)  # [Y, image_dim]
        pixels = {
            name: pipeline.video_processor.preprocess(image, height=height, width=width).to(device, torch.float32)
            for name, image in images.items()
        }  # [1, 3, H, W] each
        _, encoded, *_ = pipeline.prepare_latents(
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
        )  # [1, mask and latents, F, H, W]; of two timesteps [1, latents, 1, H, W]
        return made | {"image_condition": encoded[0]}
