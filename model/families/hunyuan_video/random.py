# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo with random weights: a checkpoint, and the parts of a pipeline around it.

`make_checkpoint` and `add_parts` are what `random_checkpoint` and `random_pipeline` call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vorta_trt.model.families.hunyuan_video import LATENT_CONCAT
from vorta_trt.model.random_checkpoint import SHARD_BYTES, write_pipeline
from vorta_trt.model.random_pipeline import TOKENIZER, WORDS, write_tokenizer

# Tokens of the template around a prompt with an image: begin, headers, the image's place, line ends; and half a word,
# so that there are 103 tokens before the prompt, as with the published tokenizer.
MARKS = ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "\n\n", "\n", "back")
PATCH = 2  # pixels a side of a patch; an image has 24 x 24 patches
# Architecture of the published checkpoint (its transformer/config.json).
HUNYUAN_VIDEO: dict[str, int] = {
    "layers": 20, "single_layers": 40, "heads": 24, "head_dim": 128, "text_dim": 4096, "pooled_dim": 768
}  # fmt: skip


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """How a rotary embedding divides D among frames, height and width; ValueError for a D that it cannot divide."""
    if head_dim % 2 or head_dim < 6:
        raise ValueError(f"head_dim {head_dim}: must be even and at least 6; use {max(6, head_dim + head_dim % 2)}")
    height = width = 7 * head_dim // 32 * 2  # 56 of 128, as published
    return head_dim - height - width, height, width


def make_checkpoint(
    path: str | Path,
    *,
    layers: int = 2,
    single_layers: int = 2,
    heads: int = 4,
    head_dim: int = 32,
    text_dim: int = 64,
    pooled_dim: int = 48,
    refiner_layers: int = 2,
    channels: int = 16,
    guidance: bool | None = None,
    image: str | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A HunyuanVideo pipeline folder, made like those of `random_checkpoint.make_checkpoint`.

    Args:
        path: path of the folder.
        layers: number of dual-stream blocks.
        single_layers: number of single-stream blocks.
        heads: N.
        head_dim: even, at least 6; the rotary embedding divides it among frames, height and width about as 2 : 7 : 7.
        text_dim: width of the text embeddings.
        pooled_dim: width of the pooled text embedding.
        refiner_layers: blocks of the token refiner.
        channels: C, channels of the latents.
        guidance: whether the model embeds the guidance scale; None: as the published models, which all do but
            "latent_concat".
        image: how an image conditions the model, "latent_concat" or "token_replace"; None makes one of text alone.
        dtype: data type of the weights.
        seed: seed of the random weights.
        shard_bytes: above this size the weights are several files.

    Returns:
        `path`.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

    with torch.device("meta"):
        model: Any = HunyuanVideoTransformer3DModel(  # type: ignore[no-untyped-call]
            num_layers=layers,
            num_single_layers=single_layers,
            num_refiner_layers=refiner_layers,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            text_embed_dim=text_dim,
            pooled_projection_dim=pooled_dim,
            in_channels=2 * channels + 1 if image == LATENT_CONCAT else channels,
            out_channels=channels,
            guidance_embeds=image != LATENT_CONCAT if guidance is None else guidance,
            image_condition_type=image,
            rope_axes_dim=rope_axes(head_dim),
        )
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=7.0)  # type: ignore[no-untyped-call]
    return write_pipeline(Path(path), "hunyuan_video", model, scheduler, dtype, seed, shard_bytes)


def add_parts(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Writes the parts; returns their entries of model_index.json."""
    from diffusers import AutoencoderKLHunyuanVideo
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    common: dict[str, Any] = {"intermediate_size": 32, "num_attention_heads": 2, "pad_token_id": 0}
    llama = {"hidden_size": config["text_embed_dim"], "num_hidden_layers": 3, "num_key_value_heads": 2, **common}
    if config["image_condition_type"] is None:
        write_tokenizer(path / "tokenizer")
        LlamaModel(LlamaConfig(vocab_size=len(WORDS), **llama)).save_pretrained(path / "text_encoder")
        parts = {"text_encoder": ["transformers", "LlamaModel"]}
    else:
        parts = _add_llava(path, llama)
    write_tokenizer(path / "tokenizer_2")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=config["pooled_projection_dim"],
            num_hidden_layers=1,
            eos_token_id=1,
            bos_token_id=None,
            **common,
        )
    ).save_pretrained(path / "text_encoder_2")
    vae: Any = AutoencoderKLHunyuanVideo(  # type: ignore[no-untyped-call]
        latent_channels=config["out_channels"], block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    vae.save_pretrained(path / "vae")
    return {
        **parts,
        "tokenizer": TOKENIZER,
        "tokenizer_2": TOKENIZER,
        "text_encoder_2": ["transformers", "CLIPTextModel"],
        "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
    }


def _add_llava(path: Path, llama: dict[str, Any]) -> dict[str, Any]:
    """A text encoder that sees an image, with its tokenizer and image processor; returns their entries."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    words = (*WORDS, *MARKS)
    write_tokenizer(path / "tokenizer", words, special=MARKS, begin=MARKS[0])
    pixels = 24 * PATCH
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=pixels,
        patch_size=PATCH,
    )
    llava: dict[str, Any] = {
        "vision_config": vision,
        "text_config": LlamaConfig(vocab_size=len(words), **llama),
        "image_token_index": words.index("<image>"),
        "pad_token_id": 0,
    }
    LlavaForConditionalGeneration(LlavaConfig(**llava)).save_pretrained(path / "text_encoder")
    CLIPImageProcessor(size={"shortest_edge": pixels}, crop_size=pixels).save_pretrained(path / "image_processor")
    return {
        "text_encoder": ["transformers", "LlavaForConditionalGeneration"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
    }
