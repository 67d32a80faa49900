# SPDX-License-Identifier: Apache-2.0
"""What `export_onnx` writes: contract, metadata, weights, external data; and what it refuses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

import vorta_trt
from vorta_trt.export import ExportError, TensorInfo, export_onnx, read_metadata, routed_attention_nodes
from vorta_trt.export.graph_checks import check_graph
from vorta_trt.export.skeleton import skeleton_of
from vorta_trt.model import RoutedTransformer, RouteTable
from vorta_trt.model.write_errors import WriteError
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

from ..tiny import TEXT_DIM

LAYERS, HEADS = 2, 3  # of the tiny Wan

Load = Callable[..., RoutedTransformer]
Exported = Callable[..., Path]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_interface_is_the_contract(exported: Exported, precision: str, dtype: str) -> None:
    graph = onnx.load(exported(precision)).graph
    latents = ("batch", 4, 3, 8, 12)
    metadata = read_metadata(exported(precision))
    assert [str(info) for info in metadata.inputs] == [
        f"hidden_states {dtype}[{', '.join(map(str, latents))}]",
        "timestep float32[batch]",
        f"encoder_hidden_states {dtype}[batch, 512, {TEXT_DIM}]",
        "tau float32[1]",
        f"route_override int32[{LAYERS}, {HEADS}]",
    ]
    assert metadata.outputs == (
        TensorInfo(name="sample", dtype=dtype, shape=latents),
        TensorInfo(name="routes", dtype="int32", shape=(LAYERS, "batch", HEADS)),
    )
    for infos, values in ((metadata.inputs, graph.input), (metadata.outputs, graph.output)):
        found = [
            TensorInfo(
                name=value.name,
                dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                shape=[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        ]
        assert found == list(infos)


def test_nodes(exported: Exported, load: Load) -> None:
    model = onnx.load(exported("bf16"))
    onnx.checker.check_model(model, full_check=True)
    nodes = [node for node in model.graph.node if node.op_type == ROUTED_ATTENTION.name]
    assert [(node.domain, node.name) for node in nodes] == [
        (ROUTED_ATTENTION.namespace, f"blocks.{layer}/{ROUTED_ATTENTION.name}") for layer in range(LAYERS)
    ]
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert sorted(attributes) == sorted(ROUTED_ATTENTION.node_attributes)
        assert (attributes["plugin_namespace"], attributes["plugin_version"]) == (b"vorta", b"1")
        assert len(node.input) == 4
    counts = Counter(node.op_type for node in model.graph.node if node.domain)
    assert counts == {
        "RoutedAttention": LAYERS,
        "NormModulate": 1,  # before the first block; all others are with the residual before them
        "ResidualNormModulate": 3 * LAYERS,
        "QKNormRotary": LAYERS,
        "HeadNorm": 2 * LAYERS,
        "CrossAttention": LAYERS,
        "Linear": 10 * LAYERS + 1,
    }
    left = {node.op_type for node in model.graph.node if node.name.startswith("blocks.") and not node.domain}
    assert left <= {"Reshape", "Unsqueeze", "Cast", "Gemm", "Softmax", "Sigmoid", "Mul"}, "the router, and shapes"
    linear = [node for node in model.graph.node if node.op_type == "Linear"]
    assert [node.name for node in linear] == [f"{node.input[2].removesuffix('.bias')}/Linear" for node in linear]
    assert {(f.domain, f.name) for f in model.functions} == {(ROUTED_ATTENTION.namespace, name) for name in counts}
    assert {o.domain: o.version for o in model.opset_import} == {"": 23, ROUTED_ATTENTION.namespace: 1}
    found = routed_attention_nodes(exported("bf16"))
    assert {node.geometry for node in found} == {load().geometry}
    assert [node.scale for node in found] == [pytest.approx(32**-0.5)] * LAYERS
    outputs = {output for node in model.graph.node for output in node.output}
    assert outputs >= {f"blocks.{layer}/{name}" for layer in range(LAYERS) for name in ("output", "normed")}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_norms_modulation_router_and_timestep_path_are_float32(exported: Exported, precision: str) -> None:
    graph = onnx.load(exported(precision)).graph
    half = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for name, data_type in types.items():
        exact = re.search(r"\.router\.|scale_shift_table|time_embedder|\.norm[123]\.|rope|frequencies", name)
        if "." in name:
            assert data_type == (onnx.TensorProto.FLOAT if exact else half), name
    infos = (*graph.input, *graph.value_info)
    inferred = {info.name: info.type.tensor_type.elem_type for info in infos} | types
    for node in graph.node:
        if node.op_type in ("RMSNormalization", "LayerNormalization", "Softmax"):
            assert inferred[node.input[0]] == onnx.TensorProto.FLOAT, node.name
        if node.op_type == "MatMul" or node.domain:
            assert inferred[node.input[0]] == half, node.name
        if node.op_type in ("NormModulate", "ResidualNormModulate"):
            assert {inferred[name] for name in node.input[-2:]} == {onnx.TensorProto.FLOAT}, node.name


def test_every_constant_is_used(exported: Exported) -> None:
    graph = onnx.load(exported("fp32")).graph
    used = {name for node in graph.node for name in node.input}
    assert not {constant.name for constant in graph.initializer} - used


def test_tables_are_there_once(exported: Exported) -> None:
    large = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(exported("fp32")).graph.initializer]
    large = [array for array in large if array.nbytes >= 1024]
    distinct = {(str(array.dtype), array.shape, array.tobytes()) for array in large}
    assert len(distinct) == len(large)
    names = [tensor.name for tensor in onnx.load(exported("fp32")).graph.initializer]
    assert [name for name in names if "rope" in name] == ["rope_cos", "rope_sin"]


def test_metadata(exported: Exported, load: Load, checkpoint: Path) -> None:
    metadata = read_metadata(exported("bf16"))
    model = load()
    assert metadata.vorta_trt_version == vorta_trt.__version__
    assert metadata.torch_version == torch.__version__
    assert (metadata.family, metadata.precision, metadata.opset) == ("wan", "bf16", 23)
    assert metadata.attention_geometry == model.geometry
    assert (metadata.num_layers, metadata.num_heads, metadata.head_dim) == (LAYERS, HEADS, model.head_dim)
    assert (metadata.latent_shape, metadata.text_length) == ((4, 3, 8, 12), 512)
    assert (metadata.operator_version, metadata.plugin_namespace, metadata.plugin_version) == (1, "vorta", "1")
    assert metadata.tau == 0.3
    assert metadata.checkpoint == checkpoint.name
    assert metadata.has_router and re.fullmatch("[0-9a-f]{64}", metadata.router_sha256 or "")
    assert metadata.config["num_layers"] == LAYERS and metadata.config["text_dim"] == TEXT_DIM
    flat = {prop.key: prop.value for prop in onnx.load(exported("bf16")).metadata_props}
    assert flat["precision"] == "bf16" and flat["checkpoint"] == checkpoint.name


def test_attention_precision(exported: Exported, load: Load, tmp_path: Path) -> None:
    plain = exported("fp32")
    assert read_metadata(plain).attention_precision == "same"
    assert {node.attention_precision for node in routed_attention_nodes(plain)} == {"same"}

    model = load(attention_precision="fp8")
    path = exported("fp32", "fp8")
    metadata = read_metadata(path)
    assert (metadata.precision, metadata.attention_precision) == ("fp32", "fp8")
    assert [node.attention_precision for node in routed_attention_nodes(path)] == ["fp8"] * LAYERS
    flat = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert flat["attention precision"] == "fp8"

    inputs = {name: tensor.numpy() for name, tensor in model.inputs(2).items()}
    outputs = []
    for file in (plain, path):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, inputs))
    for same, fp8 in zip(*outputs, strict=True):
        np.testing.assert_array_equal(same, fp8)  # the portable form is exact

    graphs = [onnx.load(file).graph for file in (plain, path)]
    for node in graphs[1].node:
        if node.op_type == ROUTED_ATTENTION.name:
            (attribute,) = (a for a in node.attribute if a.name == "attention_precision")
            assert attribute.s == b"fp8"
            attribute.s = b"same"
    assert graphs[0].node == graphs[1].node, "nothing else differs"


def test_checks_catch_another_attention_precision(exported: Exported) -> None:
    graph, metadata = ir.load(exported("fp32")), read_metadata(exported("fp32"))
    message = "blocks.0/RoutedAttention with attention_precision 'same': must have 'fp8'"
    with pytest.raises(ExportError, match=message):
        check_graph(graph, metadata.model_copy(update={"attention_precision": "fp8"}))


def test_no_path_of_this_machine_in_the_file(exported: Exported, checkpoint: Path) -> None:
    content = exported("fp32").read_bytes()
    for path in (Path(__file__).parents[2], Path(torch.__file__).parents[1], checkpoint.parent, Path.home()):
        assert str(path).encode() not in content
    assert b"stack_trace" not in content


def test_weights_left_on_disk_give_the_same_file(exported: Exported, load: Load, tmp_path: Path) -> None:
    model = load("bf16", materialize=False)
    assert not model.materialized
    stages: list[str] = []
    reads: Counter[str] = Counter()

    def count(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        stages.append(stage)

    original = model.load_parameter

    def load_parameter(name: str) -> torch.Tensor:
        assert stages[-1] == "write", "weights are read only when they are written"
        reads[name] += 1
        return original(name)

    model.load_parameter = load_parameter  # type: ignore[method-assign]
    path = export_onnx(model, tmp_path / "streamed model.onnx", external_data=True, progress=count)
    assert list(dict.fromkeys(stages)) == ["trace", "translate", "optimize", "check", "write"]
    assert set(reads.values()) == {1} and set(reads) == {name for name, _ in model.named_parameters()}
    assert not model.materialized, "the model is as it was"

    data = tmp_path / "streamed model.onnx.data"
    assert sorted(tmp_path.iterdir()) == [path, data]
    assert data.stat().st_size > path.stat().st_size
    onnx.checker.check_model(path)  # finds the data file
    streamed, whole = onnx.load(path), onnx.load(exported("bf16"))
    assert streamed.graph.node == whole.graph.node and streamed.functions == whole.functions
    assert read_metadata(path) == read_metadata(exported("bf16"))
    assert [t.name for t in streamed.graph.initializer] == [t.name for t in whole.graph.initializer]
    for ours, theirs in zip(streamed.graph.initializer, whole.graph.initializer, strict=True):
        assert (ours.data_type, ours.dims) == (theirs.data_type, theirs.dims), ours.name
        assert onnx.numpy_helper.to_array(ours).tobytes() == onnx.numpy_helper.to_array(theirs).tobytes(), ours.name


def test_without_a_router_every_head_is_full(load: Load, tmp_path: Path) -> None:
    model = load(router=None)
    path = export_onnx(model, str(tmp_path / "dense.onnx"))
    assert not read_metadata(path).has_router and read_metadata(path).router_sha256 is None
    inputs = model.inputs(3)
    inputs["route_override"][1, 2] = 2
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sample, routes = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        expected, expected_routes = model(**inputs)
    np.testing.assert_array_equal(routes, expected_routes)
    assert routes.sum() == 3 * 2
    assert np.abs(sample - expected.numpy()).max() < 1e-5 * expected.abs().max()


def test_routes_follow_the_schedule_as_the_route_table_says(exported: Exported, load: Load) -> None:
    model = load()
    timesteps = [999.0, 750.5, 321.0, 4.0]
    table = RouteTable.from_model(model, timesteps)
    session = onnxruntime.InferenceSession(exported("fp32"), providers=["CPUExecutionProvider"])
    inputs = model.inputs(len(timesteps)) | {"timestep": torch.tensor(timesteps)}
    (routes,) = session.run(["routes"], {name: tensor.numpy() for name, tensor in inputs.items()})
    np.testing.assert_array_equal(routes.transpose(1, 0, 2), table.routes)


def test_exporting_leaves_the_model_alone(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load().train()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    skeleton, weights = skeleton_of(model, "fp16")
    assert model.training and not skeleton.training
    for name, tensor in model.named_parameters():
        assert id(tensor) == before[name][0]
        torch.testing.assert_close(tensor, before[name][1], rtol=0, atol=0)
    assert set(weights) == set(before)
    held = sum(p.untyped_storage().nbytes() for p in skeleton.parameters())
    assert held < 4 * len(weights) + 1, "placeholders take one element each"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int8"}, r"precision 'int8': must be one of fp32, fp16, bf16"),
        ({"opset": 18}, r"opset 18: must be 23, .* or 17 for TensorRT 8.6"),
    ],
)
def test_bad_arguments(load: Load, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(load(), tmp_path / "model.onnx", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", ["fp32", "fp16"])
def test_rounded_weights_are_not_converted(load: Load, tmp_path: Path, wanted: str) -> None:
    with pytest.raises(ValueError, match=r"rounded already; load it with .*dtype=torch\.float"):
        export_onnx(load("bf16"), tmp_path / "model.onnx", wanted)


def test_model_without_geometry(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model without a geometry: .*for_video"):
        export_onnx(load(router=None, geometry=None), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("folder.onnx", WriteError, "is a folder; give a file name"),
        ("model.txt", ValueError, r"model.txt: its suffix must be .onnx; use e.g. .*model.onnx"),
        ("model", ValueError, "its suffix must be .onnx"),
        ("missing/model.onnx", WriteError, "its folder does not exist; create it first"),
    ],
)
def test_bad_destination(load: Load, tmp_path: Path, target: str, error: type[Exception], message: str) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(error, match=message):
        export_onnx(load(), tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_what_is_too_large_for_one_file(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vorta_trt.export import onnx_export

    monkeypatch.setattr(onnx_export, "INLINE_LIMIT", 10_000)
    with pytest.raises(ValueError, match="external_data False .*use external_data=True"):
        export_onnx(load(), tmp_path / "model.onnx", external_data=False)
    assert not list(tmp_path.iterdir())


def test_checks_catch_a_wrong_graph(exported: Exported) -> None:
    graph, metadata = ir.load(exported("fp32")), read_metadata(exported("fp32"))
    check_graph(graph, metadata)
    for wrong, message in (
        (
            {"num_layers": LAYERS + 1},
            "nodes \\['RoutedAttention', 'RoutedAttention'\\]: must be one RoutedAttention per layer, 3",
        ),
        ({"geometry": {**metadata.geometry, "keep": 5}}, "blocks.0/RoutedAttention with .* must have"),
        ({"inputs": metadata.inputs[::-1]}, "inputs .*: must be"),
        ({"outputs": metadata.outputs[:1]}, "outputs .*: must be"),
    ):
        with pytest.raises(ExportError, match=message):
            check_graph(graph, metadata.model_copy(update=wrong))

    sine = graph.graph.initializers["rope_sin"]
    held = sine.const_value
    sine.const_value = graph.graph.initializers["rope_cos"].const_value
    with pytest.raises(ExportError, match="initializers rope_cos and rope_sin: hold the same table"):
        check_graph(graph, metadata)
    sine.const_value = held

    query, key, value, _ = next(node for node in graph.graph if node.op_type == ROUTED_ATTENTION.name).inputs
    past_the_operator = ir.node("Attention", [query, key, value], name="blocks.0/Attention_1")
    graph.graph.append(past_the_operator)
    with pytest.raises(ExportError, match="blocks.0/Attention_1.*at most one cross-attention per layer"):
        check_graph(graph, metadata)
    graph.graph.remove(past_the_operator)

    graph.graph.append(ir.node("Relu", [query, key], name="invalid"))  # one input too many
    with pytest.raises(ExportError, match="onnx.checker refuses the exported graph"):
        check_graph(graph, metadata)
