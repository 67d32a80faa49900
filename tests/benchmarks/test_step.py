# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt bench step`: tiny models on the CPU through the very code that measures the real ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from vorta_trt.benchmarks.step import run as step_run
from vorta_trt.benchmarks.step.cases import CASES, StepCase, mixed_routes, select_case
from vorta_trt.benchmarks.step.loops import Loop, run_loop
from vorta_trt.benchmarks.step.measure import difference, kind_of_kernel
from vorta_trt.benchmarks.step.models import DIFFUSERS, EAGER, OURS, TORCH, Subject, Variant
from vorta_trt.benchmarks.step.plot import plot_report
from vorta_trt.benchmarks.step.report import StepReport
from vorta_trt.benchmarks.step.run import StepOptions, run_case
from vorta_trt.benchmarks.step.table import headline, loop_table, remarks, step_table
from vorta_trt.cli import app
from vorta_trt.export import export_onnx
from vorta_trt.model import Branch
from vorta_trt.runtime.sampling.step_plan import StepPlan

SIZES = {"num_attention_heads": 4, "attention_head_dim": 32}
WAN = StepCase(
    "tiny", "wan", {"num_layers": 2, "ffn_dim": 64, "text_dim": 24, **SIZES}, (17, 96, 96), passes=2, shift=3.0
)
HUNYUAN_VIDEO = StepCase(
    "tiny",
    "hunyuan_video",
    {
        "num_layers": 1,
        "num_single_layers": 2,
        "text_embed_dim": 24,
        "pooled_projection_dim": 16,
        "rope_axes_dim": (4, 14, 14),
        **SIZES,
    },
    (9, 96, 96),
    passes=1,
    shift=7.0,
)
HUNYUAN_VIDEO_15 = StepCase(
    "tiny",
    "hunyuan_video_15",
    {
        **{"task_type": "t2v", "num_layers": 2, "num_refiner_layers": 1, "rope_axes_dim": (4, 14, 14)},
        **{"in_channels": 9, "out_channels": 4, "text_embed_dim": 24, "text_embed_2_dim": 16, "image_embed_dim": 8},
        **SIZES,
    },
    (9, 96, 96),
    passes=2,
    shift=9.0,
)
OPTIONS = StepOptions(mixes=("dense", "50/50"), modes=(EAGER,), steps=2, dtype="fp32", device="cpu")


def silent(what: str, done: int = 0, total: int = 0) -> None:
    pass


@pytest.fixture(scope="module", params=[WAN, HUNYUAN_VIDEO], ids=lambda case: case.family)
def report(request: pytest.FixtureRequest) -> StepReport:
    return run_case(request.param, OPTIONS, silent)


def test_every_implementation_computes_the_same_dense_sample(report: StepReport) -> None:
    rows = {(row.implementation, row.routes): row for row in report.rows}
    assert set(rows) == {(TORCH, "dense"), (DIFFUSERS, "dense"), (OURS, "dense"), (OURS, "50/50")}
    assert report.passed
    for row in rows.values():
        assert row.median is not None and row.median > 0 and row.runs == 2
        assert row.difference is not None and row.difference < 1e-5
    assert rows[OURS, "50/50"].flops < rows[OURS, "dense"].flops  # type: ignore[operator]
    assert rows[TORCH, "dense"].times_dense == rows[OURS, "dense"].times_own_dense == 1
    for row in rows.values():  # by the kernels and by routing: together, against torch
        own = rows[row.implementation, "dense"].times_dense
        assert own is not None and row.times_own_dense is not None
        assert row.times_dense == pytest.approx(own * row.times_own_dense, rel=1e-2)


def test_a_model_of_two_timesteps_gets_them_as_its_pipeline_gives_them() -> None:
    config = {**WAN.config, "in_channels": 48, "out_channels": 48}
    subject = Subject.make(replace(WAN, config=config, video=(9, 96, 160)), "cpu", torch.float32)
    dense = torch.zeros(2, 4, dtype=torch.int32)
    ours, theirs = (subject.runs(name, dense)(700.0) for name in (OURS, DIFFUSERS))
    assert difference(ours, theirs) < 1e-5


