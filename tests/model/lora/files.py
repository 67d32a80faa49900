# SPDX-License-Identifier: Apache-2.0
"""Synthetic LoRA files in the layouts that are in use, and tiny models of diffusers that they are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vorta_trt.model.families import family_of_class
from vorta_trt.model.lora.keys import ModuleNames
from vorta_trt.model.lora.lora_file import LoraFile
from vorta_trt.model.lora.spec import LoraSpec

RANK = 4
LAYERS = 2
WAN = {
    "num_layers": LAYERS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 48,
    "text_dim": 24,
    "freq_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
}
WAN_IMAGE = {**WAN, "in_channels": 12, "image_dim": 20, "added_kv_proj_dim": 32}
HUNYUAN_VIDEO = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_embed_dim": 24,
    "pooled_projection_dim": 20,
    "in_channels": 4,
    "out_channels": 4,
    "rope_axes_dim": (4, 6, 6),
    "guidance_embeds": True,
}
HUNYUAN_VIDEO_15 = {
    "num_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_embed_dim": 24,
    "text_embed_2_dim": 20,
    "image_embed_dim": 28,
    "in_channels": 5,
    "out_channels": 2,
    "rope_axes_dim": (4, 6, 6),
    "use_meanflow": True,
}
Tensors = dict[str, Tensor]


def seeded() -> torch.Generator:
    """A generator with a fresh seed, which is printed."""
    generator = torch.Generator()
    print(f"seed {generator.seed()}")
    return generator


def model(kind: str, generator: torch.Generator, **config: Any) -> Any:
    """A transformer of diffusers with random weights and biases."""
    import diffusers

    made = getattr(diffusers, kind)(**config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return made.eval()


def names_of(transformer: Any) -> ModuleNames:
    """The names of the modules of a transformer of diffusers."""
    family = family_of_class(type(transformer).__name__)
    assert family is not None
    return ModuleNames(family, family.authors_names(transformer.config), transformer.state_dict())


def lora_file(path: Path, transformer: Any, strength: float = 1.0) -> LoraFile:
    """The file, opened for a transformer of diffusers."""
    state = transformer.state_dict()
    return LoraFile(LoraSpec(path, strength), names_of(transformer), lambda name: tuple(state[name].shape), "the model")


def fused(path: Path, transformer: Any, strength: float = 1.0) -> Tensors:
    """All parameters of a transformer of diffusers with a LoRA added to them by vorta-trt."""
    file = lora_file(path, transformer, strength)
    state = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    for name, changes in file.changes.items():
        for change in changes:
            change.add_to(state[name])
    return state


class Writer:
    """Draws the tensors of a LoRA file.

    Args:
        transformer: Model that the file is for.
        generator: Generator of the values.
    """

    def __init__(self, transformer: Any, generator: torch.Generator) -> None:
        self.names = names_of(transformer)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
        self.generator = generator

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) * 0.3

    def weight_shape(self, module: str) -> tuple[int, ...]:
        """Shape of a module's weight, by its name in the file; in diffusers it may be several modules."""
        rows = self.names.find(module)
        assert rows is not None, module
        parameters = [self.names.parameter(each.module) for each in rows]
        shapes = [self.shapes[name] for name in parameters if name is not None]
        assert len(shapes) == len(rows), f"{module} is not in the model"
        return (sum(shape[0] // each.parts for shape, each in zip(shapes, rows, strict=True)), *shapes[0][1:])

    def low_rank(self, modules: Iterable[str], down: str, up: str, rank: int = RANK) -> Tensors:
        """Low-rank matrices of modules, by the modules' names without a prefix."""
        tensors: Tensors = {}
        for module in modules:
            outputs, *inputs = self.weight_shape(module)
            tensors[f"{module}{down}"] = self.random(rank, *inputs)
            tensors[f"{module}{up}"] = self.random(outputs, rank, *[1] * (len(inputs) - 1))
        return tensors

    def alphas(self, modules: Iterable[str]) -> Tensors:
        return {f"{module}.alpha": torch.rand((), generator=self.generator) * 8 + 0.5 for module in modules}

    def differences(self, modules: Iterable[str], ending: str = ".diff_b") -> Tensors:
        """Differences of the modules' biases, or of their weights with another ending."""
        return {
            f"{module}{ending}": self.random(*self.weight_shape(module)[: 1 if ending == ".diff_b" else None])
            for module in modules
        }


def save(path: Path, tensors: Mapping[str, Tensor], prefix: str = "", metadata: dict[str, str] | None = None) -> Path:
    save_file({f"{prefix}{key}": tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def with_underscores(tensors: Mapping[str, Tensor]) -> Tensors:
    """The keys as kohya's trainers write them."""
    found: Tensors = {}
    for key, tensor in tensors.items():
        ending = next(end for end in (".lora_down.weight", ".lora_up.weight", ".alpha") if key.endswith(end))
        found["lora_unet_" + key.removesuffix(ending).replace(".", "_") + ending] = tensor
    return found
