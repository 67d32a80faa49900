# SPDX-License-Identifier: Apache-2.0
"""`verify` passes on what the exporter writes, and fails, with the place, on what it did not."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_checkpoint import make_router
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.from_checkpoint import Source, export_checkpoint
from vorta_trt.runtime.verification.cases import make_cases
from vorta_trt.runtime.verification.report import (
    FP8_LIMIT,
    FP32_LIMIT,
    VerifyReport,
    case_table,
    fp8_table,
    layer_table,
)
from vorta_trt.runtime.verification.sides import Sides
from vorta_trt.runtime.verification.verify import verify

from ...tiny import SIZE, WAN, Tiny

CASES = [
    "router, tau 0.3",
    "router, tau 0",
    "router, tau 1.1",
    "all full",
    "all coreset",
    "all sliding",
    "mixed override",
]


def tampered(source: Path, target: Path, initializer: str, change: Callable[[Any], None]) -> Path:
    """A copy of a model in which `change` was applied to the values of the first initializer of that name."""
    model = onnx.load(source)
    tensor = next(tensor for tensor in model.graph.initializer if initializer in tensor.name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, target)
    return target


def one_element(value: float) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        values.flat[7] += value

    return change


def all_coreset(bias: Any) -> None:
    bias[:] = [0, 99, 0] * (bias.size // 3)


def printed(report: VerifyReport) -> str:
    from rich.console import Console

    console = Console(width=140, file=io.StringIO())
    with console.capture() as capture:
        console.print(case_table(report))
        if (fp8 := fp8_table(report)) is not None:
            console.print(fp8)
        if (layers := layer_table(report)) is not None:
            console.print(layers)
    return capture.get()


def test_an_fp32_file_passes_every_case(wan: Any, fp32: Path) -> None:
    stages: list[str] = []
    report = verify(fp32, wan.checkpoint, wan.router, batch=2, progress=stages.append)
    assert report.passed, report
    assert [case.name for case in report.cases] == CASES
    assert report.executor == "onnxruntime"
    assert report.layers is None
    for case in report.cases:
        (sample,) = case.outputs
        assert sample.name == "sample"
        assert 0 < sample.relative_l2 <= sample.limit == FP32_LIMIT
        assert sample.torch_relative_l2 is None
        assert case.routes == 2 * 2 * 3  # layers, batch, heads
    content = json.loads(report.model_dump_json())
    assert content["passed"] is True
    assert content["cases"][0]["outputs"][0]["passed"] is True
    assert any("torch in fp32" in stage for stage in stages)


def test_an_fp16_file_passes_beside_torch_fp16(wan: Any, fp16: Path) -> None:
    report = verify(fp16, wan.checkpoint, wan.router, batch=2, cases=["router, tau 0.3", "mixed override"])
    assert report.passed, report
    for case in report.cases:
        (sample,) = case.outputs
        assert sample.torch_relative_l2 is not None
        assert sample.limit == pytest.approx(2 * sample.torch_relative_l2)
    assert "torch fp16" in printed(report)


def test_a_bf16_file_runs_in_the_reference_evaluator(wan: Any, bf16: Path) -> None:
    report = verify(bf16, wan.checkpoint, wan.router, cases=["router, tau 0.3"])
    assert report.executor == "reference"
    assert report.passed, report


def test_the_onnx_file_of_a_bundle_can_be_verified_without_gpu(wan: Any, bundle: Path) -> None:
    report = verify(bundle, wan.checkpoint, wan.router, executor="onnxruntime", cases=["all coreset"], layers=True)
    assert report.passed, report
    assert report.layers is not None
    assert report.layers.note == "no module departs"
    with pytest.raises(VortaError, match="cannot run here"):
        verify(bundle, wan.checkpoint, wan.router, cases=["all coreset"])


@pytest.mark.parametrize(
    ("initializer", "module"),
    [
        ("blocks.1.ffn.net.0.proj.weight", "blocks.1.ffn"),
        ("blocks.0.attn1.to_k.weight", "blocks.0.attn1.to_k"),
        ("patch_embedding.weight", "patch_embedding"),
    ],
)
def test_a_changed_weight_is_found(wan: Any, fp32: Path, tmp_path: Path, initializer: str, module: str) -> None:
    model = tampered(fp32, tmp_path / "changed.onnx", initializer, one_element(2.0))
    report = verify(model, wan.checkpoint, wan.router, cases=["all full", "all sliding"])
    assert not report.passed
    assert report.layers is not None
    assert report.layers.first_departure == module
    assert f"first departure: {module}" in printed(report)
    before = [error for error in report.layers.modules if error.name == "condition_embedder.time_proj"]
    assert before[0].passed
    assert json.loads(report.model_dump_json())["layers"]["first_departure"] == module


def test_a_changed_router_is_found_in_the_routes(wan: Any, fp32: Path, tmp_path: Path) -> None:
    model = tampered(fp32, tmp_path / "changed.onnx", "blocks.1.router.linear.bias", all_coreset)
    report = verify(model, wan.checkpoint, wan.router, batch=2, cases=["router, tau 0", "all full"])
    router, full = report.cases
    assert router.different_routes > 0
    assert not router.passed
    assert full.passed
    assert f"{router.different_routes} of 12 differ" in printed(report)


def test_values_that_are_not_finite_fail(wan: Any, fp32: Path, tmp_path: Path) -> None:
    model = tampered(fp32, tmp_path / "nan.onnx", "proj_out.bias", one_element(float("nan")))
    report = verify(model, wan.checkpoint, wan.router, cases=["all full"], layers=False)
    assert not report.passed
    assert json.loads(report.model_dump_json())["cases"][0]["outputs"][0]["relative_l2"] == "NaN"


def test_the_same_seed_gives_the_same_errors(wan: Any, fp32: Path, tmp_path: Path) -> None:
    one = verify(fp32, wan.checkpoint, wan.router, seed=5, cases=["mixed override"])
    variant = Path(shutil.copytree(wan.checkpoint, tmp_path / "variant"))
    weights = variant / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    cases = ["all full", "mixed override"]
    two = verify(fp32, variant, wan.router, seed=5, cases=cases, variant="fp16")
    assert one.cases[0] == two.cases[1]
    fresh = {verify(fp32, wan.checkpoint, wan.router, cases=["all full"]).seed for _ in range(2)}
    assert len(fresh) == 2


def test_weights_outside_the_file(wan: Any, tmp_path: Path) -> None:
    from vorta_trt.export import export_onnx

    path = export_onnx(
        Source(wan.checkpoint, wan.router, precision="fp32").model(), tmp_path / "m.onnx", external_data=True
    )
    report = verify(path, wan.checkpoint, wan.router, cases=["mixed override"], layers=True)
    assert report.passed, report
    assert report.layers is not None
    assert len(report.layers.modules) == 4 + 2 * 7 + 1


def test_a_file_without_router(wan: Any, tmp_path: Path) -> None:
    from vorta_trt.model.video_size import VideoSize

    source = Source(wan.checkpoint, size=VideoSize(*SIZE), precision="fp32")
    path = export_checkpoint(source, tmp_path / "dense.onnx", lambda what, done, total: None)
    report = verify(path, wan.checkpoint)
    assert report.passed, report
    assert report.cases[0].name == "no router"
    assert len(report.cases) == 5
    with pytest.raises(ValueError, match="was exported without a router, so every head is full.*--router"):
        verify(path, wan.checkpoint, wan.router)


def test_another_checkpoint_fails(wan: Any, fp32: Path, tmp_path: Path) -> None:
    other = make_wan_checkpoint(tmp_path / "other", **WAN, seed=1)
    report = verify(fp32, other, wan.router, cases=["all full"])
    assert not report.passed
    assert report.layers is not None
    assert report.layers.first_departure == "patch_embedding"


def test_a_checkpoint_of_another_shape_is_an_error(wan: Any, fp32: Path, tmp_path: Path) -> None:
    deeper = make_wan_checkpoint(tmp_path / "deeper", **{**WAN, "layers": 3})
    make_router(tmp_path / "router", wan.geometry, layers=3, heads=3, head_dim=32)
    with pytest.raises(ValueError, match=r"route_override of shape \(2, 3\)"):
        verify(fp32, deeper, tmp_path / "router", cases=["all full"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"router": None}, "was exported with a router, so it must be compared with one; give --router"),
        ({"precision": "bf16"}, "precision 'bf16': .* is in fp32; leave it out"),
        ({"cases": ["all dense"]}, "case 'all dense': must be one of 'router, tau 0.3'"),
        ({"batch": 0}, "batch 0: must be at least 1"),
    ],
)
def test_bad_arguments(wan: Any, fp32: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify(fp32, wan.checkpoint, **{"router": wan.router, **arguments})


def test_a_file_of_another_origin(wan: Any, tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.helper.make_empty_tensor_value_info("y")])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(ValueError, match="vorta-trt did not export it"):
        verify(tmp_path / "relu.onnx", wan.checkpoint, wan.router)


def test_inputs_of_the_cases(wan: Any, bf16: Path, seed: int) -> None:
    from vorta_trt.runtime.target import read_target

    target = read_target(bf16)
    specs = target.inputs
    cases = make_cases(specs, target.metadata.model_inputs(), default_tau=0.3, has_router=True, batch=3, seed=seed)
    for case in cases:
        latents = case.feeds["hidden_states"]
        assert latents.shape == (3, 4, 3, 8, 12)
        assert latents.dtype == np.float32
        assert not (latents.view(np.uint32) & 0xFFFF).any()  # rounded to bfloat16
        assert len(set(case.feeds["timestep"].tolist())) == 3
    overrides = {case.name: case.feeds["route_override"] for case in cases}
    assert (overrides["all sliding"] == 2).all()
    assert (overrides["router, tau 0"] == -1).all()
    assert not np.array_equal(cases[0].feeds["hidden_states"], cases[1].feeds["hidden_states"])


@pytest.mark.parametrize(
    ("given", "truth", "relative"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.1, 0.0], [0.0, 0.0], float("inf")),
        ([1.0], [1.0, 2.0], float("inf")),
        ([float("inf"), 1.0], [1.0, 1.0], float("inf")),
    ],
)
def test_errors(given: list[float], truth: list[float], relative: float) -> None:
    sides = Sides({"x": np.float32(given)}, {"x": np.float32(truth)}, None)
    error = sides.error("x")
    assert error.relative_l2 == pytest.approx(relative)
    assert error.passed == (relative == 0.0)


def test_twice_the_error_of_torch_in_the_same_type() -> None:
    truth = {"x": np.float32([1, 1, 1, 1])}
    torch_same = {"x": np.float32([1.01, 1, 1, 1])}
    for offset, passed in ((0.019, True), (0.021, False)):
        error = Sides({"x": np.float32([1 + offset, 1, 1, 1])}, truth, torch_same).error("x")
        assert error.passed is passed
        assert error.torch_relative_l2 == pytest.approx(0.005)


def test_fp8_attention_has_a_limit_of_its_own() -> None:
    truth = {"x": np.float32([1, 1, 1, 1])}
    for offset, passed in ((0.098, True), (0.102, False)):  # relative L2 errors of 0.049 and 0.051
        for torch_same in (None, {"x": np.float32([1.001, 1, 1, 1])}):
            engine = {"x": np.float32([1 + offset, 1, 1, 1])}
            error = Sides(engine, truth, torch_same, fp8_attention=True).error("x")
            assert error.limit == FP8_LIMIT == 5e-2
            assert error.passed is passed
            assert not Sides(engine, truth, torch_same).error("x").passed
    coarse = {"x": np.float32([1.1, 1, 1, 1])}  # torch's own error may allow more
    assert Sides(truth, truth, coarse, fp8_attention=True).error("x").limit == pytest.approx(0.1)


def test_a_file_with_fp8_attention_is_exact_where_its_portable_form_runs(wan: Any) -> None:
    report = verify(wan.export("fp32", "fp8"), wan.checkpoint, wan.router, cases=["mixed override"], layers=True)
    assert report.passed, report
    assert (report.attention_precision, report.executor) == ("fp8", "onnxruntime")
    assert report.cases[0].outputs[0].limit == FP32_LIMIT
    assert f"{FP32_LIMIT:g}" in report.rule


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_with_fp8_attention_tells_what_fp8_does_to_each_layer(
    wan: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    report = verify(wan.export(precision, "fp8"), wan.checkpoint, wan.router, cases=["mixed override", "all full"])
    for case in report.cases:
        fp8 = case.fp8_attention
        assert fp8 is not None and fp8.source == "emulation"
        assert len(fp8.layers) == WAN["layers"]
        for error in (fp8, *fp8.layers):
            assert 1e-4 < error.relative_l2 < 0.08
            assert error.norm_ratio == pytest.approx(1, abs=0.03)
        assert fp8.layers[fp8.worst_layer].relative_l2 == max(layer.relative_l2 for layer in fp8.layers)
        told = next(each for each in json.loads(report.model_dump_json())["cases"] if each["name"] == case.name)
        assert told["fp8_attention"]["worst_layer"] == fp8.worst_layer
        assert told["fp8_attention"]["norm_ratio"] == fp8.norm_ratio
    assert "emulated" in printed(report)


def test_files_without_fp8_attention_tell_nothing_of_it(wan: Any) -> None:
    report = verify(wan.export("fp32"), wan.checkpoint, wan.router, cases=["all full"])
    assert report.cases[0].fp8_attention is None
    assert fp8_table(report) is None


def test_an_engine_with_fp8_attention_gets_the_fp8_rule(
    wan: Any, fp32: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Plays TensorRT with ONNX Runtime on a file whose output is 1 % off: right for fp8, wrong for anything else."""
    from vorta_trt.runtime.engine import Engine

    def one_percent_more(values: Any) -> None:
        values *= 1.01

    monkeypatch.setattr(Engine, "executor", "tensorrt")
    for source, passes in ((wan.export("fp32", "fp8"), True), (fp32, False)):
        model = source
        for name in ("proj_out.weight", "proj_out.bias"):
            model = tampered(model, tmp_path / f"{passes} {name}.onnx", name, one_percent_more)
        report = verify(model, wan.checkpoint, wan.router, cases=["all sliding"], layers=False)
        assert report.passed is passes, report
        if passes:
            assert report.cases[0].outputs[0].limit == FP8_LIMIT
            assert report.rule == "relative L2 error against torch fp32 at most 0.05, because of fp8 attention"
            assert report.rule.partition(",")[0] in printed(report)


