# SPDX-License-Identifier: Apache-2.0
"""LoRA files from a checkpoint to an exported file and a bundle: fused, named there, verified; or refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.commands.options import sources_of
from vorta_trt.export import export_onnx, onnx_export, read_metadata
from vorta_trt.export.metadata import LoraRecord
from vorta_trt.export.names import TRANSPOSED, component_file
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.export.refit_weights import changed_parameters, refit_weights
from vorta_trt.model import RoutedTransformer
from vorta_trt.model.constants import TRANSFORMER_2
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.experts import BY_NOISE
from vorta_trt.model.lora.spec import LoraSpec
from vorta_trt.model.timestep_path import TimestepPath
from vorta_trt.runtime.sampling.path_source import timestep_path_of
from vorta_trt.runtime.verification.verify import check_lora, verify

from ..tiny import WAN, Tiny, TinyExperts

FREQUENCIES = int(WAN["freq_dim"])
WIDTH = int(WAN["heads"]) * int(WAN["head_dim"])
QUERY, TIME = "blocks.0.self_attn.q", "time_embedding.0"


def lora(path: Path, *, module: str = QUERY, inputs: int = WIDTH, outputs: int = WIDTH) -> Path:
    """A LoRA of one module, with alpha and a difference of its bias."""
    generator = torch.Generator()
    print(f"seed {generator.seed()}")
    tensors = {
        "lora_down.weight": torch.randn(3, inputs, generator=generator),
        "lora_up.weight": torch.randn(outputs, 3, generator=generator) * 0.1,
        "alpha": torch.tensor(2.0),
        "diff_b": torch.randn(outputs, generator=generator) * 0.1,
    }
    save_file({f"diffusion_model.{module}.{name}": tensor for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[LoraSpec, LoraSpec]:
    """One of the attention, one of the timestep embedder, which is always loaded."""
    first = lora(tmp_path / "first.safetensors")
    second = lora(tmp_path / "second.safetensors", module=TIME, inputs=FREQUENCIES)
    return LoraSpec(first, 0.5), LoraSpec(second, -1.5)


def as_stored(path: Path) -> dict[str, Any]:
    """The weights of an exported file, by their names there."""
    file = read_onnx(path)
    return {tensor.name: np.array(file.read_weight(tensor)) for tensor in file.model.graph.initializer}


def onnx_weights(path: Path) -> dict[str, Any]:
    """The same as in torch."""
    return {
        name.removesuffix(TRANSPOSED): array.T if name.endswith(TRANSPOSED) else array
        for name, array in as_stored(path).items()
    }


def test_from_checkpoint_to_file(tiny_wan: Tiny, two: tuple[LoraSpec, LoraSpec], tmp_path: Path) -> None:
    """The exported weights are those of diffusers' layers with the LoRA added; nothing else changes."""
    base = RoutedTransformer.from_pretrained(tiny_wan.checkpoint)
    parameters = dict(base.named_parameters())
    model = tiny_wan.model(lora=two, materialize=False)
    assert not model.materialized
    path = export_onnx(model, tmp_path / "model.onnx", "fp32")
    written, plain = onnx_weights(path), onnx_weights(tiny_wan.onnx)
    expected = {}
    for spec, name in zip(two, ("blocks.0.attn1.to_q", "condition_embedder.time_embedder.linear_1"), strict=True):
        tensors = load_file(spec.path)
        down, up, bias = (next(t for key, t in tensors.items() if mark in key) for mark in ("_down", "_up", "diff_b"))
        expected[f"{name}.weight"] = parameters[f"{name}.weight"] + spec.strength * (2 / 3) * up @ down
        expected[f"{name}.bias"] = parameters[f"{name}.bias"] + spec.strength * bias
    assert written.keys() == plain.keys() and expected.keys() <= written.keys()
    for name, array in written.items():
        if name in expected:
            np.testing.assert_allclose(array, expected[name].detach().numpy(), rtol=0, atol=1e-6)
        else:
            np.testing.assert_array_equal(array, plain[name])

    metadata = read_metadata(path)
    hashes = [hashlib.sha256(spec.path.read_bytes()).hexdigest() for spec in two]
    assert [(it.name, it.sha256, it.strength) for it in metadata.lora] == [
        ("first.safetensors", hashes[0], 0.5),
        ("second.safetensors", hashes[1], -1.5),
    ]
    assert read_metadata(tiny_wan.onnx).lora == ()
    assert metadata.checkpoint == tiny_wan.checkpoint.name
    fused, exported = TimestepPath.from_model(model), timestep_path_of(path)
    assert exported is not None and fused.checkpoint is None and exported.checkpoint is None  # no published one now
    times = [900.0, 100.0]
    assert torch.equal(fused.embedding(times), exported.embedding(times))
    assert not torch.equal(fused.embedding(times), TimestepPath.from_model(tiny_wan.model()).embedding(times))

    assert changed_parameters(model) == sorted(expected) and not changed_parameters(base)
    stored = as_stored(path)
    refit = dict(refit_weights(model, "fp32", stored))
    assert len(refit) == len(expected) and refit.keys() <= stored.keys()
    for name, value in refit.items():
        np.testing.assert_array_equal(value.numpy(), stored[name])
    back = dict(refit_weights(tiny_wan.model(materialize=False), "fp32", stored, also=changed_parameters(model)))
    plain = as_stored(tiny_wan.onnx)
    assert back.keys() == refit.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value.numpy(), plain[name])
    with pytest.raises(ValueError, match="parameter blocks.0.attn1.to_q.bias: is no weight of the exported file"):
        list(refit_weights(model, "fp32", []))

    report = verify(path, tiny_wan.checkpoint, tiny_wan.router, lora=two, cases=["router, tau 0.3"])
    assert report.passed
    refused = r"was exported with first.safetensors, strength 0.5, sha256 .* give --lora"
    for other in ((), two[:1], (two[1], two[0]), (two[0], LoraSpec(two[1].path, 1.5))):
        with pytest.raises(ValueError, match=refused):
            verify(path, tiny_wan.checkpoint, tiny_wan.router, lora=other)
    with pytest.raises(ValueError, match="was exported with no LoRA, so .* leave --lora out"):
        verify(tiny_wan.onnx, tiny_wan.checkpoint, tiny_wan.router, lora=two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_changed_weight_is_rounded_once(tiny_wan: Tiny, two: tuple[LoraSpec, LoraSpec], dtype: torch.dtype) -> None:
    exact = RoutedTransformer.from_pretrained(tiny_wan.checkpoint, lora=two)
    rounded = RoutedTransformer.from_pretrained(tiny_wan.checkpoint, lora=two, dtype=dtype)
    plain = RoutedTransformer.from_pretrained(tiny_wan.checkpoint, dtype=dtype)
    for name, parameter in rounded.named_parameters():
        assert torch.equal(parameter, exact.get_parameter(name).to(parameter.dtype))
        assert parameter.dtype == plain.get_parameter(name).dtype
    assert not torch.equal(rounded.get_parameter("blocks.0.attn1.to_q.weight"), plain.blocks[0].attn1.to_q.weight)  # type: ignore[index,union-attr]


def test_one_tensor_at_a_time(tiny_wan: Tiny, two: tuple[LoraSpec, LoraSpec]) -> None:
    """Weights that no LoRA changes stay views into the mapped file; nothing fused is kept."""
    model = tiny_wan.model(lora=two, materialize=False)
    reader = model._reader
    assert reader is not None
    first, second = (reader.tensor("blocks.0.attn1.to_q.weight") for _ in range(2))
    assert first.data_ptr() != second.data_ptr() and torch.equal(first, second)
    same = {reader.tensor("blocks.1.attn1.to_q.weight").data_ptr() for _ in range(2)}
    assert len(same) == 1
    model.unmap_checkpoint()
    assert torch.equal(reader.tensor("blocks.0.attn1.to_q.weight"), first)


def test_what_overflows_is_refused(tiny_wan: Tiny, tmp_path: Path) -> None:
    huge = {"lora_down.weight": torch.full((1, WIDTH), 1e38), "lora_up.weight": torch.full((WIDTH, 1), 1e38)}
    path = tmp_path / "lora.safetensors"
    save_file({f"diffusion_model.{QUERY}.{name}": tensor for name, tensor in huge.items()}, path)
    model = tiny_wan.model(lora=[LoraSpec(path)], materialize=False)
    with pytest.raises(CheckpointError, match="lora.safetensors: blocks.0.attn1.to_q.weight is not finite with it"):
        model.load_parameter("blocks.0.attn1.to_q.weight")


@pytest.mark.parametrize("external", [False, True])
def test_an_error_of_reading_a_weight_is_told_as_it_is(tmp_path: Path, external: bool) -> None:
    """Of the exporter's library it came wrapped in a text of the whole graph."""

    def refuse() -> ir.TensorProtocol:
        raise CheckpointError("lora.safetensors: not finite; use another strength")

    weight = ir.LazyTensor(refuse, dtype=ir.DataType.FLOAT, shape=ir.Shape([300]), name="weight")
    graph = ir.Graph(
        [], [], nodes=[], initializers=[ir.Value(name="weight", const_value=weight)], opset_imports={"": 23}
    )
    model = ir.Model(graph, ir_version=10)
    with pytest.raises(CheckpointError, match="^lora.safetensors: not finite; use another strength$"):
        onnx_export.write_graph(model, tmp_path / "model.onnx", 1200, external, lambda *_: None)


def test_routes_of_the_fused_model(tiny_wan: Tiny, tmp_path: Path) -> None:
    """A LoRA of the timestep embedder changes what the routers see."""
    path = lora(tmp_path / "lora.safetensors", module=TIME, inputs=FREQUENCIES)
    scores = []
    for options in ((), ("--lora", f"{path}:20")):
        command = [
            "routes",
            str(tiny_wan.checkpoint),
            "--router",
            str(tiny_wan.router),
            "--steps",
            "4",
            *options,
            "--json",
        ]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        scores.append(json.loads(result.stdout)["scores"])
    assert scores[0] != scores[1]


def bad_file(tmp_path: Path) -> Path:
    return lora(tmp_path / "other.safetensors", outputs=WIDTH + 1)


def test_commands(tiny_wan: Tiny, tmp_path: Path) -> None:
    """`export` and `verify` take --lora, `build` puts it into the manifest, `inspect` tells it."""
    runner, out = CliRunner(), tmp_path / "out"
    out.mkdir()
    path = lora(tmp_path / "lora.safetensors")
    source = [str(tiny_wan.checkpoint), "--router", str(tiny_wan.router)]

    result = runner.invoke(app, ["export", *source, "--lora", str(bad_file(tmp_path)), "-o", str(out / "x.onnx")])
    assert result.exit_code == 1 and "which does not fit blocks.0.attn1.to_q.weight" in result.output.replace("\n", " ")
    result = runner.invoke(app, ["build", *source, "--lora", str(bad_file(tmp_path)), "-o", str(out / "x.bundle")])
    assert result.exit_code == 1
    result = runner.invoke(app, ["export", *source, "--lora", f"{path}:0", "-o", str(out / "x.onnx")])
    assert result.exit_code == 2 and "--lora" in result.output
    assert not list(out.iterdir())
    result = runner.invoke(app, ["build", str(tiny_wan.onnx), "--lora", str(path), "-o", str(out / "x.bundle")])
    assert result.exit_code == 2 and "--lora belongs to checkpoints" in result.output.replace("\n", " ")

    onnx = out / "model.onnx"
    options = ["--lora", f"{path}:0.5", "--precision", "fp16", "-o", str(onnx), "--json"]
    result = runner.invoke(app, ["export", *source, *options])
    assert result.exit_code == 0, result.output
    assert [entry["strength"] for entry in json.loads(result.stdout)["metadata"]["lora"]] == [0.5]
    result = runner.invoke(app, ["build", str(onnx), "-o", str(out / "model.bundle"), "--json"])
    assert result.exit_code == 0, result.output
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(result.stdout)["manifest"]["metadata"]["lora"] == [
        {"name": "lora.safetensors", "sha256": digest, "strength": 0.5}
    ]
    for what in ("model.bundle", "model.onnx"):
        result = runner.invoke(app, ["inspect", str(out / what)])
        assert f"LoRA       lora.safetensors, strength 0.5, sha256 {digest}" in result.output


def test_each_of_two_experts_has_its_own(
    tiny_experts: TinyExperts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = (
        lora(tmp_path / "high.safetensors"),
        lora(tmp_path / "low.safetensors", module=TIME, inputs=FREQUENCIES),
    )
    given = [f"high={path}:0.5", f"low={other}", f"high={other}:2"]
    routers = [f"{noise}={tiny_experts.routers[component]}" for noise, component in BY_NOISE.items()]
    high, low = sources_of(tiny_experts.checkpoint, routers, None, "fp32", None, lora=given)
    assert high.lora == (LoraSpec(path, 0.5), LoraSpec(other, 2.0)) and low.lora == (LoraSpec(other, 1.0),)
    assert not caplog.messages
    for source in (high, low):
        fused, base = source.model(), replace(source, lora=()).model()
        changed = {
            name
            for name, _ in fused.named_parameters()
            if "router" not in name and not torch.equal(fused.load_parameter(name), base.load_parameter(name))
        }
        assert changed == set(changed_parameters(fused))
        assert [report.name for report in fused.lora] == [spec.path.name for spec in source.lora]
    sources_of(tiny_experts.checkpoint, routers, None, "fp32", None, lora=given[:1])
    assert "none is given for transformer_2 (low noise), whose weights stay as they are" in caplog.messages[-1]


@pytest.mark.parametrize("command", ["export", "build"])
def test_a_lora_of_no_expert_or_of_a_missing_one(
    tiny_wan: Tiny, tiny_experts: TinyExperts, tmp_path: Path, command: str
) -> None:
    path, out = lora(tmp_path / "lora.safetensors"), tmp_path / "out"
    out.mkdir()
    for checkpoint, text, problem in (
        (tiny_experts.checkpoint, str(path), "the model has two experts; say for which it is"),
        (tiny_wan.checkpoint, f"low={path}", "the model has one transformer, and no experts"),
    ):
        options = [str(checkpoint), "--size", "9x64x96", "--lora", text, "-o", str(out / "x.onnx")]
        result = CliRunner().invoke(app, [command, *options])
        assert result.exit_code == 2 and problem in " ".join(result.output.replace("│", " ").split())
        assert not list(out.iterdir())


def test_the_lora_of_one_of_two_experts_is_asked_for(tiny_experts: TinyExperts) -> None:
    """With what says whose it is."""
    metadata = read_metadata(component_file(tiny_experts.onnx, TRANSFORMER_2))
    record = LoraRecord(name="first.safetensors", sha256="0" * 64, strength=0.5)
    message = r"onnx, transformer_2 \(low noise\): was exported with .* give --lora low=first.safetensors:0.5$"
    with pytest.raises(ValueError, match=message):
        check_lora(tiny_experts.onnx, metadata, [record], [])
