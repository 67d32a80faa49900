# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with random weights and the files of real ones, for `vorta-trt demo`, tests and measurements of size.

`make_checkpoint` writes what diffusers' `save_pretrained` of a pipeline writes; small models go through it, large ones
are streamed shard by shard, so that a 14B checkpoint needs one shard of memory. `make_router` writes the layout of the
published routers. The models themselves are made by each family's random.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.constants import COMPONENTS
from vorta_trt.model.experts import BOUNDARY
from vorta_trt.model.families import DEFAULT_FAMILY, get_family
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.router import BRANCHES
from vorta_trt.model.safetensors_files import INDEX, WEIGHTS

STREAM_ABOVE_BYTES = 1 << 30
SHARD_BYTES = 2 << 30
ROUTER_STEP = 100  # as in the published checkpoints


def make_checkpoint(path: str | Path, family: str = DEFAULT_FAMILY, **sizes: Any) -> Path:
    """A pipeline folder of a family: model_index.json, transformer/ and scheduler/, the latter two by diffusers.

    Weights are random but of the size that keeps activations near 1, so that errors show as they would in a real model.

    Args:
        path: path of the folder.
        family: name of the model family.
        sizes: sizes of the model, see `make_checkpoint` in the family's random.py.

    Returns:
        `path`.
    """
    made: Path = get_family(family).load("random").make_checkpoint(path, **sizes)
    return made


def write_pipeline(
    path: Path,
    family: str,
    model: Any,
    scheduler: Any,
    dtype: torch.dtype,
    seed: int,
    shard_bytes: int,
    boundary_ratio: float | None = None,
) -> Path:
    """Gives `model` (on meta) random weights and writes the folder; text encoders and VAE are left out.

    With a `boundary_ratio`, there are two experts with different weights.
    """
    from diffusers import __version__ as diffusers_version

    experts = COMPONENTS[:1] if boundary_ratio is None else COMPONENTS
    for number, component in enumerate(experts):
        _write_transformer(path / component, model, dtype, seed + number, shard_bytes)
    scheduler.save_pretrained(path / "scheduler")
    kind = get_family(family).pipeline_kinds(model.config)[0]
    index: dict[str, Any] = {
        "_class_name": kind.pipeline,
        "_diffusers_version": diffusers_version,
        "scheduler": ["diffusers", type(scheduler).__name__],
        **{component: ["diffusers", type(model).__name__] for component in experts},
        **{part: [None, None] for part in kind.components},
        **kind.settings,
        **({} if boundary_ratio is None else {BOUNDARY: boundary_ratio}),
    }
    _write_json(path / "model_index.json", dict(sorted(index.items())))
    return path


def _write_transformer(folder: Path, model: Any, dtype: torch.dtype, seed: int, shard_bytes: int) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
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


def make_router(
    path: str | Path,
    geometry: AttentionGeometry,
    family: str = DEFAULT_FAMILY,
    *,
    layers: int = 3,
    single_layers: int = 0,
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
        path: path of the folder.
        geometry: geometry that the router was trained with.
        family: name of the model family.
        layers: blocks of the model's first stack.
        single_layers: blocks of its second stack, if it has one.
        heads: N.
        head_dim: D.
        video: frames, height and width in pixels of the training videos; None if the config does not say.
        reduction_rate: share of a bucket's tokens that are dropped.
        dtype: data type of the weights.
        seed: seed of the random weights.

    Returns:
        `path`.
    """
    path = Path(path)
    facts = get_family(family)
    stacks = dict(zip(facts.router_stacks, (layers, single_layers), strict=False))
    state = random_router_state(stacks, heads, heads * head_dim, dtype, seed)
    folder = path / "ckpt" / f"step-{ROUTER_STEP:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "router.pt")
    config = {
        "name": facts.transformer_class,
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
    """The weights of a router for these stacks of blocks, as in `make_router`: [3 N, E] and [3 N] per block."""
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