def test_routes_are_compared_with_torch_in_the_same_type_and_the_truth_takes_them(wan: Any, bf16: Path) -> None:
    """Rounding moves routes between types; the truth must follow, sample by sample."""
    from vorta_trt.model import RoutedTransformer
    from vorta_trt.runtime.target import read_target
    from vorta_trt.runtime.verification.sides import run_torch

    target = read_target(bf16)
    specs = target.inputs
    known = target.metadata.model_inputs()
    (case,) = make_cases(specs, known, default_tau=0.0, has_router=True, batch=3, seed=3, only=["router, tau 0"])

    model = RoutedTransformer.from_pretrained(wan.checkpoint, wan.router, wan.geometry)
    pinned = [np.random.default_rng(3).integers(0, 3, (2, 3, 3)).astype(np.int32)]  # [L, B, N]
    (plain,), (truth,) = run_torch(model, specs, [case]), run_torch(model, specs, [case], pinned)
    sides = Sides(plain, truth, None)
    np.testing.assert_array_equal(sides.truth["routes"], pinned[0])
    assert sides.different("routes") == (sides.engine["routes"] != pinned[0]).sum() > 0
    (own,) = run_torch(model, specs, [case], [plain["routes"]])
    same = Sides(plain, own, None)
    assert same.error("sample").relative_l2 < 1e-6


def run_command(*arguments: object) -> list[dict[str, Any]]:
    from typer.testing import CliRunner

    from vorta_trt.cli import app

    result = CliRunner().invoke(app, ["verify", *map(str, arguments), "--case", "mixed override", "--json"])
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_the_command_compares_every_size(wan: Tiny) -> None:
    arguments = (wan.several, wan.checkpoint, "--router", wan.router, "--executor", "onnxruntime")
    reports = run_command(*arguments)
    assert [(report["component"], report["size"]) for report in reports] == [
        ("transformer", "9x64x96"),
        ("transformer", "5x32x64"),
    ]
    assert all(report["passed"] for report in reports)


def test_the_command_compares_both_experts(tiny_experts: Any) -> None:
    high, low = (
        f"{name}={router}" for name, router in zip(("high", "low"), tiny_experts.routers.values(), strict=True)
    )
    reports = run_command(tiny_experts.onnx, tiny_experts.checkpoint, "--router", high, "--router", low)
    assert [(report["component"], report["passed"]) for report in reports] == [
        ("transformer", True),
        ("transformer_2", True),
    ]
