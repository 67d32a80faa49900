# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo for router training, and its conditions in generation.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, T padded text tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.families.hunyuan_video import replaces_tokens
from vorta_trt.model.families.training import TokenCount, TrainingFamily

# 1000 times a guidance scale of 1: the prediction that flow matching has a target for; the authors trained with it too.
UNGUIDED = 1000.0
NOISE = 0.999  # share of noise in what the pipeline starts from; the rest is the image's latents, in every frame


def padded_text(
    tensors: Mapping[str, Tensor], name: str, mask_name: str, width: int, longest: int
) -> dict[str, Tensor]:
    """A text's embeddings and its mask, padded to `longest` rows.

    There may be no valid row: some tokenizers give none for an empty prompt.

    Args:
        tensors: tensors of a sample.
        name: name of the embeddings' tensor, [X, width].
        mask_name: name of the mask's tensor, [X].
        width: width of this checkpoint's text embeddings.
        longest: number of rows that the model takes.

    Raises:
        ValueError: a tensor has another shape, or the mask has gaps.
    """
    embeds, mask = tensors[name], tensors[mask_name]
    if embeds.ndim != 2 or embeds.shape[1] != width or not 0 < embeds.shape[0] <= longest:
        raise ValueError(
            f"{name} has shape {tuple(embeds.shape)}, must be [1 to {longest} tokens, {width}] for this checkpoint; "
            f"encode the captions with its own text encoders"
        )
    if mask.shape != embeds.shape[:1]:
        raise ValueError(
            f"{mask_name} has shape {tuple(mask.shape)}, must be {tuple(embeds.shape[:1])}, an entry per row of "
            f"{name}; encode the captions again"
        )
    valid = (mask != 0).to(torch.int32)  # [X]
    if bool((valid.diff() > 0).any()):
        raise ValueError(f"{mask_name} has gaps, its valid tokens must come first; encode the captions again")
    missing = longest - embeds.shape[0]
    return {name: functional.pad(embeds, (0, 0, 0, missing)), mask_name: functional.pad(valid, (0, missing))}