def test_our_kernels_are_measured_dense_whatever_mixes_are_asked_for() -> None:
    report = run_case(WAN, replace(OPTIONS, mixes=("50/50",), peers=(), loops=False), silent)
    assert [(row.implementation, row.routes) for row in report.rows] == [(OURS, "dense"), (OURS, "50/50")]
    alone = replace(OPTIONS, mixes=("50/50",), dense=False, peers=(), loops=False)
    assert [row.routes for row in run_case(WAN, alone, silent).rows] == ["50/50"]
    assert report.rows[1].times_own_dense is not None and report.rows[1].times_dense is None


def test_variants_compute_the_same_and_leave_the_model_as_it_was() -> None:
    subject = Subject.make(HUNYUAN_VIDEO, "cpu", torch.float32)
    before, run = dict(subject.routed.named_modules()), subject.runs(OURS, torch.zeros(3, 4, dtype=torch.int32))
    native = run(700.0)
    for variant in (Variant("same", "plugin"), Variant("same", "native", "fp8"), Variant("fp8", "plugin", "fp8")):
        with subject.computed_by(variant):
            assert subject.routed.attention_precision == variant.attention_precision
            found = difference(run(700.0), native)
        assert found < 1e-5 if variant.exact else 1e-3 < found < 0.2, variant
    assert (subject.routed.attention_precision, subject.routed.block_ops) == ("same", "native")
    assert dict(subject.routed.named_modules()) == before
    assert variant.named(OURS) == "vorta-trt fp8, plugin, fp8 linears" and Variant().named(OURS) == OURS


def test_loops_are_counted_from_measured_steps(report: StepReport) -> None:
    plain, tea, distilled = report.loops
    passes = report.about["passes_per_step"]
    assert (plain.steps, plain.computed, plain.passes, plain.extrapolated) == (50, 50, passes, True)
    assert plain.seconds == pytest.approx(50 * plain.computed_seconds, rel=1e-2)
    assert (tea.computed, tea.measured) == (25, 10)
    assert 0 < tea.measured_computed < 10
    assert tea.reused_seconds is not None
    assert tea.seconds == pytest.approx(25 * tea.computed_seconds + 25 * tea.reused_seconds, rel=1e-2)
    assert (distilled.steps, distilled.passes, distilled.extrapolated) == (6, 1, False)
    dense = report.row(TORCH, EAGER)
    assert dense is not None and dense.median is not None
    # It is rounded to two decimals, which is more than 1 % of a small number.
    assert plain.times_dense == pytest.approx(50 * passes * dense.median / plain.seconds, rel=1e-2, abs=6e-3)


