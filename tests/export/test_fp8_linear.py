# SPDX-License-Identifier: Apache-2.0
"""Linear layers with fp8 products in exported files: nodes, weights, metadata, and what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from vorta_trt.export import export_onnx, read_metadata
from vorta_trt.export.names import OPSET_17
from vorta_trt.export.native_operators import with_native_operators
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.fp8_linear import fp8_layers
from vorta_trt.model.random_checkpoint import make_checkpoint
from vorta_trt.plugins.operator_schema import FP8_LINEAR, JOINED_QUANTIZE, QUANTIZING
from vorta_trt.runtime.engine import Engine
from vorta_trt.runtime.verification.report import linear_table
from vorta_trt.runtime.verification.verify import verify

SIZES = {
    "wan": {"layers": 2, "heads": 2, "head_dim": 16, "text_dim": 32, "channels": 4, "ffn_dim": 64, "freq_dim": 32},
    "hunyuan_video": {
        **{"layers": 1, "single_layers": 1, "heads": 2, "head_dim": 32, "text_dim": 32, "channels": 4},
        **{"pooled_dim": 24, "refiner_layers": 1},
    },
}
KEEP = ("default", "*.0.attn*.to_k")


def _model(checkpoint: Path, family: str, *, materialize: bool = True, precision: str = "fp8") -> RoutedTransformer:
    model = RoutedTransformer.from_pretrained(
        checkpoint,
        geometry=AttentionGeometry.for_video(9, 64, 96, family),
        linear_precision=precision,
        linear_keep=KEEP if precision == "fp8" else None,
        materialize=materialize,
    )
    blocks: Any = getattr(model, "single_transformer_blocks", ())
    for block in blocks:
        block.joins = True
    return model


@pytest.fixture(scope="module", params=SIZES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("fp8") / "model", family, **SIZES[family])


@pytest.fixture(scope="module")
def exported(checkpoint: Path, family: str) -> Path:
    return export_onnx(_model(checkpoint, family, materialize=False), checkpoint.parent / "model.onnx", "fp32")


def test_every_chosen_layer_is_a_node_with_e4m3_weights(exported: Path, checkpoint: Path, family: str) -> None:
    model, metadata, file = _model(checkpoint, family), read_metadata(exported), read_onnx(exported)
    layers = fp8_layers(model)
    assert metadata.linear_precision == "fp8" and metadata.fp8_layers == tuple(layers) and layers
    assert metadata.linear_keep[-1] == KEEP[-1] and not any(".0.attn.to_k" in name for name in layers)
    weights = {tensor.name: tensor for tensor in file.model.graph.initializer}
    nodes = [node for node in file.model.graph.node if (node.domain, node.op_type) == FP8_LINEAR.node_type]
    assert {node.input[2] for node in nodes} == {f"{name}.weight" for name in layers}
    for name, layer in layers.items():
        tensor = weights[f"{name}.weight"]
        assert tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN
        assert tensor.raw_data == layer.weight.view(torch.uint8).numpy().tobytes()
        scale = onnx.numpy_helper.to_array(weights[f"{name}.weight_scale"])
        assert np.array_equal(scale, layer.weight_scale.numpy())


def test_onnx_runtime_computes_what_torch_does(exported: Path, checkpoint: Path, family: str) -> None:
    model, exact = _model(checkpoint, family), _model(checkpoint, family, precision="same")
    inputs = model.inputs(seed=3)
    with torch.inference_mode():
        expected, without = model(**inputs)[0].numpy(), exact(**inputs)[0].numpy()
    with Engine(exported) as engine:
        found = engine(**{name: tensor.numpy() for name, tensor in inputs.items()})["sample"]

    def error(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.linalg.norm(one - other) / np.linalg.norm(other))

    # Rounding to e4m3 turns a difference in the last bit of float32 into a step of 2^-4 here and there.
    assert error(found, expected) < error(expected, without) / 4 and error(expected, without) > 1e-3


def test_all_layers_are_native_with_static_scales(
    exported: Path, checkpoint: Path, family: str, tmp_path: Path
) -> None:
    """Also the layer of two inputs, which are then put side by side."""
    source, layers = onnx.load(exported), read_metadata(exported).fp8_layers
    native = with_native_operators(source, [FP8_LINEAR.name], dict.fromkeys(layers, 0.02))
    kinds = [node.op_type for node in native.graph.node]
    assert not {FP8_LINEAR.name, *QUANTIZING} & set(kinds)
    joined = [node.op_type for node in source.graph.node].count(JOINED_QUANTIZE.name)
    assert joined == (family == "hunyuan_video") and kinds.count("QuantizeLinear") == len(layers)
    onnx.save(native, tmp_path / "native.onnx")
    inputs = _model(checkpoint, family, materialize=False).inputs(seed=3)
    samples = []
    for file in (exported, tmp_path / "native.onnx"):
        with Engine(file) as engine:
            samples.append(engine(**{name: tensor.numpy() for name, tensor in inputs.items()})["sample"])
    assert 0 < float(np.linalg.norm(samples[1] - samples[0]) / np.linalg.norm(samples[0])) < 0.1


def test_verify_tells_what_fp8_does_to_each_layer(exported: Path, checkpoint: Path) -> None:
    report = verify(exported, checkpoint, seed=4, cases=["no router"])
    assert (
        report.passed
        and report.linear_precision == "fp8"
        and report.rule.endswith("torch fp32's own with fp8 products")
    )
    (case,) = report.cases
    assert case.fp8_linears is not None and 1e-3 < case.fp8_linears.relative_l2 < 0.2
    assert abs(case.fp8_linears.norm_ratio - 1) < 0.05
    assert sorted(layer.name for layer in case.fp8_linears.layers) == sorted(read_metadata(exported).fp8_layers)
    assert all(
        0.01 < layer.relative_l2 < 0.06 and abs(layer.norm_ratio - 1) < 0.02 for layer in case.fp8_linears.layers
    )
    table = linear_table(report)
    assert table is not None and table.row_count == len(case.fp8_linears.layers)


def test_a_weight_that_is_not_the_checkpoints_fails(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    weight = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN)
    weight.raw_data = weight.raw_data[::-1]
    onnx.save(model, tmp_path / "model.onnx")
    assert not verify(tmp_path / "model.onnx", checkpoint, seed=4, cases=["no router"], layers=False).passed


def test_opset_17_has_the_same_bytes_as_int32(checkpoint: Path, family: str) -> None:
    if family != "wan":
        return  # the lowering knows no family
    model = RoutedTransformer.from_pretrained(
        checkpoint,
        geometry=AttentionGeometry.for_video(9, 64, 96, family),
        dtype=torch.float16,
        linear_precision="fp8",
        materialize=False,
    )
    path = export_onnx(model, checkpoint.parent / "lowered.onnx", opset=OPSET_17)
    weights = {tensor.name: tensor for tensor in read_onnx(path).model.graph.initializer}
    assert model.linears is not None
    for name in model.linears.fp8:
        tensor, weight = weights[f"{name}.weight"], model.load_parameter(f"{name}.weight")
        assert tensor.data_type == onnx.TensorProto.INT32 and list(tensor.dims) == [len(weight), weight.shape[1] // 4]
        assert tensor.raw_data == weight.view(torch.uint8).numpy().tobytes()
