# SPDX-License-Identifier: Apache-2.0
"""TensorRT 8.6: which package it is, and how a weakly typed network is built; a stand-in plays the module."""

from __future__ import annotations

import _ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from vorta_trt.engines import BuildError, FlavourError, build_engine, flavours
from vorta_trt.engines import plugin as plugin_module
from vorta_trt.engines.flavours import FLAVOURS, TensorRT, TensorRT8, get_flavour
from vorta_trt.engines.layer_types import impose_types
from vorta_trt.engines.layers import read_layers
from vorta_trt.engines.network import _check_plugins_of, parse_onnx
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.plugins.gpu import ComputeCapability, Device, DriverReport

from . import fake_tensorrt8 as fake

HOPPER = Device("H200", ComputeCapability(9, 0), 141 * 2**30)


@pytest.fixture
def tensorrt8(monkeypatch: pytest.MonkeyPatch) -> Iterator[TensorRT8]:
    """The flavour on a machine with a Hopper GPU and TensorRT 8.6."""
    flavour = get_flavour("tensorrt8")
    assert isinstance(flavour, TensorRT8)
    monkeypatch.setattr(TensorRT8, "version", "8.6.0")
    monkeypatch.setitem(flavour.__dict__, "module", fake)
    monkeypatch.setattr(flavours, "driver_report", lambda: DriverReport((HOPPER,), "13.0", None))
    flavour.__dict__.pop("logger", None)
    yield flavour
    flavour.__dict__.pop("logger", None)
    plugin_module._loaded.pop("tensorrt8", None)


# --- Which package -----------------------------------------------------------


@pytest.mark.parametrize(
    ("flavour", "version", "words"),
    [
        (
            "tensorrt",
            "8.6.0",
            r"needs 10.0 or newer .*; TensorRT 8.6 is the flavour tensorrt8 \(--tensorrt tensorrt8\)",
        ),
        ("tensorrt", "9.3.0", "needs 10.0 or newer"),
        ("tensorrt8", "10.8.0", r"for 8.6; TensorRT 10 and newer are the flavour tensorrt \(--tensorrt tensorrt\)"),
        ("tensorrt8", "8.5.1", "tensorrt 8.5.1 is installed, and this flavour is for 8.6"),
        ("tensorrt8", "9.3.0", "tensorrt 9.3.0 is installed, and this flavour is for 8.6"),
    ],
)
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, flavour: str, version: str, words: str) -> None:
    wanted = type(FLAVOURS[flavour])()
    monkeypatch.setattr(type(wanted), "version", version)
    with pytest.raises(FlavourError, match=words):
        wanted.module  # noqa: B018  (the import is the check)