class HunyuanVideoTraining(TrainingFamily):
    """Conditions: the language model's `prompt_embeds` with `prompt_attention_mask`, and `pooled_prompt_embeds`.

    Models that take an image also have `image_condition`, the latents of one frame; their language model sees the
    image, too.
    """

    condition_names = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
    text_sees_image = True

    @property
    def image_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """See the class."""
        return ("image_condition",) if self.facts.pipeline_kinds(self.config)[0].images else ()

    def conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pooled = tensors["pooled_prompt_embeds"]
        names, longest = ("prompt_embeds", "prompt_attention_mask"), self.facts.text_tokens_of(self.config)
        text = padded_text(tensors, *names, self.config["text_embed_dim"], longest)
        if not bool(text["prompt_attention_mask"][0]):
            raise ValueError(
                "prompt_attention_mask has gaps, its valid tokens must come first; encode the captions again"
            )
        if tuple(pooled.shape) != (self.config["pooled_projection_dim"],):
            raise ValueError(
                f"pooled_prompt_embeds has shape {tuple(pooled.shape)}, must be "
                f"({self.config['pooled_projection_dim']},) for this checkpoint; encode the captions again"
            )
        images = {name: tensors[name] for name in self.image_names if name in tensors}  # captions are checked alone
        channels = self.facts.latent_channels(self.config)
        for name, tensor in images.items():
            if tensor.ndim != 4 or tuple(tensor.shape[:2]) != (channels, 1):
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, must have {channels} channels and 1 frame for this "
                    f"checkpoint; encode the images with its own VAE"
                )
        return {
            **images,
            **text,  # [T, text_embed_dim] and [T]
            "pooled_prompt_embeds": pooled,
        }

    def reference_conditions(self, prompt: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """In that layout the first row of `prompt` begins with the pooled embedding; the rows of the tokens follow."""
        prompt = prompt.squeeze(0) if prompt.ndim == 3 else prompt  # [1 + T, text_embed_dim]
        if mask is None:
            raise ValueError("has no prompt_attention_mask, which HunyuanVideo needs; encode the captions again")
        return {
            "prompt_embeds": prompt[1:],
            "prompt_attention_mask": mask.flatten()[: prompt.shape[0] - 1],
            "pooled_prompt_embeds": prompt[0, : self.config["pooled_projection_dim"]],
        }

    def model_inputs(
        self, noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Any]:
        if "image_condition" in conditions:
            noisy = self._with_image(noisy, conditions["image_condition"].to(noisy.dtype))
        inputs = {
            "hidden_states": noisy,  # [B, C of the input, F, H, W]
            "timestep": timesteps,  # [B]
            "encoder_hidden_states": conditions["prompt_embeds"].to(dtype),  # [B, T, text_embed_dim]
            "encoder_attention_mask": conditions["prompt_attention_mask"],  # [B, T]
            "pooled_projections": conditions["pooled_prompt_embeds"].to(dtype),  # [B, pooled_projection_dim]
        }
        if self.config["guidance_embeds"]:
            inputs["guidance"] = torch.full_like(timesteps, UNGUIDED)  # [B]
        return inputs

    def _with_image(self, noisy: Tensor, image: Tensor) -> Tensor:
        """Adds the image: noisy [B, C, F, H, W], image [B, C, 1, H, W] -> [B, C of the input, F, H, W]."""
        if replaces_tokens(self.config):
            return torch.cat((image, noisy[:, :, 1:]), dim=2)
        behind = noisy.new_zeros(noisy.shape[0], noisy.shape[1] + 1, *noisy.shape[2:])
        behind[:, :-1, :1] = image
        behind[:, -1, 0] = 1  # the mask
        return torch.cat((noisy, behind), dim=1)

    def first_latents(self, noise: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        if "image_condition" not in conditions:
            return noise
        return noise * NOISE + conditions["image_condition"].to(noise) * (1 - NOISE)

    def stepped(self, prediction: Tensor) -> Tensor:
        """Drops the prediction of the first frame where that frame is the image's."""
        return prediction[:, :, 1:] if replaces_tokens(self.config) else prediction

    def token_counts(self, pipeline: Any, text: str) -> list[TokenCount]:
        """Counts the language model's tokens, not CLIP's, which pools the first 77 tokens of any text."""
        template = inspect.signature(pipeline.encode_prompt).parameters["prompt_template"].default
        tokens = pipeline.tokenizer(template["template"].format(text), verbose=False).input_ids
        return [TokenCount(len(tokens) - template["crop_start"], self.facts.text_tokens)]

    def encode_caption(
        self, pipeline: Any, caption: str, device: torch.device, images: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        seen: dict[str, Any] = {}
        if images is not None:
            # The pipeline's `__call__` takes every second or every fourth image token.
            seen = {"image": images["image"], "image_embed_interleave": 4 if replaces_tokens(self.config) else 2}
        embeds, pooled, mask = pipeline.encode_prompt(
            prompt=caption, device=device, max_sequence_length=self.facts.text_tokens, **seen
        )
        return {"prompt_embeds": embeds[0], "prompt_attention_mask": mask[0], "pooled_prompt_embeds": pooled[0]}

    def encode_negative(
        self, pipeline: Any, text: str, device: torch.device, images: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """With images, the text goes with a black one, of which the pipeline takes every second token in all models."""
        if images is None:
            return self.encode_caption(pipeline, text, device)
        embeds, pooled, mask = pipeline.encode_prompt(
            image=Image.new("RGB", images["image"].size),
            prompt=text,
            device=device,
            max_sequence_length=self.facts.text_tokens,
        )
        return {"prompt_embeds": embeds[0], "prompt_attention_mask": mask[0], "pooled_prompt_embeds": pooled[0]}

    def condition(
        self, pipeline: Any, images: Mapping[str, Any], size: tuple[int, int, int], device: torch.device
    ) -> dict[str, Tensor]:
        frames, height, width = size
        pixels = pipeline.video_processor.preprocess(images["image"], height, width)  # [1, 3, H, W]
        _, encoded = pipeline.prepare_latents(
            pixels.to(device, pipeline.vae.dtype),
            batch_size=1,
            num_channels_latents=self.facts.latent_channels(self.config),
            height=height,
            width=width,
            num_frames=frames,
            dtype=torch.float32,
            device=device,
            latents=torch.zeros(()),  # nothing is drawn
            image_condition_type=self.config["image_condition_type"],
        )
        return {"image_condition": encoded[0, :, :1]}  # [C, 1, H, W]; further frames are the same
