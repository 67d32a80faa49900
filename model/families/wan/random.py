# SPDX-License-Identifier: Apache-2.0
"""Wan with random weights: a checkpoint, and the parts of a pipeline around it.

`make_checkpoint` and `add_parts` are what `random_checkpoint` and `random_pipeline` call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from vorta_trt.model.families.wan import IMAGE_ROWS, two_timesteps
from vorta_trt.model.random_checkpoint import SHARD_BYTES, write_pipeline
from vorta_trt.model.random_pipeline import TOKENIZER, WORDS, write_tokenizer

ImageCondition = Literal["channels", "embedding", "first and last"]
MASK_CHANNELS = 4  # one for each video frame of a latent frame

# Architectures of the published checkpoints (their transformer/config.json).
WAN_1_3B: dict[str, int] = {"layers": 30, "heads": 12, "head_dim": 128, "ffn_dim": 8960, "text_dim": 4096}
WAN_14B: dict[str, int] = {"layers": 40, "heads": 40, "head_dim": 128, "ffn_dim": 13824, "text_dim": 4096}


def make_checkpoint(
    path: str | Path,
    *,
    layers: int = 3,
    heads: int = 4,
    head_dim: int = 32,
    ffn_dim: int = 256,
    text_dim: int = 64,
    channels: int = 16,
    freq_dim: int = 256,
    image: ImageCondition | None = None,
    image_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    boundary_ratio: float | None = None,
) -> Path:
    """A Wan pipeline folder: model_index.json, transformer/ and scheduler/, the latter two by diffusers.

    Weights are random but of the size that keeps activations near 1, so that errors show as they would in a real model.

    Args:
        path: path of the folder.
        layers: number of transformer blocks.
        heads: N.
        head_dim: D.
        ffn_dim: hidden channels of the feed forward.
        text_dim: width of the text embeddings.
        channels: channels of the latents; 48 makes a Wan 2.2 TI2V.
        freq_dim: channels of the sinusoidal timestep embedding.
        image: what an image-to-video model gets of its image: "channels" of the encoded image (Wan 2.2 I2V A14B), these
            and CLIP's "embedding" (Wan 2.1 I2V), or these and CLIP's embeddings of a "first and last" image (FLF2V);
            None for text to video.
        image_dim: width of CLIP's embeddings.
        dtype: data type of the weights.
        seed: seed of the random weights.
        shard_bytes: above this size the weights are several files.
        boundary_ratio: where the second of two experts takes over; None for one expert.

    Returns:
        `path`.
    """
    from diffusers import UniPCMultistepScheduler, WanTransformer3DModel

    embedded = image in ("embedding", "first and last")
    with torch.device("meta"):
        model: Any = WanTransformer3DModel(  # type: ignore[no-untyped-call]
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            ffn_dim=ffn_dim,
            text_dim=text_dim,
            in_channels=channels if image is None else 2 * channels + MASK_CHANNELS,
            out_channels=channels,
            freq_dim=freq_dim,
            image_dim=image_dim if embedded else None,
            added_kv_proj_dim=heads * head_dim if embedded else None,
            pos_embed_seq_len=2 * IMAGE_ROWS if image == "first and last" else None,
        )
    scheduler: Any = UniPCMultistepScheduler(  # type: ignore[no-untyped-call]
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    return write_pipeline(Path(path), "wan", model, scheduler, dtype, seed, shard_bytes, boundary_ratio)


def add_parts(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Writes the parts; returns their entries of model_index.json."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    channels = config["out_channels"]
    # The VAE of 4 x 16 x 16 halves height and width once more, by patches of 2 x 2 pixels.
    patched = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
    write_tokenizer(path / "tokenizer")
    UMT5EncoderModel(
        UMT5Config(vocab_size=len(WORDS), d_model=config["text_dim"], d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).save_pretrained(path / "text_encoder")
    vae: Any = AutoencoderKLWan(  # type: ignore[no-untyped-call]
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * channel for channel in range(channels)],
        latents_std=[1.0 + 0.1 * channel for channel in range(channels)],
        **(patched if two_timesteps(config) else {}),
    )
    vae.save_pretrained(path / "vae")
    parts = {
        "tokenizer": TOKENIZER,
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if config["image_dim"] is not None:
        _add_clip(path, config["image_dim"])
        parts |= {
            "image_encoder": ["transformers", "CLIPVisionModel"],
            "image_processor": ["transformers", "CLIPImageProcessor"],
        }
    return parts


def _add_clip(path: Path, width: int) -> None:
    """Writes a small image encoder with 257 embeddings, as many as the published one has."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=2, patch_size=14
        )
    ).save_pretrained(path / "image_encoder")
    CLIPImageProcessor().save_pretrained(path / "image_processor")