def test_symbols_are_bound_lazily_while_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the empty cuBLAS and cuDNN of plugins/README.md do."""
    seen = []

    def record(name: str) -> Any:
        seen.append((name, sys.getdlopenflags()))
        return SimpleNamespace()

    monkeypatch.setattr(TensorRT8, "version", "8.6.1")
    monkeypatch.setattr(importlib, "import_module", record)
    before = sys.getdlopenflags()
    TensorRT8().module  # noqa: B018
    assert seen == [("tensorrt", os.RTLD_LAZY)]
    assert sys.getdlopenflags() == before


def test_version_of_a_package_without_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt_unpacked").mkdir()
    (tmp_path / "tensorrt_unpacked" / "__init__.py").write_text('import os\n\n__version__ = "8.6.0"\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TensorRT8, "package", "tensorrt_unpacked")
    assert TensorRT8().version == "8.6.0"
    monkeypatch.setitem(sys.modules, "tensorrt_unpacked", importlib.import_module("tensorrt_unpacked"))
    assert TensorRT8().version == "8.6.0"  # once it is imported, too


def test_gpus() -> None:
    supported = [text for text in ("7.0", "8.0", "8.9", "9.0", "10.0", "12.0") if TensorRT8().supports(_cc(text))]
    assert supported == ["8.0", "8.9", "9.0"]
    assert TensorRT().supports(_cc("12.0"))


def test_nothing_is_built_on_a_gpu_that_is_too_new(tensorrt8: TensorRT8, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tensorrt8.can_build()
    blackwell = Device("RTX 5090", ComputeCapability(12, 0), 32 * 2**30)
    monkeypatch.setattr(flavours, "driver_report", lambda: DriverReport((blackwell, HOPPER), "13.0", None))
    assert "TensorRT 8.6 does not support RTX 5090" in tensorrt8.can_build().reason
    assert not tensorrt8.can_build() and not tensorrt8.can_run() and tensorrt8.can_run(1)


def _cc(text: str) -> ComputeCapability:
    return ComputeCapability.parse(text)


# --- Types -------------------------------------------------------------------


def test_types_of_the_file_are_imposed(tmp_path: Path) -> None:
    """A norm's sum in float32, a comparison that decides routes, float16 behind the plugin, integers left alone."""
    helper = onnx.helper
    values = [
        ("h", 10),
        ("wide", 1),
        ("sum", 1),
        ("more", 9),
        ("narrow", 10),
        ("product", 10),
        ("out", 10),
        ("count", 6),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "wide"], ["sum"], name="sum"),
        helper.make_node("Greater", ["sum", "wide"], ["more"], name="greater"),
        helper.make_node("Cast", ["sum"], ["narrow"], name="cast_1", to=TensorProto.FLOAT16),
        helper.make_node("RoutedAttention", ["narrow"], ["h"], name="plugin", domain="vorta"),
        helper.make_node("MatMul", ["h", "h"], ["product"], name="product"),
        helper.make_node("Reshape", ["product", "shape"], ["out"], name="reshape"),
        helper.make_node("Add", ["n", "n"], ["count"], name="count"),
    ]
    info = {name: helper.make_tensor_value_info(name, number, ["batch", 4]) for name, number in [*values, ("x", 10)]}
    graph = helper.make_graph(
        nodes,
        "g",
        [info["x"], helper.make_tensor_value_info("n", TensorProto.INT32, [4])],
        [info["out"], info["count"]],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 4])],
        value_info=[info[name] for name, _ in values],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    network = fake.Network(1)
    fake.OnnxParser(network, None).parse_from_file(str(tmp_path / "m.onnx"))
    # What the parser puts in between has no name of the file: it takes the type of what it is computed from.
    unnamed = fake.Tensor("(Unnamed Layer* 8)", fake.DataType.FLOAT)
    behind = next(layer for layer in network.layers if layer.name == "reshape").outputs
    network.layers.append(fake.Layer("(Unnamed Layer* 8)", fake.LayerType.SHUFFLE, behind, [unnamed]))

    impose_types(fake, network, read_onnx(tmp_path / "m.onnx"))
    single, half = fake.DataType.FLOAT, fake.DataType.HALF
    told = {layer.name: (layer.precision, layer.output_types) for layer in network.layers}
    assert told == {
        "shape": (None, {}),
        "cast": (None, {}),
        "sum": (single, {0: single}),
        "greater": (single, {}),
        "cast_1": (None, {}),
        "plugin": (None, {}),
        "product": (half, {0: half}),
        "reshape": (None, {0: half}),  # told to compute in float16, others than products find no kernel
        "count": (None, {}),
        "(Unnamed Layer* 8)": (None, {0: half}),
    }


def test_the_reshape_of_logits_is_not_told_its_type(tmp_path: Path) -> None:
    """TensorRT 8.6.0 built no engine of 30 or 40 routers when it was."""
    helper = onnx.helper
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["logits"], name="product"),
        helper.make_node("Reshape", ["logits", "shape"], ["by_head"], name="reshape"),
        helper.make_node("Softmax", ["by_head"], ["scores"], name="softmax"),
        helper.make_node("Reshape", ["scores", "shape"], ["out"], name="behind"),
    ]
    names = ("x", "logits", "by_head", "scores", "out")
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in names}
    shape = [helper.make_tensor("shape", TensorProto.INT64, [2], [4, 4])]
    graph = helper.make_graph(
        nodes, "g", [info["x"]], [info["out"]], shape, value_info=[info[name] for name in names[1:4]]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    network = fake.Network(1)
    fake.OnnxParser(network, None).parse_from_file(str(tmp_path / "m.onnx"))
    impose_types(fake, network, read_onnx(tmp_path / "m.onnx"))
    single = fake.DataType.FLOAT
    assert {layer.name: layer.output_types for layer in network.layers} == {
        "shape": {},
        "product": {0: single},
        "reshape": {},
        "softmax": {0: single},
        "behind": {0: single},
    }


# --- Builds ------------------------------------------------------------------


@pytest.fixture
def model17(make_model: Any, tmp_path: Path) -> Path:
    """A small routed file of opset 17 in float16."""
    path: Path = make_model(tmp_path / "m.onnx", dtype=TensorProto.FLOAT16, function_body=False)
    model = onnx.load(path)
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("vorta", 1)])
    onnx.save(model, path)
    return path


