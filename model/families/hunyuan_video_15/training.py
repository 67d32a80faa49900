# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo 1.5 for router training, and its conditions in generation.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, X rows of the prompt, G rows of glyphs,
I image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.families.hunyuan_video.training import padded_text
from vorta_trt.model.families.hunyuan_video_15 import GLYPH_ROWS, PROMPT_ROWS, takes_image, takes_next_timestep
from vorta_trt.model.families.training import TokenCount, TrainingFamily


class HunyuanVideo15Training(TrainingFamily):
    """Conditions: `prompt_embeds` of the language model and `prompt_embeds_2` of the glyphs, each with its mask.

    Models that take an image also have `image_condition`, the encoded image and its mask, and `image_embeds`.
    """

    condition_names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
    tokenizers = ("tokenizer", "tokenizer_2")

    @property
    def image_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """See the class."""
        return ("image_condition", "image_embeds") if takes_image(self.config) else ()

    def conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        padded = {name: tensors[name] for name in self.image_names if name in tensors}  # captions are checked alone
        for name, tensor in padded.items():
            of_latents = (self.facts.latent_channels(self.config) + 1, 4)
            wanted = of_latents if name == "image_condition" else (self.config["image_embed_dim"], 2)
            if (tensor.shape[0 if tensor.ndim == 4 else -1], tensor.ndim) != wanted:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, must have {wanted[0]} channels for this checkpoint; "
                    f"encode the images with its own VAE and image encoder"
                )
        texts = (("", "text_embed_dim", PROMPT_ROWS), ("_2", "text_embed_2_dim", GLYPH_ROWS))
        for suffix, size, longest in texts:
            name, mask_name = f"prompt_embeds{suffix}", f"prompt_embeds_mask{suffix}"
            padded |= padded_text(tensors, name, mask_name, self.config[size], longest)
        return padded

    def reference_conditions(self, prompt: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The authors have no layout for this model."""
        raise ValueError(
            "is in the layout of VORTA's authors, who have none for this model; prepare the data with vorta-trt"
        )

    def model_inputs(
        self, noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Any]:
        """Without an image, zeros take the place of its latents and their mask.

        Mean-flow models get a `timestep_r` that equals the timestep, as for a step of length 0: flow matching has a
        target for the velocity there.
        """
        if takes_image(self.config):
            behind = conditions["image_condition"].to(noisy.dtype)  # [B, C + 1, F, H, W]
        else:
            behind = noisy.new_zeros(noisy.shape[0], noisy.shape[1] + 1, *noisy.shape[2:])
        further: dict[str, Tensor] = {}
        if takes_image(self.config):
            further["image_embeds"] = conditions["image_embeds"].to(dtype)  # [B, I, image_embed_dim]
        if takes_next_timestep(self.config):
            further["timestep_r"] = timesteps  # [B]
        return {
            "hidden_states": torch.cat((noisy, behind), dim=1),  # [B, 2 C + 1, F, H, W]
            "timestep": timesteps,  # [B]
            **further,
            "encoder_hidden_states": conditions["prompt_embeds"].to(dtype),  # [B, X, text_embed_dim]
            "encoder_attention_mask": conditions["prompt_embeds_mask"],  # [B, X]
            "encoder_hidden_states_2": conditions["prompt_embeds_2"].to(dtype),  # [B, G, text_embed_2_dim]
            "encoder_attention_mask_2": conditions["prompt_embeds_mask_2"],  # [B, G]
        }

    def token_counts(self, pipeline: Any, text: str) -> list[TokenCount]:
        """Counts the language model's tokens of the prompt, and the glyph encoder's tokens of its quoted text."""
        from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import (
            extract_glyph_texts,
            format_text_input,
        )

        tokens = pipeline.tokenizer.apply_chat_template(
            format_text_input([text], pipeline.system_message),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            tokenizer_kwargs={"verbose": False},
        ).input_ids[0]
        counts = [TokenCount(len(tokens) - pipeline.prompt_template_encode_start_idx, PROMPT_ROWS)]
        if (quoted := extract_glyph_texts(text)) is not None:
            glyphs = pipeline.tokenizer_2(quoted, add_special_tokens=True, verbose=False).input_ids
            counts.append(TokenCount(len(glyphs), GLYPH_ROWS, "quoted text"))
        return counts

    def encode_caption(
        self, pipeline: Any, caption: str, device: torch.device, images: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        encoded = pipeline.encode_prompt(caption, device=device)
        return {name: tensor[0] for name, tensor in zip(self.condition_names, encoded, strict=True)}

    def condition(
        self, pipeline: Any, images: Mapping[str, Any], size: tuple[int, int, int], device: torch.device
    ) -> dict[str, Tensor]:
        """Encodes with the pipeline's own methods, and makes the condition's channels as its `__call__` does."""
        frames, height, width = size
        processor = pipeline.video_processor
        image = processor.resize(images["image"], height=height, width=width, resize_mode="crop")
        embeds = pipeline.encode_image(image=image, batch_size=1, device=device, dtype=torch.float32)
        encoded = pipeline._get_image_latents(
            vae=pipeline.vae, image_processor=processor, image=image, height=height, width=width, device=device
        )  # [1, C, 1, H, W]
        _, channels, _, *sides = encoded.shape
        latent_frames = (frames - 1) // self.facts.temporal_compression + 1
        condition = encoded.new_zeros(channels + 1, latent_frames, *sides)
        condition[:channels, 0] = encoded[0, :, 0]
        condition[channels, 0] = 1  # the mask
        return {"image_condition": condition, "image_embeds": embeds[0]}
