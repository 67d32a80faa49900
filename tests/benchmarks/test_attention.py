# SPDX-License-Identifier: Apache-2.0
"""The whole benchmark on the CPU with a clock of its own, in float32; on a GPU, a small grid for real."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.benchmarks import attention, checks, routed
from vorta_trt.benchmarks.attention import NoGpuError, Options, blank_row, case_rows, require_gpu, run
from vorta_trt.benchmarks.cases import Case, Inputs, make_inputs
from vorta_trt.benchmarks.checks import by_torch, expected, relative_error
from vorta_trt.benchmarks.peer import Peer, Prepared, Unavailable
from vorta_trt.benchmarks.report import Report, Row, recorded_errors
from vorta_trt.benchmarks.timing import Run, Timing
from vorta_trt.model import routed_attention, routed_attention_reference
from vorta_trt.plugins import LibraryError, load_library


class Clock:
    """Runs once and says 1, 2, 3, ... ms."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, run: Run) -> Timing:
        run()
        self.runs += 1
        return Timing(float(self.runs), self.runs - 0.5, self.runs + 0.5, 5)


def rerun(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """In place of a CUDA graph."""
    return run


def measured(case: Case, inputs: Inputs, options: Options, **changes: Any) -> list[Row]:
    arguments: dict[str, Any] = {"timer": Clock(), "capture": rerun, "progress": lambda what: None, **changes}
    return case_rows(case, inputs, options, 100.0, **arguments)


def test_rows_of_ours(case: Case, inputs: Inputs) -> None:
    rows = measured(case, inputs, Options(peers=("none",)))
    names = [(row.branch, row.implementation) for row in rows]
    assert names == [
        *((branch, "vorta-trt") for branch in ("full", "coreset", "sliding", "mixed")),
        ("mixed", "vorta-trt, graph replay"),
    ]
    assert {row.state for row in rows} == {"ok"}
    for row in rows:
        assert row.relative_error is not None and row.relative_error < 1e-5
        assert row.milliseconds is not None and row.useful_tflops is not None and row.ceiling_share is not None
        assert row.useful_tflops == round(case.flops(row.branch) / row.milliseconds * 1e-9, 1)
        assert row.times_own_dense == round(1 / row.milliseconds, 3)
        assert row.times_cudnn is None
    assert [row.milliseconds for row in rows[:4]] == [1, 2, 3, 4]


def test_mixed_routes_against_their_parts(make_case: Callable[..., Case], seed: int) -> None:
    case = make_case(heads=4)  # one full, two coreset, one sliding
    mixed = measured(case, make_inputs(case, "cpu", seed), Options(peers=("none",)))[3]
    parts = (1 * 1 + 2 * 2 + 3 * 1) / 4
    assert mixed.parts == {
        "prorated_milliseconds": parts,
        "separate_milliseconds": 5 + 6 + 7,
        "over_prorated": 4 / parts,
        "over_separate": round(4 / 18, 4),
    }


def test_mixed_routes_alone(make_case: Callable[..., Case], seed: int) -> None:
    case = make_case()
    rows = measured(case, make_inputs(case, "cpu", seed), Options(branches=("mixed",), peers=("none",)))
    assert set(rows[0].parts) == {"separate_milliseconds", "over_separate"}


def test_small_problems_go_through_graphs_in_every_branch(make_case: Callable[..., Case], seed: int) -> None:
    case = make_case()
    rows = measured(case, make_inputs(case, "cpu", seed), Options(small=True, peers=("none",)))
    assert [row.branch for row in rows if "graph" in row.implementation] == ["full", "coreset", "sliding", "mixed"]


def test_every_peer_has_a_row(make_case: Callable[..., Case], seed: int) -> None:
    case = make_case()
    rows = measured(case, make_inputs(case, "cpu", seed), Options(peers=("cudnn", "flash2", "flash4", "gather")))
    peers = {(row.branch, row.implementation): row for row in rows if not row.ours}
    assert len(peers) == 5
    for row in peers.values():
        assert (row.milliseconds is None) == (row.state != "ok") and (row.note or row.state == "ok"), row
    assert peers["full", "torch cuDNN"].state == "unavailable"
    assert "flash_attn.cute cannot be imported" in peers["full", "flash-attn-4"].note


def peer(make: Callable[[Case, Inputs], Prepared]) -> Peer:
    return Peer("torch cuDNN", "cudnn", "full", make)


def dense(factor: float = 1.0) -> Callable[[Case, Inputs], Prepared]:
    def prepare(case: Case, inputs: Inputs) -> Prepared:
        query, key, value = inputs.heads_first(case.valid)

        def run() -> Tensor:
            return factor * torch.nn.functional.scaled_dot_product_attention(query, key, value)

        return Prepared(run, lambda result: result.transpose(1, 2), "a note")

    return prepare


def refuses(error: Exception) -> Callable[[Case, Inputs], Prepared]:
    def prepare(case: Case, inputs: Inputs) -> Prepared:
        raise error

    return prepare


@pytest.mark.parametrize(
    ("prepare", "state", "note"),
    [
        (dense(), "ok", "a note"),
        (dense(1.1), "wrong", "relative error 1.00e-01 above .*; not timed"),
        (dense(float("nan")), "wrong", "relative error inf above"),
        (refuses(Unavailable("not here")), "unavailable", "^not here$"),
        (refuses(RuntimeError("No kernel.\nmore")), "unavailable", r"^RuntimeError: No kernel\.$"),
        (refuses(AssertionError()), "unavailable", "^AssertionError: $"),
    ],
)
def test_peer_rows(
    case: Case,
    inputs: Inputs,
    prepare: Callable[[Case, Inputs], Prepared],
    state: str,
    note: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "select_peers", lambda options: (peer(prepare),))
    monkeypatch.setattr(attention, "FACTOR", 1e3)  # in float32 everybody's errors are of one size
    row = measured(case, inputs, Options(branches=("full",)))[-1]
    assert row.state == state
    assert re.search(note, row.note), row.note
    assert (row.milliseconds is None) == (state != "ok")
    assert row.times_cudnn == (1 if state == "ok" else None)


def broken(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def attend(*arguments: Any, **options: Any) -> Tensor:
        return change(routed_attention(*arguments))

    return attend


def test_a_wrong_kernel_is_not_timed(case: Case, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routed, "routed_attention", broken(lambda output: output * 1.01))
    clock = Clock()
    rows = measured(case, inputs, Options(peers=("none",)), timer=clock)
    assert {row.state for row in rows} == {"wrong"} and len(rows) == 4 and clock.runs == 0
    assert not Report({}, rows).passed


def test_padding_must_be_zero(make_case: Callable[..., Case], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from vorta_trt.model import AttentionGeometry

    def poison(output: Tensor) -> Tensor:
        output[:, -1] = 1e-6
        return output

    case = make_case(geometry=AttentionGeometry((2, 3, 4), (2, 3, 2), (1, 1, 1), (2, 3, 2), 6, "key", 4), text_length=3)
    monkeypatch.setattr(routed, "routed_attention", broken(poison))
    rows = measured(case, make_inputs(case, "cpu", seed), Options(peers=("none",)))
    assert {row.note for row in rows} == {"rows of padded text are not 0; not timed"}


def test_a_failing_kernel_is_a_failed_row(
    case: Case, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any, **options: Any) -> Tensor:
        raise RuntimeError("launch failed\nmore")

    monkeypatch.setattr(routed, "routed_attention", fail)
    rows = measured(case, inputs, Options(peers=("none",)))
    assert {(row.state, row.note) for row in rows} == {("failed", "launch failed")}
    assert "launch failed" in caplog.text


def test_a_graph_that_remembers_its_routes_is_wrong(make_case: Callable[..., Case], seed: int) -> None:
    def frozen(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        output = run()
        return lambda: output

    case = make_case()
    rows = measured(case, make_inputs(case, "cpu", seed), Options(peers=("none",)), capture=frozen)
    assert rows[-1].state == "wrong"
    assert rows[-1].note == "replay differs from the eager call after the routes were changed; not timed"


def test_fp8_is_asked_for_and_bounded(
    make_case: Callable[..., Case], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def attend(*arguments: Any, **options: Any) -> Tensor:
        asked.append(options)
        return routed_attention(*arguments) * (1.04 if options else 1.0)

    monkeypatch.setattr(routed, "routed_attention", attend)
    options = Options(peers=("none",), precisions=("same", "fp8"))
    for inputs, bound in (("normal", 5e-2), ("outliers", None)):
        case = make_case(inputs=inputs)
        rows = measured(case, make_inputs(case, "cpu", seed), options)
        fp8 = [row for row in rows if row.implementation == "vorta-trt fp8"]
        assert {row.state for row in rows} == {"ok"} and len(fp8) == 4
        assert {row.error_bound for row in fp8} == {bound}
        assert all(row.relative_error == pytest.approx(0.04, rel=1e-3) for row in fp8)
    assert {"attention_precision": "fp8"} in asked and {} in asked


def test_rows_are_held_to_a_family(case: Case, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, and the library is left as it was."""
    library, held = load_library(), []

    def attend(*arguments: Any, **options: Any) -> Tensor:
        held.append(library.forced_kernels)
        output: Tensor = routed_attention(*arguments)
        return output

    monkeypatch.setattr(routed, "routed_attention", attend)
    before = library.forced_kernels
    rows = measured(case, inputs, Options(peers=("none",), branches=("full",), kernels=("", "sm89_fp8")))
    names = [row.implementation for row in rows if row.branch == "full"]
    assert names == ["vorta-trt", "vorta-trt (sm89_fp8)"]
    assert set(held) == {before, "sm89_fp8"} and library.forced_kernels == before
    with pytest.raises(LibraryError, match="sm70"), routed.held_to("sm70"):
        pass
    options = Options(peers=("none",), branches=("full",), kernels=("sm80",), precisions=("same", "fp8"))
    rows = [row for row in measured(case, inputs, options) if row.branch == "full"]
    assert [(row.implementation, row.state) for row in rows] == [
        ("vorta-trt (sm80)", "ok"),
        ("vorta-trt fp8 (sm80)", "unavailable"),  # a row with the reason, and the others go on
    ]
    assert "kernels sm80" in rows[1].note
    assert Report({}, rows).passed and not Report({}, rows[1:]).passed  # alone it measures nothing


def test_the_yardstick_errs_like_its_type(case: Case, inputs: Inputs) -> None:
    """torch in the case's own type: nothing in float32, a few units of rounding in bfloat16."""
    for branch in ("full", "coreset", "sliding"):
        assert expected(case, inputs, branch, 1).torch_error < 1e-5
        half = Inputs(*(tensor.bfloat16() for tensor in (inputs.query, inputs.key, inputs.value)), inputs.text_length)
        found = expected(replace(case, dtype="bf16"), half, branch, 1)
        assert found.output.dtype == torch.float32 and 1e-5 < found.torch_error < 2e-2
        assert by_torch(case, half.head(1), branch).dtype == torch.bfloat16


def test_dense_in_large_blocks_is_the_reference(case: Case, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LOGITS_BYTES", 7 * 4 * case.valid)
    one = inputs.head(0)
    route = torch.zeros(1, 1, dtype=torch.int32)
    wanted = routed_attention_reference(one.query, one.key, one.value, route, case.geometry, one.text_length)
    torch.testing.assert_close(expected(case, inputs, "full", 0).output, wanted, rtol=1e-4, atol=1e-6)


def test_relative_error() -> None:
    wanted = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 5.0]), wanted) == pytest.approx(0.2)
    assert relative_error(torch.tensor([3.0, float("nan")]), wanted) == float("inf")


# -- reports -----------------------------------------------------------------------------------------------------------


def test_report_round_trip(case: Case, inputs: Inputs, tmp_path: Path) -> None:
    report = Report({"gpu": None, "ceiling_tflops": 100.0}, measured(case, inputs, Options(peers=("cudnn",))))
    path = tmp_path / "report.json"
    path.write_text(report.to_json())
    again = Report.read(path)
    assert again.rows == report.rows and again.about == report.about
    content = json.loads(path.read_text())
    assert content["schema"] == 1 and content["question"] == "attention"
    assert content["rows"][0]["grid"] == list(case.geometry.grid)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is no report of `bench attention` with schema 1"),
        ('{"schema": 2, "question": "attention", "rows": []}', "is no report"),
        ('{"schema": 1, "question": "attention", "rows": [{"case": "x"}]}', "rows: 0.geometry: is missing"),
        ('{"schema": 1, "question": "attention"}', "rows: content None: must be a valid"),
    ],
)
def test_bad_reports(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Report.read(path)


def test_recorded_errors(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(
        '<testsuites><testsuite><testcase><properties><property name="full-bf16" '
        "value=\"{'rms': 1.0, 'largest': 1.1}\"/></properties></testcase></testsuite></testsuites>"
    )
    assert recorded_errors(path) == [{"case": "full-bf16", "rms": 1.0, "largest": 1.1}]
    path.write_text("<")
    with pytest.raises(ValueError, match="is no XML"):
        recorded_errors(path)


def test_blank_row_has_the_facts(case: Case) -> None:
    row = blank_row(case, "sliding", "x")
    assert (row.tokens, row.text_tokens, row.tile) == (
        case.geometry.tokens,
        case.geometry.text_tokens,
        case.geometry.tile,
    )
    assert row.density == round(case.flops("sliding") / case.flops("full"), 4)


# -- machines ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    with pytest.raises(NoGpuError, match="needs a CUDA GPU .*--output FILE.json"):
        require_gpu()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": ("dense",)}, "branch 'dense'"),
        ({"precisions": ("int8",)}, "precision 'int8': must be one of same, fp8"),
        ({"peers": ("fa3",)}, "peer 'fa3'"),
        ({"geometries": ("wan",)}, "geometry 'wan'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)


@pytest.mark.gpu
def test_on_the_gpu(tmp_path: Path) -> None:
    options = Options(geometries=("small-4x18x16",), small=True, seconds=0.02, peers=("cudnn", "flash2", "gather"))
    report = run(options, lambda what, done=0, total=0: None)
    assert report.passed, [row for row in report.rows if row.state != "ok"]
    assert report.about["gpu"] and report.about["ceiling_tflops"] > 1
    assert {row.branch for row in report.rows if row.ours} == {"full", "coreset", "sliding", "mixed"}
    assert all(row.milliseconds and row.milliseconds > 0 for row in report.rows if row.state == "ok")