def test_build(tensorrt8: TensorRT8, model17: Path, tmp_path: Path) -> None:
    bundle = build_engine(model17, tmp_path / "m.bundle", tensorrt="tensorrt8", workspace_gib=None)
    builder = fake.Builder.last
    assert builder.network.flags == 1  # explicit batch
    assert builder.config.flags == {fake.BuilderFlag.FP16, fake.BuilderFlag.OBEY_PRECISION_CONSTRAINTS}
    assert builder.config.tactic_sources == 0
    assert bundle.plan_path.read_bytes() == b"a plan of TensorRT 8.6"
    engine = bundle.manifest.engine
    assert (engine.flavour, engine.version, engine.optimization_level) == ("tensorrt8", "8.6.0", 0)
    assert engine.flags == ["FP16", "OBEY_PRECISION_CONSTRAINTS", "PROFILE_SHARING_0806"]
    assert (engine.memory.scratch, engine.memory.activations) == (4096, 8192)
    assert engine.compute_capabilities == ["9.0"]
    assert bundle.manifest.plugin is not None and bundle.manifest.plugin.layers == 2
    assert bundle.layers_path is not None
    assert read_layers(bundle.layers_path).kinds()["RoutedAttention"] == 2


def test_optimization_level_is_honoured(tensorrt8: TensorRT8, model17: Path, tmp_path: Path) -> None:
    bundle = build_engine(model17, tmp_path / "m.bundle", tensorrt="tensorrt8", optimization_level=2)
    assert bundle.manifest.engine.optimization_level == fake.Builder.last.config.builder_optimization_level == 2