def test_report_comes_back_from_its_file_and_is_shown(report: StepReport, tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    file.write_text(report.to_json())
    again = StepReport.read(file)
    assert again == replace(report, about=json.loads(json.dumps(report.about)))
    assert "no GPU" in headline(again)
    assert [*step_table(again).columns[2].cells][2:] == ["dense, our kernels", "50/50"]
    assert step_table(again).row_count == 4 and loop_table(again).row_count == 3
    assert plot_report(again, tmp_path / "step.png").stat().st_size > 10_000
    assert all("TeaCache" in line or "dense steps" in line for line in remarks(again))


def bench(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", "step", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_the_command_shows_a_kept_report(report: StepReport, tmp_path: Path) -> None:
    file, picture = tmp_path / "step.json", tmp_path / "step.png"
    file.write_text(report.to_json())
    code, shown = bench("--from", file, "--plot", picture)
    assert code == 0 and f"wrote {picture}" in shown and "one pass" in shown and "sampling" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(bench("--from", file, "--json")[1]) == json.loads(report.to_json())


def test_what_the_command_refuses_before_it_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, code, message in (
        ((), 1, "bench step: needs a CUDA GPU"),
        (("--mix", "50/60"), 2, "must be 'dense', percent"),
        (("--output", tmp_path / "absent/step.json"), 2, "its folder does not exist"),
        (("--plot", tmp_path / "step.bmpx"), 1, "its suffix must be one of"),
    ):
        assert bench(*arguments)[0] == code, arguments
        assert message in bench(*arguments)[1], arguments


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no", "is not valid JSON"),
        ('{"schema": 1, "question": "attention"}', "is no report of `bench step`"),
        (
            '{"schema": 1, "question": "step", "rows": [{"speed": 1}], "loops": []}',
            "rows: 0.implementation: is missing",
        ),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        StepReport.read(file)


def test_a_wrong_sample_is_a_wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Subject.runs

    def runs(self: Subject, implementation: str, routes: torch.Tensor | None) -> Any:
        run = right(self, implementation, routes)
        return (lambda timestep: 2 * run(timestep)) if implementation == OURS else run

    monkeypatch.setattr(Subject, "runs", runs)
    report = run_case(WAN, replace(OPTIONS, peers=("cudnn",), loops=False), silent)
    assert [row.state for row in report.rows] == ["ok", "wrong", "ok"]  # the mix has nothing to be compared with
    assert not report.passed
    assert "differs by" in remarks(report)[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the tiny Wan, with weights of its own."""
    model = Subject.make(WAN, "cpu", torch.float32, seed=5).routed
    return export_onnx(model, tmp_path_factory.mktemp("engine") / "wan.onnx", "fp32")


def test_an_engine_is_measured_beside_torch(exported: Path) -> None:
    report = run_case(WAN, replace(OPTIONS, peers=("cudnn",), loops=False, bundle=exported), silent)
    engine = [row for row in report.rows if row.mode == "engine"]
    assert [(row.implementation, row.routes) for row in engine] == [
        ("engine, onnxruntime fp32", "dense"),
        ("engine, onnxruntime fp32", "50/50"),
    ]
    dense = report.row(TORCH, EAGER)
    assert report.passed and dense is not None and dense.median is not None
    for row in engine:
        assert row.median is not None and row.times_dense == pytest.approx(dense.median / row.median, rel=0.05)
    assert report.about["options"]["bundle"] == "wan.onnx"


def test_an_engine_of_another_model_is_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match="has layers 2, and tiny has 1.*--model"):
        run_case(WAN.with_layers(1), replace(OPTIONS, peers=(), loops=False, bundle=exported), silent)


def test_a_peer_that_cannot_run_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Subject.runs

    def runs(self: Subject, implementation: str, routes: torch.Tensor | None) -> Any:
        def fail(timestep: float) -> torch.Tensor:
            raise RuntimeError("out of memory\nand more")

        return fail if implementation == DIFFUSERS else right(self, implementation, routes)

    monkeypatch.setattr(Subject, "runs", runs)
    report = run_case(WAN, replace(OPTIONS, peers=("diffusers",), loops=False), silent)
    assert report.passed
    assert (report.rows[0].state, report.rows[0].note) == ("unavailable", "RuntimeError: out of memory")
    assert report.rows[1].times_dense is None


def test_without_a_routed_pass_there_are_rows_but_no_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Subject.runs

    def runs(self: Subject, implementation: str, routes: torch.Tensor | None) -> Any:
        def fail(timestep: float) -> torch.Tensor:
            raise torch.OutOfMemoryError("out of memory")

        return fail if implementation == OURS else right(self, implementation, routes)

    monkeypatch.setattr(Subject, "runs", runs)
    report = run_case(WAN, replace(OPTIONS, peers=("cudnn",)), silent)
    assert [row.state for row in report.rows] == ["ok", "failed", "failed"]
    assert not report.loops and not report.passed


def test_mixes_have_the_published_share_of_full_heads() -> None:
    routes = mixed_routes("30/70", 40, 40, seed=3)
    counts = [int((routes == int(branch)).sum()) for branch in Branch]
    assert counts == [3, 479, 1118]
    assert not torch.equal(routes, mixed_routes("30/70", 40, 40, seed=4))
    assert not mixed_routes("dense", 2, 3).any()


@pytest.mark.parametrize("mix", ["half", "50/60", "50", "-10/110", "1/2/98"])
def test_bad_mixes_are_refused(mix: str) -> None:
    with pytest.raises(ValueError, match="must be 'dense', percent"):
        mixed_routes(mix, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "sora"}, "model 'sora': must be one of wan-1.3b"),
        ({"modes": ("fast",)}, "modes 'fast'"),
        ({"peers": ("flash",)}, "peers 'flash'"),
        ({"precisions": ("int4",)}, "precisions 'int4'"),
        ({"block_ops": ("fast",)}, "block_ops 'fast': must be one of native, plugin"),
        ({"linear_precisions": ("int4",)}, "linear_precisions 'int4': must be one of same, fp8"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"steps": 0}, "steps 0"),
        ({"layers": 0}, "layers 0"),
        ({"mixes": ()}, "at least one"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepOptions(**options)


def test_three_texts_are_given_as_their_pipeline_gives_them() -> None:
    """diffusers' model wants an image of zeros, too."""
    report = run_case(HUNYUAN_VIDEO_15, replace(OPTIONS, mixes=("dense",), steps=1, loops=False), silent)
    differences = {row.implementation: row.difference for row in report.rows}
    assert report.passed and differences.keys() == {TORCH, DIFFUSERS, OURS}
    assert all(value is not None and value < 1e-5 for value in differences.values())


def test_the_published_models_have_their_sizes() -> None:
    assert CASES["wan-14b"].geometry.tokens == 72_000
    assert CASES["hunyuan-video"].geometry.tokens == 108_256
    assert CASES["wan2.2-ti2v-5b"].geometry.tokens == 27_280
    assert CASES["wan2.2-a14b"].geometry.tokens == CASES["wan2.2-i2v-a14b"].geometry.tokens == 75_600
    assert CASES["hunyuan-video-1.5"].geometry.tokens == 111_600 + 1_256
    assert select_case("hunyuan-video-1.5", 3).config["num_layers"] == 3
    fewer = select_case("hunyuan-video", 6).config
    assert (fewer["num_layers"], fewer["num_single_layers"]) == (2, 4)
    assert select_case("wan-14b", 3).config["num_layers"] == 3


def test_a_window_without_a_computed_step_is_refused() -> None:
    plan = StepPlan((900.0, 500.0), (True, False))
    with pytest.raises(ValueError, match="none of its first 0 steps is computed"):
        run_loop(WAN, Loop("none", plan, 1, 0), lambda timestep: torch.zeros(1), torch.zeros(1), "50/50")


def test_kernels_are_known_by_their_names() -> None:
    assert kind_of_kernel("void vorta::sm90::attention_kernel<Traits>(Params)") == "attention"
    assert kind_of_kernel("void vorta::fp8::(anonymous namespace)::quantize_kernel<16>(Params)") == "attention"
    for name in ("linear::(anonymous namespace)::own_product_kernel<E>", "linear::own_product_kernel"):
        assert kind_of_kernel(f"void vorta::{name}(Arguments)") == "matrix products"
    for name in (
        "norms::(anonymous namespace)::head_norm_kernel<H>",
        "linear::quantize_rows_kernel",
        "exchange::pack_kernel",
    ):
        assert kind_of_kernel(f"void vorta::{name}(Arguments)") == "other"
    assert kind_of_kernel("cudnn_generated_fort_native_sdpa_sm90_flash_fprop") == "attention"
    assert kind_of_kernel("nvjet_tst_256x128_64x4_1x2_h_bz_coopB_TNT") == "matrix products"
    assert kind_of_kernel("triton_red_fused__scaled_dot_product_attention_add_mul_0") == "other"
    assert kind_of_kernel("void at::native::vectorized_elementwise_kernel<4>") == "other"


def test_difference_is_relative_and_infinite_without_numbers() -> None:
    assert difference(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) == pytest.approx(0.08)
    assert difference(torch.tensor([math.nan]), torch.tensor([1.0])) == math.inf


@pytest.mark.filterwarnings("ignore:.*script_method. is deprecated:DeprecationWarning")  # of torch's own compiler
def test_compiled_blocks_are_themselves_again_afterwards() -> None:
    subject = Subject.make(WAN, "cpu", torch.float32)
    with subject.compiled(OURS):
        assert all(block._compiled_call_impl is not None for block in subject.routed.routed_blocks())
    assert all(block._compiled_call_impl is None for block in subject.routed.routed_blocks())
    assert step_run.MODES[0] == EAGER
