# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with random weights and the files of real ones, for `vorta-trt demo`, tests and measurements of size.

`make_wan_checkpoint` and `make_hunyuan_video_checkpoint` write what diffusers' `save_pretrained` of such a pipeline
writes; small models go through it, large ones are streamed shard by shard, so that a 14B checkpoint needs one shard of
memory. `make_router` writes the layout of the published routers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.checkpoint import INDEX, WEIGHTS
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.router import BRANCHES

# Architectures of the published checkpoints (their transformer/config.json).
WAN_1_3B: dict[str, int] = {"layers": 30, "heads": 12, "head_dim": 128, "ffn_dim": 8960, "text_dim": 4096}
WAN_14B: dict[str, int] = {"layers": 40, "heads": 40, "head_dim": 128, "ffn_dim": 13824, "text_dim": 4096}
HUNYUAN_VIDEO: dict[str, int] = {
    "layers": 20, "single_layers": 40, "heads": 24, "head_dim": 128, "text_dim": 4096, "pooled_dim": 768
}  # fmt: skip
STREAM_ABOVE_BYTES = 1 << 30
SHARD_BYTES = 2 << 30
ROUTER_STEP = 100  # as in the published checkpoints


def make_wan_checkpoint(
    path: str | Path,
    *,
    layers: int = 3,
    heads: int = 4,
    head_dim: int = 32,
    ffn_dim: int = 256,
    text_dim: int = 64,
    channels: int = 16,
    freq_dim: int = 256,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A Wan text-to-video pipeline folder: model_index.json, transformer/ and scheduler/, the latter two by diffusers.

    Weights are random but of the size that keeps activations near 1, so that errors show as they would in a real model.

    Returns:
        `path`.
    """
    from diffusers import UniPCMultistepScheduler, WanTransformer3DModel

    with torch.device("meta"):
        model: Any = WanTransformer3DModel(  # type: ignore[no-untyped-call]
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            ffn_dim=ffn_dim,
            text_dim=text_dim,
            in_channels=channels,
            out_channels=channels,
            freq_dim=freq_dim,
        )
    scheduler: Any = UniPCMultistepScheduler(  # type: ignore[no-untyped-call]
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    return _write_pipeline(Path(path), "WanPipeline", model, scheduler, dtype, seed, shard_bytes)


def make_hunyuan_video_checkpoint(
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
    guidance: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A HunyuanVideo text-to-video pipeline folder, made like `make_wan_checkpoint`'s.

    Args:
        head_dim: even, at least 6; the rotary embedding divides it among frames, height and width about as 2 : 7 : 7.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

    if head_dim % 2 or head_dim < 6:
        raise ValueError(f"head_dim {head_dim}: must be even and at least 6; use {max(6, head_dim + head_dim % 2)}")
    height = width = 7 * head_dim // 32 * 2  # 56 of 128, as published
    with torch.device("meta"):
        model: Any = HunyuanVideoTransformer3DModel(  # type: ignore[no-untyped-call]
            num_layers=layers,
            num_single_layers=single_layers,
            num_refiner_layers=refiner_layers,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            text_embed_dim=text_dim,
            pooled_projection_dim=pooled_dim,
            in_channels=channels,
            out_channels=channels,
            guidance_embeds=guidance,
            rope_axes_dim=(head_dim - height - width, height, width),
        )
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=7.0)  # type: ignore[no-untyped-call]
    return _write_pipeline(Path(path), "HunyuanVideoPipeline", model, scheduler, dtype, seed, shard_bytes)


def _write_pipeline(
    path: Path, pipeline: str, model: Any, scheduler: Any, dtype: torch.dtype, seed: int, shard_bytes: int
) -> Path:
    """Gives `model` (on meta) random weights and writes the folder; text encoders and VAE are left out."""
    from diffusers import __version__ as diffusers_version

    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    folder = path / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    weights = _random_weights(shapes, dtype, seed)
    if total > STREAM_ABOVE_BYTES or total > shard_bytes:
        model.save_config(folder)
        _write_shards(folder, weights, shapes, dtype, shard_bytes)
    else:
        for name, tensor in weights:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))
        model.save_pretrained(folder)
    scheduler.save_pretrained(path / "scheduler")
    absent = ("text_encoder", "tokenizer", "vae", *(("text_encoder_2", "tokenizer_2") if "Hunyuan" in pipeline else ()))
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers_version,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "transformer": ["diffusers", type(model).__name__],
        **{part: [None, None] for part in absent},
    }
    _write_json(path / "model_index.json", dict(sorted(index.items())))
    return path


def make_router(
    path: str | Path,
    geometry: AttentionGeometry,
    *,
    layers: int = 3,
    single_layers: int | None = None,
    heads: int = 4,
    head_dim: int = 32,
    video: tuple[int, int, int] | None = None,
    reduction_rate: float = 0.5,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Path:
    """A router's training folder: config.json and ckpt/step-000100/router.pt.

    The biases differ by head and the weights by timestep, so that all three branches occur and routes change over a
    schedule.

    Args:
        single_layers: None for Wan; a number makes a router for HunyuanVideo, of `layers` + `single_layers` blocks.

    Returns:
        `path`.
    """
    path = Path(path)
    if single_layers is None:
        name, stacks = "WanTransformer3DModel", {"blocks": layers}
    else:
        name = "HunyuanVideoTransformer3DModel"
        stacks = {"transformer_blocks": layers, "single_transformer_blocks": single_layers}
    state = random_router_state(stacks, heads, heads * head_dim, dtype, seed)
    folder = path / "ckpt" / f"step-{ROUTER_STEP:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "router.pt")
    config = {
        "name": name,
        "pretrained_model_path": "random",
        "revision": None,
        "train_video_size": list(video) if video else None,
        "self_attention_kwargs": {
            "lowres_window_size": list(geometry.bucket),
            "lowres_reduction_rate": reduction_rate,
            "window_size": list(geometry.window),
            "tile_size": list(geometry.tile),
            "latent_shape": list(geometry.grid),
        },
    }
    _write_json(path / "config.json", config)
    return path


def random_router_state(
    stacks: Mapping[str, int], heads: int, dim: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> dict[str, Tensor]:
    """The weights of a router for these stacks of blocks, `make_router`'s: [3 N, E] and [3 N] per block."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for prefix in (f"{stack}.{i}.router.linear." for stack, length in stacks.items() for i in range(length)):
        # SiLU of a normal variable has a root mean square near 0.6: logits of the timestep have a spread near 1.
        weight = torch.randn(heads * BRANCHES, dim, generator=generator) * (1.6 / math.sqrt(dim))
        state[prefix + "weight"] = weight.to(dtype)  # [3 N, E]
        state[prefix + "bias"] = torch.randn(heads * BRANCHES, generator=generator).to(dtype)  # [3 N]
    return state


def _random_weights(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        yield name, random_weight(name, shape, generator).to(dtype)


def random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A parameter of that name and shape, float32, on the generator's device."""
    tensor = torch.randn(shape, generator=generator, device=generator.device)
    if name.endswith("scale_shift_table"):
        return tensor.mul_(0.5)  # modulation of order 1, as in trained models: attention reaches the output
    if name.endswith("bias"):
        return tensor.mul_(0.1)
    if ".norm" in name and len(shape) == 1:
        return tensor.mul_(0.1).add_(1)
    return tensor.mul_(1 / math.sqrt(math.prod(shape[1:])))  # 1/sqrt(fan in)


def _write_shards(
    folder: Path,
    weights: Iterator[tuple[str, Tensor]],
    shapes: dict[str, tuple[int, ...]],
    dtype: torch.dtype,
    shard_bytes: int,
) -> None:
    """Shards and their index as diffusers names them, one shard in memory at a time."""
    from safetensors.torch import save_file

    plan: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if plan[-1] and filled + size > shard_bytes:
            plan.append([])
            filled = 0
        plan[-1].append(name)
        filled += size
    stem = WEIGHTS.removesuffix(".safetensors")
    weight_map: dict[str, str] = {}
    for number, names in enumerate(plan, start=1):
        file = f"{stem}-{number:05d}-of-{len(plan):05d}.safetensors"
        shard = dict(next(weights) for _ in names)
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
