# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo 1.5 with random weights: a checkpoint, and the parts of a pipeline around it.

`make_checkpoint` and `add_parts` are what `random_checkpoint` and `random_pipeline` call.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vorta_trt.model.families.hunyuan_video.random import rope_axes
from vorta_trt.model.random_checkpoint import SHARD_BYTES, write_pipeline
from vorta_trt.model.random_pipeline import TOKENIZER, WORDS, write_tokenizer

# Architecture of the published checkpoints (their transformer/config.json).
HUNYUAN_VIDEO_15: dict[str, int] = {
    "layers": 54, "heads": 16, "head_dim": 128, "text_dim": 3584, "glyph_dim": 1472, "image_dim": 1152, "channels": 32
}  # fmt: skip
TEMPLATE_TOKENS = 108  # tokens of the system message before the prompt, which the pipeline cuts off
IMAGE_PATCHES = 27  # patches a side of an image


def make_checkpoint(
    path: str | Path,
    *,
    layers: int = 2,
    heads: int = 4,
    head_dim: int = 32,
    text_dim: int = 64,
    glyph_dim: int = 48,
    image_dim: int = 32,
    refiner_layers: int = 2,
    channels: int = 16,
    task: str = "t2v",
    meanflow: bool = False,
    target_size: int = 960,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A HunyuanVideo 1.5 pipeline folder, made like those of `random_checkpoint.make_checkpoint`.

    Args:
        path: path of the folder.
        layers: number of blocks.
        heads: N.
        head_dim: even, at least 6; the rotary embedding divides it among frames, height and width about as 2 : 7 : 7.
        text_dim: width of the prompt's embeddings.
        glyph_dim: width of the glyphs' embeddings.
        image_dim: width of the image's embeddings.
        refiner_layers: blocks of the token refiner.
        channels: channels of the latents; the transformer takes twice as many and a mask.
        task: "t2v" or "i2v".
        meanflow: whether the model takes the timestep that a step goes to, as step-distilled ones do.
        target_size: side of a square with as many pixels as a frame; published models have 640 and 960.
        dtype: data type of the weights.
        seed: seed of the random weights.
        shard_bytes: above this size the weights are several files.

    Returns:
        `path`.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideo15Transformer3DModel

    with torch.device("meta"):
        model: Any = HunyuanVideo15Transformer3DModel(  # type: ignore[no-untyped-call]
            num_layers=layers,
            num_refiner_layers=refiner_layers,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            text_embed_dim=text_dim,
            text_embed_2_dim=glyph_dim,
            image_embed_dim=image_dim,
            in_channels=2 * channels + 1,
            out_channels=channels,
            rope_axes_dim=rope_axes(head_dim),
            task_type=task,
            use_meanflow=meanflow,
            target_size=target_size,
        )
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=9.0)  # type: ignore[no-untyped-call]
    return write_pipeline(Path(path), "hunyuan_video_15", model, scheduler, dtype, seed, shard_bytes)


def add_parts(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Writes the parts; returns their entries of model_index.json."""
    from diffusers import AutoencoderKLHunyuanVideo15, ClassifierFreeGuidance
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

    _write_chat_tokenizer(path / "tokenizer")
    ByT5Tokenizer(extra_ids=0).save_pretrained(path / "tokenizer_2")
    Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=len(WORDS),
            hidden_size=config["text_embed_dim"],
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": _thirds(config["text_embed_dim"] // 4),
            },
        )
    ).save_pretrained(path / "text_encoder")
    T5EncoderModel(
        T5Config(vocab_size=259, d_model=config["text_embed_2_dim"], d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).save_pretrained(path / "text_encoder_2")
    channels = config["out_channels"]
    vae: Any = AutoencoderKLHunyuanVideo15(  # type: ignore[no-untyped-call]
        latent_channels=channels, block_out_channels=(2 * channels,) * 5, layers_per_block=1
    )
    vae.save_pretrained(path / "vae")
    guider: Any = ClassifierFreeGuidance(guidance_scale=6.0)  # type: ignore[no-untyped-call]
    guider.save_pretrained(path / "guider")
    return {
        "tokenizer": TOKENIZER,
        "tokenizer_2": ["transformers", "ByT5Tokenizer"],
        "text_encoder": ["transformers", "Qwen2_5_VLTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "vae": ["diffusers", "AutoencoderKLHunyuanVideo15"],
        "guider": ["diffusers", "ClassifierFreeGuidance"],
        **(_add_image_encoder(path, config["image_embed_dim"]) if config["task_type"] == "i2v" else {}),
    }


def _add_image_encoder(path: Path, width: int) -> dict[str, Any]:
    """Writes a small SigLIP with the published number of image tokens; returns its entries of model_index.json."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    patch = 2
    side = patch * IMAGE_PATCHES
    SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=side,
            patch_size=patch,
        )
    ).save_pretrained(path / "image_encoder")
    SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(path / "feature_extractor")
    return {
        "image_encoder": ["transformers", "SiglipVisionModel"],
        "feature_extractor": ["transformers", "SiglipImageProcessor"],
    }


def _write_chat_tokenizer(folder: Path) -> None:
    """A tokenizer with a chat template whose system message has as many tokens as that of the published one."""
    write_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["chat_template"] = f"{{{{ 'a ' * {TEMPLATE_TOKENS} }}}}{{{{ messages[1]['content'] }}}}"
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _thirds(pairs: int) -> list[int]:
    """The pairs of a head's channels that belong to frames, height and width in the text encoder."""
    third = pairs // 3
    return [pairs - 2 * third, third, third]
