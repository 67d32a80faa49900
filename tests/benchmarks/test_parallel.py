# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt bench parallel`: a tiny model on four processes of the CPU, through the code that measures real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vorta_trt.benchmarks.parallel import run as parallel_run
from vorta_trt.benchmarks.parallel.options import Layout, ParallelOptions
from vorta_trt.benchmarks.parallel.rank import measure
from vorta_trt.benchmarks.parallel.report import ONE_GPU, ParallelReport
from vorta_trt.benchmarks.parallel.spans import exchanges_and_waiting
from vorta_trt.benchmarks.parallel.table import headline, parallel_table, plot_report, remarks
from vorta_trt.benchmarks.step.cases import StepCase, mixed_routes, select_case
from vorta_trt.cli import app
from vorta_trt.model import Branch

from ..ranks import Pool

SIZES = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 2, "ffn_dim": 64, "text_dim": 24}
CASE = StepCase("tiny", "wan", SIZES, (9, 48, 80), passes=2, shift=3.0)  # token grid (3, 3, 5)
EXCHANGES = ("auto", "torch+overlap")
OPTIONS = ParallelOptions(
    mixes=("10/45/45",), gpus=(4,), exchanges=EXCHANGES, guidance=True, steps=1, dtype="fp32", kind="cpu"
)
Measured = tuple[ParallelReport, list[ParallelReport], list[str]]


@pytest.fixture(scope="module")
def measured(pool: Pool) -> Measured:
    """The report, what was known after every row, and what was said. The ranks have been started before."""
    partial: list[ParallelReport] = []
    said: list[str] = []

    def launch(function: object, argument: object, *, gpus: int, kind: str, on_message: Any) -> list[Any]:
        assert (function, gpus, kind) == (measure, 4, "cpu")
        results = pool("bench", gpus, what=argument)
        for rank, (_, told) in enumerate(results):
            for message in told:
                on_message(rank, message)
        return [result for result, _ in results]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_run, "launch", launch)
        report = parallel_run.run_case(CASE, OPTIONS, lambda what, done=0, total=0: said.append(what), partial.append)
    return report, partial, said


def test_every_layout_computes_the_sample_of_one_gpu(measured: Measured) -> None:
    report, partial, said = measured
    ways = [(gpus, passes, placement) for gpus, passes in ((4, 1), (4, 2)) for placement in ("balanced", "in_order")]
    assert [(row.gpus, row.passes, row.placement, row.exchange) for row in report.rows] == [
        (1, 1, ONE_GPU, ""),
        *((*way, exchange) for way in ways for exchange in ("torch", "torch+overlap")),  # auto on a CPU is torch
    ]
    assert report.passed and not remarks(report)
    one, *rows = report.rows
    balanced, in_order, *guidance = rows[::2]
    for row, beside in zip(rows[::2], rows[1::2], strict=True):
        assert set(row.exchanges) == set(beside.exchanges) and (row.predicted, row.busiest) == (
            beside.predicted,
            beside.busiest,
        )
        assert row.exchange_share is not None and row.waiting is not None
        assert (beside.exchange_share, beside.waiting) == (None, None)  # spans that overlap are not part of the pass
    for row in report.rows:
        assert row.median is not None and row.minimum is not None and 0 < row.minimum <= row.median
        assert row.difference is not None and row.difference < 1e-5
        assert one.median is not None
        assert row.speedup == pytest.approx(row.passes * one.median / row.median, rel=1e-2)
    assert (one.speedup, one.exchanges, one.waiting) == (1, {}, 0)
    for row in (balanced, in_order):
        assert set(row.exchanges) == {"heads", "tokens", "sample"} and min(row.exchanges.values()) > 0
    for row in guidance:
        assert set(row.exchanges) == {"heads", "tokens", "sample", "guidance"}
    assert balanced.busiest is not None and in_order.busiest is not None
    assert 1 <= balanced.busiest <= in_order.busiest
    predicted = [row.predicted or 0 for row in (balanced, in_order, *guidance)]
    assert 0 < predicted[0] <= predicted[1] and 0 < predicted[2] <= predicted[3]
    assert [len(so_far.rows) for so_far in partial] == [*range(1, 10)]
    assert len(said) == 10 and "4 GPUs, in_order, auto" in said[4]
    assert report.about["layers"] == 2 and report.about["heads"] == 4


def test_report_comes_back_from_its_file_and_is_shown(measured: Measured, tmp_path: Path) -> None:
    report = measured[0]
    file = tmp_path / "parallel.json"
    file.write_text(report.to_json())
    again = ParallelReport.read(file)
    assert again == replace(report, about=json.loads(json.dumps(report.about)), rows=[*report.rows])
    assert "2 layers" in headline(again) and len(parallel_table(again).rows) == 9
    shown = CliRunner().invoke(app, ["bench", "parallel", "--from", str(file), "--plot", str(tmp_path / "p.svg")])
    assert shown.exit_code == 0 and "in_order" in shown.stdout and (tmp_path / "p.svg").exists()
    wrong = replace(again, rows=[replace(again.rows[1], state="wrong", note="differs by 1")])
    assert not wrong.passed and remarks(wrong) == ["  10/45/45, 4 GPUs, 1 passes, balanced, torch: WRONG, differs by 1"]
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_report(wrong, tmp_path / "q.svg")


def test_layouts() -> None:
    options = ParallelOptions(gpus=(4, 2), guidance=True, placements=("balanced",))
    assert [*options.layouts(select_case("wan-14b"), 40)] == [
        Layout(1, 1, ONE_GPU),
        Layout(2, 1, "balanced", "auto"),
        Layout(2, 2, ONE_GPU),
        Layout(4, 1, "balanced", "auto"),
        Layout(4, 2, "balanced", "auto"),
    ]
    with pytest.raises(ValueError, match="one pass; leave it out"):
        [*options.layouts(select_case("hunyuan-video"), 24)]
    with pytest.raises(ValueError, match="3 GPUs for 40 heads"):
        [*replace(options, gpus=(3,)).layouts(select_case("wan-14b"), 40)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"placements": ("random",)}, "placements 'random': must be one of balanced, in_order"),
        ({"exchanges": ("nccl",)}, "exchanges 'nccl': must be one of auto, library, torch, auto\\+overlap"),
        ({"mixes": ("50/60",)}, "mix '50/60'"),
        ({"gpus": (0,)}, "gpus 0"),
        ({"gpus": (5, 7)}, "7 GPUs for 40 heads: .*; use one of 1, 2, 4, 5, 8, 10, 20, 40"),
        ({"model": "wan"}, "model 'wan'"),
        ({"gpus": ()}, "at least one entry"),
    ],
)
def test_options_that_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelOptions(**wrong)  # type: ignore[arg-type]


def test_a_share_of_full_heads() -> None:
    routes = mixed_routes("10/45/45", 40, 40)
    counts = [int((routes == int(branch)).sum()) for branch in Branch]
    assert counts == [160, 720, 720]


def test_waiting_is_what_an_exchange_takes_longer_than_on_the_last_gpu() -> None:
    first = [("heads", 3.0), ("tokens", 1.0), ("heads", 2.0)]
    second = [("heads", 1.0), ("tokens", 2.0), ("heads", 2.0)]
    assert exchanges_and_waiting([first, second]) == ({"heads": 3.0, "tokens": 1.0}, 1.5)
    assert exchanges_and_waiting([[]]) == ({}, 0.0)
