# SPDX-License-Identifier: Apache-2.0
"""End to end without a GPU: an ONNX file with nodes of our operators becomes a TensorRT-RTX engine with our layers."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from vorta_trt.plugins import library_path, rtx_shim_path
from vorta_trt.plugins.operator_schema import Element

from .operator_cases import CASES

PROBE = Path(__file__).parent / "rtx_build_probe.py"
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "fp32": TensorProto.FLOAT}
OUTPUT_TYPES = {Element.FLOAT8_TOKENS: TensorProto.INT32, Element.FLOAT32: TensorProto.FLOAT}


def one_node_model(path: Path, precision: str, text_tokens: int, **changed: Any) -> Path:
    """A network that is one node: grid (4, 6, 4), 2 heads of 64, dynamic batch."""
    tokens = 96 + text_tokens
    attributes: dict[str, Any] = {
        "grid": [4, 6, 4],
        "tile": [2, 3, 2],
        "window": [1, 1, 1],
        "bucket": [2, 3, 2],
        "keep": 6,
        "coreset_keys": "query",
        "text_tokens": text_tokens,
        "scale": 0.125,
        "plugin_namespace": "vorta",
        "plugin_version": "1",
    }
    attributes = {name: value for name, value in {**attributes, **changed}.items() if value is not None}
    shape: list[str | int | None] = ["B", tokens, 2, 64]
    inputs = [helper.make_tensor_value_info(name, TYPES[precision], shape) for name in ("query", "key", "value")]
    inputs.append(helper.make_tensor_value_info("routes", TensorProto.INT32, ["B", 2]))
    if text_tokens:
        inputs.append(helper.make_tensor_value_info("text_length", TensorProto.INT32, ["B"]))
    node = helper.make_node(
        "RoutedAttention", [value.name for value in inputs], ["attention"], domain="vorta", **attributes
    )
    output = helper.make_tensor_value_info("attention", TYPES[precision], shape)
    graph = helper.make_graph([node], "one_node", inputs, [output])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("vorta", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def operators_model(path: Path, precision: str, packed: bool) -> Path:
    """A network of one node of every block operator, side by side; the batch is dynamic, weights are in the file."""
    element_types = {"float16": TYPES[precision], "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    nodes, inputs, outputs, weights = [], [], [], []
    for case in CASES:
        operator = case.operator
        names = [f"{operator.name}.{name}" for name in operator.inputs]
        for name, tensor, text in zip(names, operator.input_tensors, case.inputs, strict=True):
            type_, _, extents = text.partition(":")
            shape: list[Any] = [int(extent) for extent in extents.split(",")]
            if tensor.element is Element.FLOAT8 and not packed:
                shape[-1], type_ = 4 * shape[-1], "float8"
                weights.append(helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, shape, [0] * math.prod(shape)))
            elif len(shape) < 3 and shape[0] != 2:
                weights.append(helper.make_tensor(name, element_types[type_], shape, [0] * math.prod(shape)))
            else:
                shape[0] = "B" if shape[0] == 2 else shape[0]
                inputs.append(helper.make_tensor_value_info(name, element_types[type_], shape))
        results = [f"{operator.name}.{name}" for name in operator.outputs]
        for name, tensor, extents in zip(results, operator.output_tensors, case.outputs, strict=True):
            shape = ["B", *map(int, extents.split(",")[1:])]
            element = OUTPUT_TYPES.get(tensor.element, TYPES[precision])
            outputs.append(helper.make_tensor_value_info(f"{name}.out", element, shape))
        attributes = {**case.node_attributes(), **operator.selection}
        nodes.append(
            helper.make_node(
                operator.name, names, [value.name for value in outputs[-len(results) :]], domain="vorta", **attributes
            )
        )
    graph = helper.make_graph(nodes, "operators", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("vorta", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def build(model: Path, capability: str = "SM80") -> dict[str, Any]:
    """Outcome of parsing and building ``model`` in a new process."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    command = [sys.executable, str(PROBE), str(library_path()), str(rtx_shim_path()), str(model), capability]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    outcome: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return outcome


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("text_tokens", [0, 8])
def test_node_becomes_our_layer_and_an_engine(tmp_path: Path, precision: str, text_tokens: int) -> None:
    outcome = build(one_node_model(tmp_path / "model.onnx", precision, text_tokens))
    assert outcome["parser_errors"] == []
    assert outcome["parsed"]
    assert (outcome["layers"], outcome["plugins"]) == (1, 1)
    assert outcome["plan"] > 0
    assert outcome["fields_in_plan"]


@pytest.mark.parametrize(("precision", "packed"), [("fp16", True), ("bf16", False)], ids=["packed fp8", "e4m3"])
def test_every_block_operator_becomes_our_layer_and_an_engine(tmp_path: Path, precision: str, packed: bool) -> None:
    """Float8 weights need a GPU that has the type (SM89), in int32 they build for every GPU."""
    outcome = build(operators_model(tmp_path / "model.onnx", precision, packed), "SM80" if packed else "SM89")
    assert outcome["parser_errors"] == [] and outcome["errors"] == []
    assert outcome["plugins"] == len(CASES)
    assert outcome["plan"] > 0


@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_attention_precision_reaches_the_plan(tmp_path: Path, precision: str) -> None:
    outcome = build(one_node_model(tmp_path / "model.onnx", "bf16", 0, attention_precision=precision))
    assert outcome["parser_errors"] == [] and outcome["plan"] > 0
    assert outcome["attention_precision_in_plan"] == precision


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window": [2, 1, 1]}, "window (2, 1, 1): every entry must be odd"),
        ({"keep": None}, "field keep: is missing"),
        ({"coreset_keys": "value"}, 'must be the string "query"'),
        ({"attention_precision": "fp4"}, 'must be the string "same"'),
        ({"grid": [4, 6, 8]}, "query [?, 96, 2, 64]: must have shape [batch, grid tokens 192"),
    ],
)
def test_bad_node_is_a_message_and_no_engine(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    outcome = build(one_node_model(tmp_path / "model.onnx", "fp16", 0, **changed))
    assert outcome["plan"] == 0
    assert [line for line in outcome["errors"] if line.startswith("[vorta::RoutedAttention]") and message in line]


def test_fp32_is_refused_with_a_message(tmp_path: Path) -> None:
    outcome = build(one_node_model(tmp_path / "model.onnx", "fp32", 0))
    assert outcome["plan"] == 0
    message = (
        "query is float32: query, key and value must be all float16 or all bfloat16; export the model with precision"
    )
    assert [line for line in outcome["errors"] if message in line]
