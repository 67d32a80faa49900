# SPDX-License-Identifier: Apache-2.0
"""Linear layers with e4m3 weights: rounding, the choice of layers, loading one at a time, checkpoints of ModelOpt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from vorta_trt.model import AttentionGeometry, CheckpointReader, RoutedTransformer
from vorta_trt.model.block_operators import quantize_rows
from vorta_trt.model.block_operators.references import FLOAT8, fp8_linear, quantize
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.fp8_linear import Fp8Linear, fp8_layers
from vorta_trt.model.linear_choice import collapsed
from vorta_trt.model.random_checkpoint import make_checkpoint
from vorta_trt.model.safetensors_files import WEIGHTS

SIZES = {"layers": 2, "heads": 2, "head_dim": 16, "text_dim": 32, "channels": 4, "ffn_dim": 64, "freq_dim": 32}
GEOMETRY = AttentionGeometry.for_video(9, 64, 96, "wan")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("fp8") / "model", "wan", dtype=torch.bfloat16, **SIZES)
    return folder / "transformer"


def test_the_module_takes_any_leading_axes_and_no_bias() -> None:
    layer = Fp8Linear(48, 32, bias=False)
    matrix, tokens = torch.randn(32, 48), torch.randn(2, 3, 7, 48)
    weight, scale = quantize_rows(matrix)
    layer.load_state_dict({"weight": weight, "weight_scale": scale.flatten()})
    expected = fp8_linear(*quantize(tokens.flatten(0, 1)), weight, scale.flatten(), torch.zeros(32), "none")
    for rows, wanted in (
        (tokens, expected.view(2, 3, 7, 32)),
        (tokens[0, 0], expected[0]),
        (tokens[0, 0, 0], expected[0, 0]),
    ):
        torch.testing.assert_close(layer(rows), wanted)
    assert float((expected - functional.linear(tokens, matrix).flatten(0, 1)).norm() / expected.norm()) < 0.06


def _load(checkpoint: Path, **options: Any) -> RoutedTransformer:
    return RoutedTransformer.from_pretrained(checkpoint, geometry=GEOMETRY, dtype=torch.bfloat16, **options)


def test_layers_of_the_blocks_have_fp8_weights(checkpoint: Path) -> None:
    model, exact = _load(checkpoint, linear_precision="fp8"), _load(checkpoint)
    assert (model.linear_precision, exact.linear_precision) == ("fp8", "same")
    assert model.linears is not None
    assert collapsed(model.linears.fp8) == dict.fromkeys(
        [
            *(f"blocks.*.attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
            *(f"blocks.*.{name}" for name in ("attn2.to_q", "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2")),
        ],
        2,
    )
    assert {"proj_out", "condition_embedder.time_embedder.linear_1"} < set(model.linears.kept)
    layers = fp8_layers(model)
    assert set(layers) == set(model.linears.fp8)
    for name, layer in layers.items():
        weight: torch.Tensor = exact.get_submodule(name).weight  # type: ignore[assignment]
        expected = quantize_rows(weight)
        assert torch.equal(layer.weight.float(), expected[0].float()) and torch.equal(
            layer.weight_scale, expected[1].flatten()
        )
    inputs = exact.inputs(seed=1)
    with torch.inference_mode():
        found, wanted = model(**inputs)[0].float(), exact(**inputs)[0].float()
    error = float((found - wanted).norm() / wanted.norm())
    assert 0 < error < 0.1


def test_weights_on_disk_are_rounded_when_they_are_asked_for(checkpoint: Path) -> None:
    loaded, placeholders = (_load(checkpoint, linear_precision="fp8", materialize=each) for each in (True, False))
    for name, parameter in loaded.named_parameters():
        found = placeholders.load_parameter(name)
        assert found.dtype == parameter.dtype and torch.equal(found.float(), parameter.float()), name
    layer = next(iter(fp8_layers(placeholders).values()))
    assert layer.weight.stride() == (0, 0)


def test_the_list_of_layers_can_be_changed(checkpoint: Path) -> None:
    model = _load(checkpoint, linear_precision="fp8", linear_keep=["default", "blocks.0.*", "*.ffn.*"])
    assert model.linears is not None
    assert all(name.startswith("blocks.1.attn") for name in model.linears.fp8)
    everything = _load(checkpoint, linear_precision="fp8", linear_keep=["*.to_q"]).linears
    assert everything is not None and {"condition_embedder.text_embedder.linear_1"} < set(everything.fp8)
    assert {"condition_embedder.time_embedder.linear_1", "proj_out"} < set(everything.kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear_precision": "int8"}, "linear_precision 'int8': must be 'same' or 'fp8'"),
        ({"linear_keep": ["*"]}, "with linear_precision 'same'"),
        ({"linear_precision": "fp8", "linear_keep": ["*"]}, "none of the .* linear layers is left"),
        ({"linear_precision": "fp8", "linear_keep": ["blocks.7.*"]}, "'blocks.7.\\*': matches no linear layer"),
    ],
)
def test_refused_options(checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _load(checkpoint, **options)


# -- checkpoints of ModelOpt -------------------------------------------------------------------------------------------


def _model_opt(
    checkpoint: Path,
    folder: Path,
    change: Callable[[dict[str, torch.Tensor]], object] = lambda tensors: None,
    said: Any = None,
    names: tuple[str, str] = ("weight_scale", "input_scale"),
) -> Path:
    """The checkpoint as `export_hf_checkpoint` writes it: a scale for each tensor, linear layers of blocks alone."""
    tensors = load_file(checkpoint / WEIGHTS)
    for name in [name for name in tensors if name.startswith("blocks.") and name.endswith("ffn.net.2.weight")]:
        layer, weight = name.removesuffix(".weight"), tensors[name].float()
        scale = weight.abs().max() / 448
        tensors[name] = (weight / scale).to(FLOAT8)
        tensors[f"{layer}.{names[0]}"], tensors[f"{layer}.{names[1]}"] = scale, torch.tensor(0.25)
    change(tensors)
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = said or {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["proj_out"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_model_opt_weights_are_used_as_they_are(checkpoint: Path, tmp_path: Path) -> None:
    folder = _model_opt(checkpoint, tmp_path / "transformer")
    stored = load_file(folder / WEIGHTS)
    model, exact = _load(folder, linear_precision="fp8"), _load(folder)
    assert model.linears is not None and model.linears.fp8 == ("blocks.0.ffn.net.2", "blocks.1.ffn.net.2")
    assert model.float8_weights == 2 and model.input_scales == dict.fromkeys(model.linears.fp8, 0.25)
    for name, layer in fp8_layers(model).items():
        assert torch.equal(layer.weight.float(), stored[f"{name}.weight"].float())
        assert torch.equal(layer.weight_scale, stored[f"{name}.weight_scale"].expand(32))
        multiplied: Any = exact.get_submodule(name).weight
        assert torch.equal(multiplied, (layer.weight.float() * layer.weight_scale[:, None]).bfloat16())


def test_model_opt_as_diffusers_saves_it(checkpoint: Path, tmp_path: Path) -> None:
    folder = _model_opt(
        checkpoint,
        tmp_path / "transformer",
        said={"quant_method": "modelopt", "quant_type": "FP8"},
        names=("weight_quantizer._scale", "input_quantizer._amax"),
    )
    with CheckpointReader(folder) as reader:
        assert reader.input_scales == dict.fromkeys(("blocks.0.ffn.net.2", "blocks.1.ffn.net.2"), 0.25 / 448)
        assert reader.float8_weight("blocks.0.ffn.net.2.weight") is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.ffn.net.2.weight_scale"), "1 of its 2 weights in float8 have no factor, first bl"),
        (lambda t: t.pop("blocks.0.ffn.net.2.input_scale"), "1 of its 2 layers in float8 have no scale of their input"),
        (lambda t: t.update({"blocks.0.ffn.net.2.weight_scale": torch.tensor(float("nan"))}), "not a positive number"),
        (lambda t: t.update({"blocks.0.ffn.net.2.input_scale": torch.tensor(-1.0)}), "not a positive number"),
        (
            lambda t: (
                [t.update({k: v.bfloat16()}) for k, v in list(t.items()) if v.dtype == FLOAT8]
                + [t.pop(k) for k in list(t) if k.endswith("_scale")]
            ),
            "says that weights are in fp8, and none is",
        ),
    ],
)
def test_damaged_model_opt_checkpoints(checkpoint: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = _model_opt(checkpoint, tmp_path / "transformer", change)
    with pytest.raises(CheckpointError, match=message):
        _load(folder, linear_precision="fp8")


@pytest.mark.parametrize(
    "said", [{"quant_method": "modelopt", "quant_algo": "NVFP4"}, {"quant_method": "bitsandbytes"}, "gptq"]
)
def test_other_quantised_checkpoints(checkpoint: Path, tmp_path: Path, said: Any) -> None:
    folder = _model_opt(checkpoint, tmp_path / "transformer", said=said)
    with pytest.raises(CheckpointError, match="says that the weights are quantised"):
        _load(folder)


def test_a_layer_says_what_it_is() -> None:
    assert repr(Fp8Linear(32, 16, bias=False)) == "Fp8Linear(in_features=32, out_features=16, bias=False)"
