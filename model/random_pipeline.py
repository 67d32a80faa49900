# SPDX-License-Identifier: Apache-2.0
"""The rest of a pipeline, tiny and with random weights: text encoders, tokenizers and VAE beside a transformer.

With what `random_checkpoint` makes, that is a whole pipeline folder, which diffusers loads and samples from. Its videos
are noise; their size, and every class on the way to them, are those of the real pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vorta_trt.model.pipeline_folder import quiet_libraries

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "wall")  # what the tokenizers know
TOKENIZER = ["transformers", "PreTrainedTokenizerFast"]


def complete_pipeline(path: str | Path, *, seed: int = 0) -> Path:
    """Adds text encoders, tokenizers and VAE that fit the transformer in the pipeline folder `path`.

    Returns:
        `path`.
    """
    path = Path(path)
    config = json.loads((path / "transformer" / "config.json").read_text(encoding="utf-8"))
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add = _add_wan if config["_class_name"] == "WanTransformer3DModel" else _add_hunyuan_video
        parts = add(path, config)
    index = path / "model_index.json"
    content = json.loads(index.read_text(encoding="utf-8")) | parts
    index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    """One token per word; of `words`, 0 is the padding, 1 the end and 2 any other word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    padding, end, unknown = words[:3]
    model = models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    made: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=padding, eos_token=end, unk_token=unknown
    )
    made.save_pretrained(folder)


def _add_wan(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Writes the parts; returns their entries of model_index.json."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    channels = config["in_channels"]
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
    )
    vae.save_pretrained(path / "vae")
    return {
        "tokenizer": TOKENIZER,
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def _add_hunyuan_video(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Writes the parts; returns their entries of model_index.json."""
    from diffusers import AutoencoderKLHunyuanVideo
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(path / name)
    common: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "pad_token_id": 0,
    }
    LlamaModel(
        LlamaConfig(hidden_size=config["text_embed_dim"], num_hidden_layers=3, num_key_value_heads=2, **common)
    ).save_pretrained(path / "text_encoder")
    pooled = config["pooled_projection_dim"]
    CLIPTextModel(
        CLIPTextConfig(hidden_size=pooled, num_hidden_layers=1, eos_token_id=1, bos_token_id=None, **common)
    ).save_pretrained(path / "text_encoder_2")
    vae: Any = AutoencoderKLHunyuanVideo(  # type: ignore[no-untyped-call]
        latent_channels=config["in_channels"], block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    vae.save_pretrained(path / "vae")
    return {
        "tokenizer": TOKENIZER,
        "tokenizer_2": TOKENIZER,
        "text_encoder": ["transformers", "LlamaModel"],
        "text_encoder_2": ["transformers", "CLIPTextModel"],
        "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
    }