def test_newer_opset_is_refused(tensorrt8: TensorRT8, make_model: Any, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx", dtype=TensorProto.FLOAT16)
    words = "is of opset 23, and TensorRT 8.6 reads 17 at most; export the model again with --opset 17 --precision fp16"
    with pytest.raises(BuildError, match=words):
        build_engine(path, tmp_path / "m.bundle", tensorrt="tensorrt8")
    assert not (tmp_path / "m.bundle").exists()


def test_float32_is_refused(tensorrt8: TensorRT8, make_model: Any, tmp_path: Path, model17: Path) -> None:
    """Though TensorRT 8.6 calls every float tensor behind a plugin float32: the file's type counts."""
    model = onnx.load(model17)
    del model.graph.value_info[:]
    names = {node.input[0] for node in model.graph.node if node.op_type == "RoutedAttention"}
    model.graph.value_info.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    onnx.save(model, model17)
    words = (
        r"attn1/RoutedAttention computes in float32, and the kernels take float16 in TensorRT 8.6; .* --precision fp16"
    )
    with pytest.raises(BuildError, match=words):
        build_engine(model17, tmp_path / "m.bundle", tensorrt="tensorrt8")


@pytest.mark.parametrize(("result", "accepted"), [("float16", True), ("float32", False)])
def test_a_weight_that_says_the_type_counts_by_the_result(tensorrt8: TensorRT8, result: str, accepted: bool) -> None:
    """Fp8Linear has the type of its bias, a constant, and those of a weakly typed network are float32."""
    node = SimpleNamespace(operator="Fp8Linear", name="to_q/Fp8Linear")
    file: Any = SimpleNamespace(path="m.onnx", operator_nodes=[node], value_types=lambda: {"to_q/output": result})
    bias = fake.Tensor("(Unnamed Layer* 3) [Constant]_output", fake.DataType.FLOAT)
    output = fake.Tensor("to_q/output", fake.DataType.FLOAT)
    layer = fake.IPluginV2Layer(node.name, fake.LayerType.PLUGIN_V2, 5 * [bias], [output])
    with nullcontext() if accepted else pytest.raises(BuildError, match="to_q/Fp8Linear computes in float32"):
        _check_plugins_of("Fp8Linear", tensorrt8, file, [layer])


@pytest.mark.parametrize(("number", "accepted"), [(TensorProto.FLOAT16, True), (TensorProto.FLOAT, False)])
def test_layers_of_quantised_tokens_are_taken_for_what_they_are(
    tensorrt8: TensorRT8, tmp_path: Path, number: int, accepted: bool
) -> None:
    """Tokens are int32 and the bias is a weight: the type of the activations stands in the file alone."""
    helper = onnx.helper
    attributes = {"domain": "vorta", "plugin_namespace": "vorta", "plugin_version": "1"}
    linear = ["quantized", "quantized_scale", "weight", "weight_scale", "bias"]
    nodes = [
        helper.make_node("Quantize", ["x"], linear[:2], name="to_q/Quantize", **attributes),
        helper.make_node("Fp8Linear", linear, ["out"], name="to_q/Fp8Linear", activation="none", **attributes),
    ]
    values = [("quantized", TensorProto.INT32, 4), ("quantized_scale", TensorProto.FLOAT, 0), ("out", number, 16)]
    infos = [helper.make_tensor_value_info(name, kind, [1, 8, size][: 3 if size else 2]) for name, kind, size in values]
    weights = [
        helper.make_tensor(name, kind, [extent, 4][: 2 if kind == TensorProto.INT32 else 1], [0] * count)
        for name, kind, extent, count in (
            ("weight", TensorProto.INT32, 16, 64),
            ("weight_scale", TensorProto.FLOAT, 16, 16),
            ("bias", number, 16, 16),
        )
    ]
    tokens = helper.make_tensor_value_info("x", number, [1, 8, 16])
    graph = helper.make_graph(nodes, "g", [tokens], infos[2:], weights, value_info=infos[:2])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("vorta", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "m.onnx")
    with nullcontext() if accepted else pytest.raises(BuildError, match="to_q/Quantize computes in float32"):
        parsed = parse_onnx(tensorrt8, fake.Builder(tensorrt8.logger), read_onnx(tmp_path / "m.onnx"))
        impose_types(fake, parsed.network, parsed.onnx)
        assert {name: len(made) for name, made in parsed.plugin_layers.items()} == {"Quantize": 1, "Fp8Linear": 1}
        assert not any(layer.output_types for layer in parsed.network.layers)  # plugins answer for themselves


def test_options_of_newer_versions_are_refused(tensorrt8: TensorRT8, model17: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="version_compatible: TensorRT 8.6 has no such option"):
        build_engine(model17, tmp_path / "m.bundle", tensorrt="tensorrt8", version_compatible=True)
    with pytest.raises(BuildError, match="plugin_in_plan: TensorRT 8.6.0 writes no plugin library into its plans"):
        build_engine(model17, tmp_path / "m.bundle", tensorrt="tensorrt8", plugin_in_plan=True)


def test_a_plan_of_8_6_does_not_load_in_10(tensorrt8: TensorRT8, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tensorrt8.version_problem("8.6.0", False) is None
    assert "plans load in the version that built them only" in str(tensorrt8.version_problem("8.6.1", False))
    monkeypatch.setattr(TensorRT8, "version", "10.8.0.43")
    assert 'install "tensorrt==8.6.0" or build the bundle again' in str(tensorrt8.version_problem("8.6.0", False))


def test_library_without_the_v2_entry_point(monkeypatch: pytest.MonkeyPatch, tensorrt8: TensorRT8) -> None:
    registry = SimpleNamespace(plugin_creator_list=[], load_library=lambda path: None)
    monkeypatch.setattr(fake, "get_plugin_registry", lambda: registry)
    library = Path(_ctypes.__file__)  # a shared library, and no plugin
    words = r"has no getPluginCreators\(\); set VORTA_TENSORRT8=ON\); build vorta-trt again"
    with pytest.raises(FlavourError, match=words):
        plugin_module.load_plugin(tensorrt8, library)
