# SPDX-License-Identifier: Apache-2.0
"""Block operators as plugins and as what they stand for, built with TensorRT-RTX on any machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from vorta_trt.engines import BuildError, Bundle, build_engine, network
from vorta_trt.engines.flavours import FLAVOURS, get_flavour
from vorta_trt.engines.inspect import inspect_bundle, inspect_onnx
from vorta_trt.engines.manifest import read_manifest
from vorta_trt.export.function_body import portable_function
from vorta_trt.export.onnx_file import read_onnx

BLOCKS = 2
OPERATOR = "CrossAttention"


@pytest.fixture(params=[False, True], ids=["weights inside", "weights beside"])
def model(request: pytest.FixtureRequest, make_model: Any, tmp_path: Path) -> Path:
    """A small routed model with an operator behind the attention of each block, to the keys and values of that."""
    return _with_operator(make_model(tmp_path / "m.onnx", external_data=request.param), OPERATOR)


def _with_operator(path: Path, operator: str) -> Path:
    made = onnx.load(path, load_external_data=False)
    nodes = list(made.graph.node)
    for index, node in reversed(list(enumerate(nodes))):
        if node.op_type != "RoutedAttention":
            continue
        attended = node.output[0]
        name = f"{node.name.partition('/')[0].removesuffix('attn1')}attn2/{operator}"
        plugin = {"plugin_namespace": "vorta", "plugin_version": "1"}
        inputs, outputs = [attended, *node.input[1:3]], [f"{name}_output_0"]
        inserted = helper.make_node(operator, inputs, outputs, name=name, domain="vorta", scale=0.0, **plugin)
        for user in nodes:
            user.input[:] = [inserted.output[0] if given == attended else given for given in user.input]
        nodes.insert(index + 1, inserted)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    if operator == OPERATOR:
        made.functions.append(portable_function(operator))
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("block_ops", ["plugin", "native", None])
def test_both_ways(model: Path, tmp_path: Path, block_ops: Any) -> None:
    bundle = build_engine(model, tmp_path / "m.bundle", block_ops=block_ops)
    report = inspect_bundle(tmp_path / "m.bundle")
    manifest, layers = bundle.manifest, report.network
    assert manifest.block_operators is not None and manifest.plugin is not None and layers is not None
    assert manifest.plugin.layers == layers.plugin_layers == BLOCKS
    text = "\n".join(report.lines())
    if block_ops == "plugin":
        assert (manifest.block_operators.plugins, manifest.block_operators.native) == ({OPERATOR: BLOCKS}, {})
        assert layers.kinds[OPERATOR] == BLOCKS
        assert f"operators  as plugins {OPERATOR} {BLOCKS}; left to TensorRT none" in text
    else:
        assert (manifest.block_operators.plugins, manifest.block_operators.native) == ({}, {OPERATOR: BLOCKS})
        assert OPERATOR not in layers.kinds and layers.kinds["ATTENTION_INPUT"] == BLOCKS
        assert f"operators  as plugins none; left to TensorRT {OPERATOR} {BLOCKS}" in text
        assert any(module.name == "blocks.*.attn2" for module in layers.modules)  # its nodes stay where it was


def test_usual_for_the_flavours() -> None:
    assert {name: flavour.block_ops for name, flavour in FLAVOURS.items() if not flavour.run_only} == {
        "rtx": "native",
        "tensorrt": "native",
        "tensorrt8": "plugin",
    }


def test_an_unknown_choice(make_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="block_ops 'fast': must be one of native, plugin"):
        build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", block_ops="fast")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("block_ops", ["plugin", "native"])
def test_an_operator_of_a_newer_version(make_model: Any, tmp_path: Path, block_ops: Any) -> None:
    path = _with_operator(make_model(tmp_path / "m.onnx"), "Unheard")
    with pytest.raises(BuildError, match="has nodes vorta::Unheard, and this vorta-trt has no such operator"):
        build_engine(path, tmp_path / "m.bundle", block_ops=block_ops)


def test_a_library_without_the_plugin(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT takes the function body then, and says nothing."""
    monkeypatch.setattr(network, "registered", lambda trt, operator: None)
    path = _with_operator(make_model(tmp_path / "m.onnx"), OPERATOR)
    onnx_file = replace(read_onnx(path), operator_nodes=read_onnx(path).operator_nodes[1:2])
    with pytest.raises(BuildError, match=f"only 0 of 1 {OPERATOR}.*not registered.*--block-ops native"):
        network.check_plugin_layers(get_flavour("rtx"), onnx_file, {})


def test_nodes_that_do_not_name_their_plugin(make_model: Any, tmp_path: Path) -> None:
    """TensorRT would take the function body and say nothing."""
    path = _with_operator(make_model(tmp_path / "m.onnx"), OPERATOR)
    bare = onnx.load(path)
    for node in bare.graph.node:
        if node.op_type == OPERATOR:
            kept = [attribute for attribute in node.attribute if not attribute.name.startswith("plugin_")]
            del node.attribute[:]
            node.attribute.extend(kept)
    onnx.save(bare, path)
    with pytest.raises(BuildError, match=f"only 0 of 2 {OPERATOR} nodes became plugin layers.*lack"):
        build_engine(path, tmp_path / "m.bundle", block_ops="plugin")


def test_a_file_says_which_operators_it_has(make_model: Any, tmp_path: Path) -> None:
    path = _with_operator(make_model(tmp_path / "m.onnx"), OPERATOR)
    assert read_onnx(path).block_operators == {OPERATOR: BLOCKS} and read_onnx(path).is_portable
    text = "\n".join(inspect_onnx(path).lines())
    assert f"operators  RoutedAttention {BLOCKS}, {OPERATOR} {BLOCKS}" in text
    assert "has a function body for every operator" in text
    without = onnx.load(path)
    del without.functions[:]
    onnx.save(without, path)
    assert not read_onnx(path).is_portable
    assert f"has NO function body for RoutedAttention, {OPERATOR}" in "\n".join(inspect_onnx(path).lines())


def test_manifests_without_block_operators_are_as_before(built: Bundle) -> None:
    manifest, problems = read_manifest(built.path / "manifest.json")
    assert manifest is not None and not problems and manifest.block_operators is None
    assert "block_operators" not in json.loads((built.path / "manifest.json").read_text())
