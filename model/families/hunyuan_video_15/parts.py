# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo 1.5's VAE by tiles of all frames, its text encoders and image encoder, as graphs of fixed shapes."""

from __future__ import annotations

import inspect
from typing import Any

from vorta_trt.model.families.encoders import (
    EncoderPart,
    encodes_images,
    hidden_states,
    image_inputs,
    last_hidden_state,
    token_inputs,
)
from vorta_trt.model.families.hunyuan_video.parts import TiledParts
from vorta_trt.model.families.hunyuan_video_15 import GLYPH_ROWS, PROMPT_ROWS
from vorta_trt.model.families.hunyuan_video_15.vae_attention import with_frame_masks
from vorta_trt.model.families.parts import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    VAE_DECODER,
    VAE_ENCODER,
    PartGraph,
)

SKIPPED = 2  # last layers of the language model that the pipeline leaves out


class HunyuanVideo15Parts(TiledParts):
    """The prompt's language model, the glyph encoder, the VAE, and SigLIP for image to video."""

    @property
    def components(self) -> dict[str, str]:
        """See the base class."""
        of_image = encodes_images(self.facts.pipeline_kinds(self.config))
        texts = {TEXT_ENCODER: "text_encoder", TEXT_ENCODER_2: "text_encoder_2"}
        images = {IMAGE_ENCODER: "image_encoder", VAE_ENCODER: "vae"} if of_image else {}
        return texts | images | {VAE_DECODER: "vae"}

    def graphs(self, part: str, component: Any) -> list[PartGraph]:
        """See the base class; replaces the attentions of a VAE, in the component itself, by `FrameCausalAttention`."""
        if self.components[part] == "vae":
            with_frame_masks(component)
        return super().graphs(part, component)

    def encoder(self, part: str, component: Any) -> EncoderPart | None:
        """See the base class."""
        if part == TEXT_ENCODER:
            return hidden_states(part, token_inputs(PROMPT_ROWS + _template_tokens()), SKIPPED, use_cache=False)
        if part == TEXT_ENCODER_2:
            return last_hidden_state(part, token_inputs(GLYPH_ROWS))
        return last_hidden_state(part, image_inputs(component)) if part == IMAGE_ENCODER else None


def _template_tokens() -> int:
    """Tokens of the system message, which diffusers' pipeline puts before the prompt and cuts off afterwards."""
    from diffusers import HunyuanVideo15Pipeline

    arguments = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
    return int(arguments["crop_start"].default)
