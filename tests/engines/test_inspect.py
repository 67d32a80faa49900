# SPDX-License-Identifier: Apache-2.0
"""Inspection without a GPU: reports, the view of the layer graph as modules, its picture."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vorta_trt.engines import Bundle, BundleError, draw_layers, inspect_bundle, inspect_onnx
from vorta_trt.engines import inspect as inspect_module
from vorta_trt.engines.flavours import Ability, Flavour
from vorta_trt.engines.layers import Layer, LayerGraph, Tensor, read_layers, readable_bytes, scope_of_name
from vorta_trt.engines.modules import collapse, module_of_layer
from vorta_trt.engines.picture import caption
from vorta_trt.model import AttentionGeometry
from vorta_trt.plugins.gpu import driver_report


def test_a_bundle_report(built: Bundle) -> None:
    report = inspect_bundle(built.path, verify=True)
    assert report.network is not None
    assert report.network.plugin_layers == 2 and report.network.kinds["RoutedAttention"] == 2
    assert "bfloat16" in report.network.dtypes
    modules = {module.name: module for module in report.network.modules}
    assert modules["blocks.*.attn1/RoutedAttention"].repeats == 2
    assert sum(module.weight_bytes for module in modules.values()) == report.network.weight_bytes > 0
    text = "\n".join(report.lines())
    geometry = AttentionGeometry.from_dict(built.manifest.geometry)
    for words in (
        "wan, bf16",
        str(geometry),
        geometry.coverage,
        "2 x vorta::RoutedAttention",
        "batch 1 to 2 (tuned for 1)",
        "transformer.plan",
    ):
        assert words in text
    json.loads(report.model_dump_json())


def test_a_report_says_what_needs_a_gpu(built: Bundle) -> None:
    if driver_report().devices:
        pytest.skip("this machine has a GPU")
    report = inspect_bundle(built.path)
    assert report.engine is None and report.engine_missing is not None
    assert report.engine_missing in "\n".join(report.lines())


class FakeEngine:
    num_layers, device_memory_size_v2, streamable_weights_size, num_aux_streams = 7, 4096, 512, 1

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda kind: '{"Layers": [{"Name": "x", "Tactic": "a\nb"}]}')


class FakeEngine86(FakeEngine):
    """Of TensorRT 8.6, which has one figure, of its own name."""

    device_memory_size = 4096

    @property
    def device_memory_size_v2(self) -> int:
        raise AttributeError


class FakeLeanEngine(FakeEngine):
    """Of the lean runtime, whose bindings do not know the type that this returns."""

    def create_engine_inspector(self) -> SimpleNamespace:
        raise TypeError("Unregistered type : nvinfer1::IEngineInspector")


@pytest.mark.parametrize("engine", [FakeEngine(), FakeEngine86(), FakeLeanEngine(), None])
def test_the_engine_itself_is_read_where_it_runs(
    built: Bundle, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine | None
) -> None:
    module = SimpleNamespace(
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
        LayerInformationFormat=SimpleNamespace(JSON=1),
        **({} if isinstance(engine, FakeLeanEngine) else {"EngineInspector": object}),
    )
    flavour = built.flavour
    monkeypatch.setattr(Flavour, "can_run", lambda self: Ability(True, "on a GPU"))
    monkeypatch.setattr(inspect_module, "load_plugin", lambda flavour, path: path)
    monkeypatch.setattr(Bundle, "check_runtime", lambda self: [])
    monkeypatch.setitem(flavour.__dict__, "logger", None)
    monkeypatch.setitem(flavour.__dict__, "module", module)
    if engine is None:
        with pytest.raises(BundleError, match="cannot load the plan"):
            inspect_bundle(built.path)
        return
    report = inspect_bundle(built.path)
    assert report.engine is not None and report.engine.layers == 7
    told = {"Layers": [{"Name": "x", "Tactic": "a\nb"}]}
    assert report.engine.layer_information == (None if isinstance(engine, FakeLeanEngine) else told)
    assert "7 engine layers, 4.0 KiB of activations" in "\n".join(report.lines())


def test_an_onnx_report(make_model: Any, tmp_path: Path) -> None:
    report = inspect_onnx(make_model(tmp_path / "m.onnx", blocks=3, external_data=True))
    assert report.without_function_body == [] and report.nodes_without_plugin_attributes == []
    assert report.opsets == {"": 23, "vorta": 1} and report.metadata["family"] == "wan"
    assert report.inputs["hidden_states"] == "bfloat16 [-1, 72, 32]"
    assert report.network.plugin_layers == 3
    assert report.total_bytes > report.network.weight_bytes
    bad = inspect_onnx(make_model(tmp_path / "n.onnx", plugin_attributes=False))
    assert "blocks.0.attn1/RoutedAttention" in bad.nodes_without_plugin_attributes
    assert "would not use the plugin" in "\n".join(bad.lines())


# --- Modules -----------------------------------------------------------------


def chain(*names: str) -> LayerGraph:
    """Layers that each read the one before; weights "X.weight" stand in front of their user."""
    layers, tensors, last = [], {}, "input"
    for name in names:
        kind = "RoutedAttention" if name.endswith("RoutedAttention") else "MATRIX_MULTIPLY"
        scope = scope_of_name(name)
        weight = f"{name}.w"
        layers.append(Layer(name=weight, kind="CONSTANT", scope="", inputs=[], outputs=[weight]))
        layers.append(Layer(name=name, kind=kind, scope=scope, inputs=[last, weight], outputs=[name]))
        tensors |= {weight: Tensor(dtype="bfloat16", shape=[4, 2]), name: Tensor(dtype="float16", shape=[-1, 2])}
        last = name
    return LayerGraph(layers=layers, tensors=tensors)


BLOCK = (
    "norm1/Mul",
    "attn1.to_q/MatMul",
    "attn1.norm_q/Mul",
    "attn1/RoutedAttention",
    "attn1.to_out/MatMul",
    "/Add",
    "ffn/MatMul",
    "/Add_1",
)


def transformer(blocks: int) -> LayerGraph:
    inside = [f"blocks.{block}{'' if name.startswith('/') else '.'}{name}" for block in range(blocks) for name in BLOCK]
    return chain("patch/Conv", *inside, "proj_out/MatMul")


def test_blocks_collapse_into_one(built: Bundle) -> None:
    few, many = collapse(transformer(2)), collapse(transformer(30))
    assert [module.name for module in few.modules] == [module.name for module in many.modules]
    assert [module.name for module in many.modules][1:5] == [
        "blocks.*.norm1",
        "blocks.*.attn1.to_q",
        "blocks.*.attn1.norm_q",
        "blocks.*.attn1/RoutedAttention",
    ]
    assert {module.repeats for module in many.modules if module.container} == {30}
    assert all(module.layers == 30 and module.weight_bytes == 30 * 16 for module in many.modules[1:-1])


def test_a_coarser_view_keeps_the_plugin_and_the_order() -> None:
    view = collapse(transformer(30), most=9)
    assert [module.name for module in view.modules] == [
        "patch",
        "blocks.*.norm1",
        "blocks.*.attn1",
        "blocks.*.attn1/RoutedAttention",
        "blocks.*.attn1",  # the output projection: a second visit
        "blocks.*",
        "blocks.*.ffn",
        "blocks.*",
        "proj_out",
    ]
    assert [module.visit for module in view.modules if module.name == "blocks.*"] == [0, 1]
    forward = [(edge.source, edge.target) for edge in view.edges if not edge.next_block]
    assert forward == [(index, index + 1) for index in range(8)]
    assert [(edge.source, edge.target) for edge in view.edges if edge.next_block] == [(7, 1)]


def test_weights_and_nameless_layers_join_their_user() -> None:
    graph = chain("patch/Conv", "noname", "proj_out/MatMul")
    assert [(module.name, module.layers) for module in collapse(graph).modules] == [("patch", 1), ("proj_out", 2)]


@pytest.mark.parametrize(
    ("names", "module"),
    [
        (["blocks.3.attn1.to_q/MatMul", "blocks.3.attn1.norm_q/Mul"], "blocks.*.attn1"),
        (["blocks.0.attn1.to_q/MatMul + blocks.0.attn1.to_q/Add"], "blocks.*.attn1.to_q"),
        (["blocks.3.attn1/RoutedAttention"], "blocks.*.attn1/RoutedAttention"),
        (["{ForeignNode[blocks.0.norm1/Mul...blocks.0.ffn/MatMul]}"], "blocks.*"),
        (["Reformatting CopyNode for Input Tensor 0 to proj_out/MatMul"], "proj_out"),
        (["blocks.0/Add", "blocks.1/Mul"], "blocks.*"),
        (["blocks.0/Add", "proj_out/MatMul"], ""),
        (["val_17"], ""),
    ],
)
def test_modules_of_engine_layers(names: list[str], module: str) -> None:
    assert module_of_layer(names) == module


def test_captions() -> None:
    view = collapse(transformer(30), most=9)
    assert caption(view.modules[3]) == "vorta plugin \u00b7 float16"
    assert caption(view.modules[1]) == "1 matrix_multiply \u00b7 float16"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_pictures(built: Bundle, tmp_path: Path, suffix: str) -> None:
    assert built.layers_path is not None
    picture = draw_layers(read_layers(built.layers_path), tmp_path / f"layers{suffix}", "a title")
    content = picture.read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    if suffix == ".svg":
        assert b"blocks.*" in content or b"<path" in content


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layers\.gif: a picture must end in \.png"):
        draw_layers(transformer(1), tmp_path / "layers.gif")


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("blocks.3.attn1.to_q/MatMul", "blocks.3.attn1.to_q"),
        ("/blocks.3/attn1/MatMul", "blocks.3.attn1"),
        ("blocks.3.attn1.to_q.weight", "blocks.3.attn1.to_q"),
        ("blocks.3.scale_shift_table", "blocks.3"),
        ("val_17", ""),
    ],
)
def test_scopes(name: str, scope: str) -> None:
    assert scope_of_name(name) == scope


def test_readable_bytes() -> None:
    assert [readable_bytes(count) for count in (0, 1023, 1536, 3 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]


def test_a_bundle_of_several_engines(bundle: Path) -> None:
    from vorta_trt.engines import SelectionError

    from .test_several_engines import LARGE, SECOND, SECOND_LARGE, with_engines

    with_engines(bundle, LARGE, SECOND, SECOND_LARGE)
    report = inspect_bundle(bundle)
    size = (bundle / "transformer.plan").stat().st_size
    assert [(line.component, line.size, line.plan_bytes) for line in report.engines] == [
        (key.component, key.size, size) for key in Bundle.open(bundle).engines
    ]
    lines = list(report.lines())
    assert sum(line.startswith("engine     transformer") for line in lines) == 4
    assert "shown      transformer 5x96x96" in lines
    chosen = inspect_bundle(bundle, component="transformer_2", size="13x128x128")
    assert (chosen.component, chosen.size, len(chosen.engines)) == (*SECOND_LARGE, 4)
    assert not any(line.startswith("files      transformer.plan ") for line in chosen.lines())
    with pytest.raises(SelectionError, match="size 5x32x32"):
        inspect_bundle(bundle, size="5x32x32")
