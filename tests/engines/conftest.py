# SPDX-License-Identifier: Apache-2.0
"""Small ONNX files in the exporter's style, and one bundle built from such a file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vorta_trt.engines import Bundle, build_engine
from vorta_trt.export import ModelMetadata
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.precision import PrecisionName

GEOMETRY = AttentionGeometry(
    grid=(2, 6, 6), tile=(2, 3, 2), window=(1, 1, 3), bucket=(2, 3, 2), keep=6, coreset_keys="query", text_tokens=0
)
HEADS, HEAD_DIM = 2, 16
PRECISIONS: dict[int, PrecisionName] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}

MakeModel = Callable[..., Path]
RunPython = Callable[..., subprocess.CompletedProcess[str]]


class _Graph:
    """Nodes and weights, named `blocks.0.attn1/MatMul` and `blocks.0.attn1.weight` as the exporter names them."""

    def __init__(self, dtype: int, seed: int) -> None:
        self.dtype = dtype
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: Sequence[str], scope: str, suffix: str = "", **attributes: Any) -> str:
        name = f"{scope}/{operator}{suffix}"
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def weight(self, name: str, *shape: int) -> str:
        values = (self.random.standard_normal(shape) * 0.1).astype(helper.tensor_dtype_to_np_dtype(self.dtype))
        self.weights.append(helper.make_tensor(name, self.dtype, shape, values.tobytes(), raw=True))
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def linear(self, value: str, scope: str, inside: int, outside: int) -> str:
        return self.node("MatMul", [value, self.weight(f"{scope}.weight", inside, outside)], scope)


def _routed_model(
    blocks: int,
    ffn: int,
    dtype: int,
    plugin_attributes: bool,
    function_body: bool,
    metadata: bool,
    seed: int,
    attention_precision: str | None,
    head_dim: int,
) -> onnx.ModelProto:
    """`blocks` residual blocks, each a RoutedAttention and a feed-forward; inputs hidden_states [B, S, N*D], routes."""
    graph, width = _Graph(dtype, seed), HEADS * head_dim
    tokens = GEOMETRY.video_tokens
    split = graph.integers("split", [0, tokens, HEADS, head_dim])
    merge = graph.integers("merge", [0, tokens, width])
    attributes = dict(GEOMETRY.to_dict(), scale=0.0)
    if plugin_attributes:
        attributes |= {"plugin_namespace": "vorta", "plugin_version": "1"}
    if attention_precision is not None:
        attributes["attention_precision"] = attention_precision
    value = graph.linear("hidden_states", "patch_embedding", width, width)
    for block in range(blocks):
        scope = f"blocks.{block}"
        heads = [
            graph.node("Reshape", [graph.linear(value, f"{scope}.attn1.to_{name}", width, width), split], scope, name)
            for name in "qkv"
        ]
        attention = graph.node("RoutedAttention", [*heads, "routes"], f"{scope}.attn1", domain="vorta", **attributes)
        merged = graph.node("Reshape", [attention, merge], scope, "_merge")
        value = graph.node("Add", [value, graph.linear(merged, f"{scope}.attn1.to_out", width, width)], scope)
        hidden = graph.node("Relu", [graph.linear(value, f"{scope}.ffn.net.0", width, ffn)], f"{scope}.ffn")
        value = graph.node("Add", [value, graph.linear(hidden, f"{scope}.ffn.net.2", ffn, width)], scope, "_1")
    graph.nodes.append(
        helper.make_node(
            "MatMul", [value, graph.weight("proj_out.weight", width, width)], ["sample"], name="proj_out/MatMul"
        )
    )
    shape = ["batch", tokens, width]
    body = helper.make_function(
        "vorta",
        "RoutedAttention",
        ["query", "key", "value", "routes"],
        ["output"],
        [helper.make_node("Add", ["query", "key"], ["sum"]), helper.make_node("Add", ["sum", "value"], ["output"])],
        [helper.make_opsetid("", 23)],
        list(attributes),
    )
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "vorta_trt",
            [
                helper.make_tensor_value_info("hidden_states", dtype, shape),
                helper.make_tensor_value_info("routes", TensorProto.INT32, ["batch", HEADS]),
            ],
            [helper.make_tensor_value_info("sample", dtype, shape)],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("vorta", 1)],
        ir_version=11,
        functions=[body] if function_body else [],
    )
    if metadata:
        helper.set_model_props(
            model, _metadata(blocks, dtype, attention_precision or "same", head_dim).to_metadata_props()
        )
    return model


def _metadata(blocks: int, dtype: int, attention_precision: Any, head_dim: int) -> ModelMetadata:
    return ModelMetadata(
        attention_precision=attention_precision,
        vorta_trt_version="0.1.0",
        torch_version="2.13.0",
        onnx_version="1.23.2",
        onnxscript_version="0.7.2",
        family="wan",
        config={"num_layers": blocks, "eps": 1e-6, "in_channels": 16},
        checkpoint="small",
        precision=PRECISIONS[dtype],
        geometry=GEOMETRY.to_dict(),
        operator_version=1,
        plugin_namespace="vorta",
        plugin_version="1",
        opset=23,
        tau=0.3,
        num_layers=blocks,
        num_heads=HEADS,
        head_dim=head_dim,
        latent_shape=(16, 2, 12, 12),
        text_length=512,
        router_sha256=None,
        inputs=(),
        outputs=(),
    )


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Writes a small routed model; keyword arguments choose its size and its faults."""

    def make(
        path: Path,
        *,
        blocks: int = 2,
        ffn: int = 64,
        dtype: int = TensorProto.BFLOAT16,
        plugin_attributes: bool = True,
        function_body: bool = True,
        metadata: bool = True,
        external_data: bool = False,
        seed: int | None = None,
        attention_precision: str | None = "same",
        head_dim: int = HEAD_DIM,
    ) -> Path:
        if seed is None:
            seed = int(np.random.default_rng().integers(2**31))
            print(f"weights from seed {seed}")  # shown by pytest when a test fails
        model = _routed_model(
            blocks, ffn, dtype, plugin_attributes, function_body, metadata, seed, attention_precision, head_dim
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 0}
        onnx.save(model, str(path), **(options if external_data else {}))
        return path

    return make


@pytest.fixture(scope="session")
def built(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with everything in it; read only: tests that change it take `bundle`."""
    folder = tmp_path_factory.mktemp("built bundle")
    model = make_model(folder / "small.onnx", external_data=True)
    return build_engine(model, folder / "small.bundle", include_onnx=True)


@pytest.fixture
def bundle(built: Bundle, tmp_path: Path) -> Path:
    """A copy of `built` to damage."""
    return Path(shutil.copytree(built.path, tmp_path / "copy.bundle"))


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """Runs a script in a fresh interpreter, where no plugin is registered yet."""

    def run(script: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **options)

    return run
