# SPDX-License-Identifier: Apache-2.0
"""An exported HunyuanVideo: its contract, and the same numbers as torch for every routing and text length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from vorta_trt.export import ExportError, export_onnx, read_metadata, routed_attention_nodes
from vorta_trt.export.graph_checks import check_graph
from vorta_trt.model import RoutedTransformer
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

from .running import (
    CORESET,
    FULL,
    ROUTER,
    ROUTINGS,
    SLIDING,
    Inputs,
    Outputs,
    errors,
    fresh_inputs,
    in_onnxruntime,
    in_reference_evaluator,
    in_torch,
)

DUAL, SINGLE, HEADS, TEXT = 2, 1, 3, 256  # of the tiny HunyuanVideo
LAYERS = DUAL + SINGLE
BLOCKS = [f"transformer_blocks.{i}" for i in range(DUAL)] + [f"single_transformer_blocks.{i}" for i in range(SINGLE)]
Load = Callable[..., RoutedTransformer]
Exported = Callable[[str], Path]


def mask_of(lengths: list[int]) -> Tensor:
    return (torch.arange(TEXT) < torch.tensor(lengths)[:, None]).to(torch.int32)


# -- contract ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_interface_is_the_contract(hunyuan_video_file: Exported, precision: str, dtype: str) -> None:
    metadata = read_metadata(hunyuan_video_file(precision))
    assert [str(info) for info in metadata.inputs] == [
        f"hidden_states {dtype}[batch, 4, 3, 8, 12]",
        "timestep float32[batch]",
        f"encoder_hidden_states {dtype}[batch, {TEXT}, 32]",
        f"encoder_attention_mask int32[batch, {TEXT}]",
        f"pooled_projections {dtype}[batch, 24]",
        "guidance float32[batch]",
        "tau float32[1]",
        f"route_override int32[{LAYERS}, {HEADS}]",
    ]
    assert [str(info) for info in metadata.outputs] == [
        f"sample {dtype}[batch, 4, 3, 8, 12]",
        f"routes int32[{LAYERS}, batch, {HEADS}]",
    ]
    assert (metadata.family, metadata.num_layers, metadata.text_length) == ("hunyuan_video", LAYERS, TEXT)
    assert metadata.has_router and metadata.config["num_single_layers"] == SINGLE
    geometry = metadata.attention_geometry
    assert (geometry.coreset_keys, geometry.text_tokens) == ("key", TEXT)


def test_nodes(hunyuan_video_file: Exported, hunyuan_video: Load) -> None:
    model = onnx.load(hunyuan_video_file("bf16"))
    onnx.checker.check_model(model, full_check=True)
    nodes = [node for node in model.graph.node if node.op_type == ROUTED_ATTENTION.name]
    assert [(node.domain, node.name) for node in nodes] == [
        (ROUTED_ATTENTION.namespace, f"{block}/{ROUTED_ATTENTION.name}") for block in BLOCKS
    ]
    assert all(len(node.input) == 5 for node in nodes)
    assert len({node.input[4] for node in nodes}) == 1, "one text length for all layers"
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["Attention"] == 1, "the token refiner's, as a single node"
    assert counts["QKNormRotary"] == DUAL + SINGLE
    assert counts["HeadNorm"] == 2 * DUAL, "text is not rotated"
    assert counts["NormModulate"] == 2, "before the first block; all others are with the residual before them"
    assert counts["ResidualNormModulate"] == 4 * DUAL + SINGLE
    assert counts["Linear"] == 12 * DUAL + 5 * SINGLE + 1  # patches
    joins = [node.name.split("/")[0] for node in model.graph.node if node.op_type == "Concat" and "blocks" in node.name]
    of_dual, of_single = (dict.fromkeys(blocks, count) for blocks, count in ((BLOCKS[:DUAL], 3), (BLOCKS[DUAL:], 1)))
    assert Counter(joins) == of_dual | of_single, "query, key and value of both streams; attention and feed forward"
    assert not counts["RMSNormalization"]
    assert not {"ScatterND", "ScatterElements", "Loop"}.intersection(counts)
    assert {node.geometry for node in routed_attention_nodes(hunyuan_video_file("bf16"))} == {hunyuan_video().geometry}
    outputs = {output for node in model.graph.node for output in node.output}
    names = ("output", "normed")
    assert outputs >= {f"{block}/{name}_{index}" for block in BLOCKS[:DUAL] for name in names for index in (0, 1)}
    assert outputs >= {f"{block}/{name}" for block in BLOCKS[DUAL:] for name in names}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_norms_and_softmax_are_float32(hunyuan_video_file: Exported, precision: str) -> None:
    graph = onnx.load(hunyuan_video_file(precision)).graph
    half = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    inferred = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)} | types
    for name, data_type in types.items():
        if "." in name and "frequencies" not in name:
            assert data_type == (onnx.TensorProto.FLOAT if ".router." in name else half), name
    for node in graph.node:
        if node.op_type in ("RMSNormalization", "LayerNormalization", "Softmax"):
            assert inferred[node.input[0]] == onnx.TensorProto.FLOAT, node.name
        if node.op_type in ("MatMul", "Attention", ROUTED_ATTENTION.name):
            assert inferred[node.input[0]] == half, node.name


def test_without_guidance(tmp_path: Path) -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    from vorta_trt.model import AttentionGeometry

    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "num_single_layers": 1}
    sizes.update(num_refiner_layers=1, text_embed_dim=6, pooled_projection_dim=5, in_channels=4, out_channels=4)
    model = HunyuanVideoTransformer3DModel(**sizes, rope_axes_dim=(4, 6, 6), guidance_embeds=False).eval()
    geometry = AttentionGeometry.for_grid((2, 4, 6), "hunyuan_video", text_tokens=3)
    routed = RoutedTransformer.from_model(model, geometry=geometry)
    path = export_onnx(routed, tmp_path / "m.onnx")
    metadata = read_metadata(path)
    assert "guidance" not in {info.name for info in metadata.inputs} and not metadata.has_router
    inputs = fresh_inputs(routed, 2, 0.3, "mixed")
    expected, expected_routes = in_torch(routed, inputs)
    sample, routes = in_onnxruntime(path, inputs)
    np.testing.assert_array_equal(routes, expected_routes)
    assert errors(sample, expected).max() < 1e-5


def test_attention_past_the_operator_is_found(hunyuan_video_file: Exported) -> None:
    graph, metadata = ir.load(hunyuan_video_file("fp32")), read_metadata(hunyuan_video_file("fp32"))
    query, key, value, *_ = next(node for node in graph.graph if node.op_type == ROUTED_ATTENTION.name).inputs
    graph.graph.append(ir.node("Attention", [query, key, value], name="past the operator"))
    with pytest.raises(ExportError, match="past the operator.*at most one per layer of the token refiner"):
        check_graph(graph, metadata)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tau", "routing"), ROUTINGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_float32_in_onnxruntime(
    hunyuan_video_file: Exported, hunyuan_video: Load, batch: int, tau: float, routing: int | str
) -> None:
    model = hunyuan_video()
    inputs = fresh_inputs(model, batch, tau, routing)
    expected, expected_routes = in_torch(model, inputs)
    sample, routes = in_onnxruntime(hunyuan_video_file("fp32"), inputs)
    np.testing.assert_array_equal(routes, expected_routes)
    assert np.isfinite(sample).all()
    print(f"error {errors(sample, expected).max():.1e}")
    assert errors(sample, expected).max() < 1e-5
    if tau > 1 and routing == ROUTER:
        assert (routes == FULL).all()
    if routing in (FULL, CORESET, SLIDING):
        assert (routes == routing).all()


def test_text_length_changes_without_another_export(hunyuan_video_file: Exported, hunyuan_video: Load) -> None:
    model = hunyuan_video()
    lengths = [0, 1, 4, TEXT - 1, TEXT]
    inputs = fresh_inputs(model, len(lengths), 0.3, "mixed") | {"encoder_attention_mask": mask_of(lengths)}
    for name in ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections", "guidance"):
        inputs[name] = inputs[name][:1].expand(inputs[name].shape).contiguous()  # the length alone differs
    expected, _ = in_torch(model, inputs)
    sample, _ = in_onnxruntime(hunyuan_video_file("fp32"), inputs)
    assert errors(sample, expected).max() < 1e-5
    for one, other in zip(sample, sample[1:], strict=False):
        assert np.abs(one - other).max() > 1e-4


def test_padded_text_reaches_nothing(hunyuan_video_file: Exported, hunyuan_video: Load) -> None:
    inputs = fresh_inputs(hunyuan_video(), 2, 0.0, "mixed") | {"encoder_attention_mask": mask_of([3, 7])}
    expected, _ = in_onnxruntime(hunyuan_video_file("fp32"), inputs)
    inputs["encoder_hidden_states"][0, 3:] = torch.nan
    inputs["encoder_hidden_states"][1, 7:] = torch.inf
    sample, _ = in_onnxruntime(hunyuan_video_file("fp32"), inputs)
    np.testing.assert_array_equal(sample, expected)


@pytest.mark.parametrize(("tau", "routing"), ROUTINGS)
@pytest.mark.parametrize(
    ("precision", "run", "samples"),
    [
        pytest.param("fp16", in_onnxruntime, 7, id="fp16 in ONNX Runtime"),
        pytest.param("bf16", in_reference_evaluator, 5, id="bf16 in the reference evaluator"),
    ],
)
def test_half_types_lose_no_more_than_torch(
    hunyuan_video_file: Exported,
    hunyuan_video: Load,
    precision: str,
    run: Callable[[Path, Inputs], Outputs],
    samples: int,
    tau: float,
    routing: int | str,
) -> None:
    half = hunyuan_video(precision)
    inputs = fresh_inputs(half, samples, tau, routing)
    widened = {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}
    in_half, half_routes = in_torch(half, inputs)
    exact = np.concatenate(  # a sample at a time, with the routes of the half type, whose timestep embedding is rounded
        [
            in_torch(
                hunyuan_video(),
                {name: t if name in ("tau", "route_override") else t[i : i + 1] for name, t in widened.items()}
                | {"route_override": torch.from_numpy(half_routes[:, i]).contiguous()},
            )[0]
            for i in range(samples)
        ]
    )
    sample, routes = run(hunyuan_video_file(precision), inputs)
    np.testing.assert_array_equal(routes, half_routes)
    assert np.isfinite(sample).all()
    # As for Wan: where a near-tie decides the coreset, compare the best sample.
    typical = np.min if (routes == CORESET).any() else np.median
    own, torchs = typical(errors(sample, exact)), typical(errors(in_half, exact))
    print(f"error {own:.2e}, torch's {torchs:.2e}")
    assert own < 2 * torchs


def test_weights_on_disk_give_the_same_file(hunyuan_video: Load, hunyuan_video_file: Exported, tmp_path: Path) -> None:
    lazy = export_onnx(hunyuan_video("bf16", materialize=False), tmp_path / "lazy.onnx")
    held = onnx.load(hunyuan_video_file("bf16")).graph
    assert onnx.load(lazy).graph == held
