# SPDX-License-Identifier: Apache-2.0
"""Bundles of models whose linear layers have fp8 products: built by TensorRT-RTX without a GPU, or refused before."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.engines import build_engine
from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.flavours import get_flavour
from vorta_trt.engines.fp8 import check_linears
from vorta_trt.engines.gpu import Target
from vorta_trt.engines.inspect import inspect_bundle
from vorta_trt.export import read_metadata
from vorta_trt.export.metadata import KEY
from vorta_trt.export.native_operators import with_native_operators
from vorta_trt.model.calibration.linears import LinearCalibration, LinearProbe
from vorta_trt.model.precision import numpy_dtype
from vorta_trt.model.random_checkpoint import make_checkpoint
from vorta_trt.model.video_size import VideoSize
from vorta_trt.plugins.gpu import ComputeCapability
from vorta_trt.plugins.operator_schema import FP8_LINEAR, NORM_MODULATE_QUANTIZE, OPERATORS, QUANTIZE, ROUTED_ATTENTION
from vorta_trt.runtime.engine import Engine
from vorta_trt.runtime.from_checkpoint import Source, build_checkpoint, export_checkpoint

pytestmark = pytest.mark.skipif(not get_flavour("rtx").can_build(), reason="tensorrt_rtx is not installed")

SIZES = {"layers": 2, "heads": 2, "head_dim": 64, "text_dim": 32, "channels": 4, "ffn_dim": 64, "freq_dim": 32}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("fp8") / "model", "wan", **SIZES)
    return Source(checkpoint, size=VideoSize(9, 64, 96), linear_precision="fp8", linear_keep=("default", "*.ffn.*"))


def test_gpus_without_e4m3_are_refused_before_the_export(source: Source, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(BuildError, match="needs GPUs of compute capability 8.9 or newer, .* 8.0") as why:
        build_checkpoint(source, tmp_path / "fp8.bundle", lambda what, *_: told.append(what))
    assert "--compute-capability 8.9" in str(why.value)
    assert told == ["loading the checkpoint"] and not list(tmp_path.iterdir())


def test_refit_is_refused() -> None:
    target = Target((ComputeCapability(9, 0),), and_newer=False)
    for linears in ("same", "fp8"):
        with nullcontext() if linears == "same" else pytest.raises(BuildError, match="fp8 with refit"):
            check_linears(Path("model"), linears, False, target, refit=True, strict=True)


@pytest.fixture(scope="module")
def calibrated(source: Source) -> Source:
    """The source with what a probe found in one pass."""
    model, probe = replace(source, precision="fp32", linear_precision="same", linear_keep=None), LinearProbe()
    loaded = model.model(materialize=True)
    with torch.inference_mode(), probe.watching(loaded):
        loaded(**loaded.inputs(seed=5))
    path = source.checkpoint.parent / "linears.json"
    probe.result(loaded, None).save(path)
    return replace(source, linear_calibration=path, precision="fp16")


@pytest.fixture(scope="module")
def exported(calibrated: Source) -> Path:
    return export_checkpoint(calibrated, calibrated.checkpoint.parent / "model.onnx", lambda *_: None)


def test_a_bundle_is_built_and_shows_its_layers(exported: Path, tmp_path: Path) -> None:
    bundle = build_engine(exported, tmp_path / "fp8.bundle", "rtx", compute_capabilities=["8.9"], block_ops="plugin")
    operators = bundle.manifest.block_operators
    assert operators is not None and operators.plugins[FP8_LINEAR.name] == 12
    metadata = bundle.manifest.model_metadata("manifest")
    assert metadata.linear_precision == "fp8" and len(metadata.fp8_layers) == 12
    shown = "\n".join(inspect_bundle(bundle.path).lines())
    assert "fp8 products in 12 layers: blocks.*.attn1.to_q 2," in shown
    assert "(--linear-keep): *embed* *norm* proj_out" in shown and "*.ffn.*" in shown


def test_the_limit_of_the_calibrated_errors_is_the_users(calibrated: Source) -> None:
    layers = LinearCalibration.load(calibrated.linear_calibration or "").layers
    usual = calibrated.model().linears
    assert usual is not None and set(usual.fp8) <= set(layers)
    errors = sorted(layers[name].relative_l2 for name in usual.fp8)
    limited = replace(calibrated, linear_error_limit=errors[-2]).model().linears
    assert limited is not None and set(usual.fp8) - set(limited.fp8) == {
        name for name in usual.fp8 if layers[name].relative_l2 > errors[-2]
    }
    with pytest.raises(ValueError, match="is for the errors of a linear_calibration"):
        replace(calibrated, linear_error_limit=0.05, linear_calibration=None).model()


def _sample(file: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """What ONNX Runtime makes of a file."""
    with Engine(file) as engine:
        types = {spec.name: numpy_dtype(spec.dtype) for spec in engine.inputs}
        feeds = {name: tensor.float().numpy().astype(types[name]) for name, tensor in inputs.items()}
        return engine(**feeds)["sample"].astype(np.float32)


def _with_scales(file: Path, scales: dict[str, float], new: Path) -> Path:
    """The file with other static scales."""
    model = onnx.load(file)
    metadata = read_metadata(file).model_copy(update={"input_scales": scales})
    (entry,) = (entry for entry in model.metadata_props if entry.key == KEY)
    entry.value = metadata.model_dump_json()
    onnx.save(model, new)
    return new


def test_layers_with_a_static_scale_are_native(calibrated: Source, exported: Path, tmp_path: Path) -> None:
    path = exported
    scales = read_metadata(path).input_scales
    assert set(scales) == set(read_metadata(path).fp8_layers) and all(scale > 0 for scale in scales.values())
    native = with_native_operators(onnx.load(path), set(OPERATORS) - {ROUTED_ATTENTION.name}, scales)
    kinds = [node.op_type for node in native.graph.node]
    assert kinds.count("QuantizeLinear") == len(scales) and kinds.count("DequantizeLinear") == 2 * len(scales)
    assert FP8_LINEAR.name not in kinds
    onnx.save(native, tmp_path / "native.onnx")
    exact = replace(calibrated, linear_precision="same", linear_keep=None, linear_calibration=None, precision="fp32")
    model = exact.model(materialize=True)
    inputs = model.inputs(seed=6)
    with torch.inference_mode():
        expected = model(**inputs)[0].numpy()
    errors = []
    for file in (path, tmp_path / "native.onnx"):
        found = _sample(file, inputs)
        errors.append(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    # One scale for all tokens is coarser than one for each.
    assert 1e-3 < errors[0] < 0.1 and errors[1] < 2 * errors[0]
    bundle = build_engine(path, tmp_path / "native.bundle", "rtx", compute_capabilities=["8.9"], block_ops="native")
    operators = bundle.manifest.block_operators
    assert operators is not None and operators.native[FP8_LINEAR.name] == len(scales)


def test_layers_without_a_static_scale_keep_their_quantised_tokens(
    calibrated: Source, exported: Path, tmp_path: Path
) -> None:
    """Keys have no scale here: their norm is taken apart, and they and what quantises for them stay plugins."""
    all_scales = read_metadata(exported).input_scales
    scales = {name: scale for name, scale in all_scales.items() if not name.endswith("attn1.to_k")}
    native = with_native_operators(onnx.load(exported), set(OPERATORS) - {ROUTED_ATTENTION.name}, scales)
    left = [node.op_type for node in native.graph.node if node.domain and node.op_type != ROUTED_ATTENTION.name]
    assert sorted(left) == [*[FP8_LINEAR.name] * 2, *[QUANTIZE.name] * 2]
    onnx.save(native, tmp_path / "native.onnx")
    model = replace(calibrated, linear_calibration=None).model(materialize=False)
    found, expected = (_sample(file, model.inputs(seed=6)) for file in (tmp_path / "native.onnx", exported))
    assert 0 < float(np.linalg.norm(found - expected) / np.linalg.norm(expected)) < 0.1
    bundle = build_engine(
        _with_scales(exported, scales, tmp_path / "model.onnx"),
        tmp_path / "native.bundle",
        "rtx",
        compute_capabilities=["8.9"],
        block_ops="native",
    )
    operators = bundle.manifest.block_operators
    assert operators is not None and operators.plugins[FP8_LINEAR.name] == operators.plugins[QUANTIZE.name] == 2
    assert operators.native[FP8_LINEAR.name] == len(scales) and NORM_MODULATE_QUANTIZE.name in operators.native


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--linear-keep", "blocks.0.*"], "says which layers have no fp8 products"),
        (["--linear-precision", "fp8", "--linear-keep", "nothing.*"], "matches no linear layer of this model"),
        (["--linear-precision", "fp8", "--linear-error-limit", "0.05"], "is for the errors in --linear-calibration"),
    ],
)
def test_refused_options(source: Source, tmp_path: Path, arguments: list[str], message: str) -> None:
    output = ["-o", str(tmp_path / "model.onnx")]
    result = CliRunner().invoke(app, ["export", str(source.checkpoint), "--size", "9x64x96", *output, *arguments])
    assert result.exit_code in (1, 2) and message in " ".join(result.output.split()).replace("│ ", "")
    assert not list(tmp_path.iterdir())
