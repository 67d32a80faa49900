# SPDX-License-Identifier: Apache-2.0
"""`FusedReader` on checkpoints in every form: the same fused weights, whatever the weights are stored as."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vorta_trt.model import CheckpointReader, RoutedTransformer
from vorta_trt.model.lora.fused import FusedReader
from vorta_trt.model.lora.spec import LoraSpec
from vorta_trt.model.random_checkpoint import make_checkpoint

from ..original_names import wan as authors_name
from .files import seeded

SIZES = {"layers": 1, "heads": 1, "head_dim": 128, "ffn_dim": 64, "text_dim": 32, "channels": 4, "freq_dim": 32}
KEY, IMAGE = "blocks.0.cross_attn.k", "blocks.0.cross_attn.k_img"


def lora(path: Path, *modules: str) -> LoraSpec:
    generator = seeded()
    tensors = {}
    for module in modules:
        tensors[f"diffusion_model.{module}.lora_down.weight"] = torch.randn(2, 128, generator=generator)
        tensors[f"diffusion_model.{module}.lora_up.weight"] = torch.randn(128, 2, generator=generator)
    save_file(tensors, path)
    return LoraSpec(path, 0.5)


def product(spec: LoraSpec, module: str) -> torch.Tensor:
    tensors = load_file(spec.path)
    down, up = (tensors[f"diffusion_model.{module}.lora_{name}.weight"] for name in ("down", "up"))
    return spec.strength * up @ down


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2], ids=["float32", "float8"])
def test_a_single_file_of_comfyui(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "wan", **SIZES)
    state = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    state = {name: tensor.to(dtype) if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    file = tmp_path / "model.safetensors"
    save_file({authors_name(name): tensor for name, tensor in state.items()}, file)
    spec = lora(tmp_path / "lora.safetensors", KEY)
    with FusedReader(file, [spec]) as reader:
        changed = "blocks.0.attn2.to_k.weight"
        assert reader.names() == sorted(state) and len(reader.reports) == 1
        for name, tensor in state.items():
            expected = tensor.float() + (product(spec, KEY) if name == changed else 0)
            torch.testing.assert_close(reader.tensor(name), expected, rtol=0, atol=1e-6)


def test_an_image_model(tmp_path: Path) -> None:
    """The LoRA of its image projections is used, and both ways of loading give it."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "wan", **SIZES, image="embedding")
    spec = lora(tmp_path / "lora.safetensors", KEY, IMAGE)
    with CheckpointReader(checkpoint) as reader:
        base = {name: reader.tensor(name).clone() for name in reader.names()}
    loaded = RoutedTransformer.from_pretrained(checkpoint, lora=[spec])
    on_disk = RoutedTransformer.from_pretrained(checkpoint, lora=[spec], materialize=False)
    assert not loaded.lora[0].unused
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, on_disk.load_parameter(name))
        module = {"blocks.0.attn2.to_k.weight": KEY, "blocks.0.attn2.add_k_proj.weight": IMAGE}.get(name)
        expected = base[name] + (0 if module is None else product(spec, module))
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)
