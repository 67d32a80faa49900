# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with random weights and the files of real ones, for `vorta-trt demo`, tests and measurements of size.

`make_wan_checkpoint` writes what diffusers' `save_pretrained` of a Wan pipeline writes; small models go through it,
large ones are streamed shard by shard, so that a 14B checkpoint needs one shard of memory. `make_router` writes the
layout of the published routers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
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
    from diffusers import __version__ as diffusers_version

    path = Path(path)
    model: Any
    with torch.device("meta"):
        model = WanTransformer3DModel(  # type: ignore[no-untyped-call]
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            ffn_dim=ffn_dim,
            text_dim=text_dim,
            in_channels=channels,
            out_channels=channels,
            freq_dim=freq_dim,
        )
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

    scheduler: Any = UniPCMultistepScheduler(  # type: ignore[no-untyped-call]
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.save_pretrained(path / "scheduler")
    index: dict[str, Any] = {
        "_class_name": "WanPipeline",
        "_diffusers_version": diffusers_version,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": [None, None],
    }
    _write_json(path / "model_index.json", index)
    return path


def make_router(
    path: str | Path,
    geometry: AttentionGeometry,
    *,
    layers: int = 3,
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

    Returns:
        `path`.
    """
    path = Path(path)
    generator = torch.Generator().manual_seed(seed)
    dim = heads * head_dim
    state: dict[str, Tensor] = {}
    for layer in range(layers):
        prefix = f"blocks.{layer}.router.linear."
        # SiLU of a normal variable has a root mean square near 0.6: logits of the timestep have a spread near 1.
        weight = torch.randn(heads * BRANCHES, dim, generator=generator) * (1.6 / math.sqrt(dim))
        state[prefix + "weight"] = weight.to(dtype)  # [3 N, E]
        state[prefix + "bias"] = torch.randn(heads * BRANCHES, generator=generator).to(dtype)  # [3 N]
    folder = path / "ckpt" / f"step-{ROUTER_STEP:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "router.pt")
    config = {
        "name": "WanTransformer3DModel",
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


def _random_weights(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        yield name, _random_weight(name, shape, generator).to(dtype)


def _random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    tensor = torch.randn(shape, generator=generator)
    if name.endswith("scale_shift_table"):
        return tensor.mul_(0.5)  # modulation of order 1, as in trained models: attention reaches the output
    if name.endswith("bias"):
        return tensor.mul_(0.1)
    if ".norm" in name:
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
