# SPDX-License-Identifier: Apache-2.0
"""`bench blocks` without a GPU: rows from made-up implementations, reports, the command line, and bad names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from vorta_trt.benchmarks.blocks.case import Implementation, OperatorCase, Prepared
from vorta_trt.benchmarks.blocks.norms import NORMS, Block, Norm, prepare
from vorta_trt.benchmarks.blocks.operators import all_cases, select_cases
from vorta_trt.benchmarks.blocks.report import BlockReport, BlockRow
from vorta_trt.benchmarks.blocks.run import BlockOptions, case_rows
from vorta_trt.benchmarks.checks import relative_error
from vorta_trt.benchmarks.timing import Run, Timing
from vorta_trt.cli import app

WANTED = torch.arange(1.0, 9.0)
TIMES = {"torch": 4.0, "other": 5.0, "vorta-trt": 2.0}  # ms


def output(name: str, factor: float = 1.0) -> Implementation:
    """Gives the wanted numbers times a factor; the timer knows how long it takes by its name."""

    def run() -> Tensor:
        return WANTED * factor

    run.__name__ = name
    return Implementation(name, run, ours=name.startswith("vorta-trt"))


def broken(name: str) -> Implementation:
    def run() -> Tensor:
        raise NotImplementedError("no kernel\nand a long story")

    return replace(output(name), run=run)


def timer(run: Run) -> Timing:
    return Timing.of([TIMES[run.__name__]])


def rows_of(*implementations: Implementation) -> list[BlockRow]:
    def prepare(dtype: str, seed: int) -> Prepared:
        assert (dtype, seed) == ("bfloat16", 7)
        return Prepared(implementations, lambda given: relative_error(given, WANTED))

    case = OperatorCase("Linear", "tiny", "8 x 8", 4 * 10**9, 2 * 10**9, prepare)
    return case_rows(case, BlockOptions(seed=7), timer)


def test_rows_have_figures_and_speedups_over_the_first_peer() -> None:
    first, second, ours = rows_of(output("vorta-trt", 1.001), output("torch", 1.001), output("other", 1.5))
    assert [row.implementation for row in (first, second, ours)] == ["torch", "other", "vorta-trt"]
    assert (ours.milliseconds, ours.tflops, ours.terabytes_per_second, ours.times_peer) == (2.0, 2.0, 1.0, 2.0)
    assert ours.error_bound == pytest.approx(2e-3, rel=1e-3)
    assert (second.state, second.times_peer, second.error_bound) == ("ok", 0.8, None)


def test_ours_is_not_timed_when_wrong() -> None:
    _, ours = rows_of(output("torch", 1.001), output("vorta-trt", 1.01))
    assert (ours.state, ours.milliseconds) == ("wrong", None)
    assert "relative error 1.00e-02 above 2.00e-03; not timed" in ours.note
    assert not BlockReport({}, [ours]).passed


def test_what_is_raised_is_a_rows_reason() -> None:
    peer, ours = rows_of(broken("torch"), output("vorta-trt"))
    assert (peer.state, peer.note) == ("unavailable", "NotImplementedError: no kernel")
    assert (ours.state, ours.times_peer) == ("ok", None)
    assert BlockReport({}, [peer, ours]).passed
    _, failed = rows_of(output("torch"), broken("vorta-trt"))
    assert failed.state == "failed"


def test_a_case_without_memory_is_a_failed_row() -> None:
    def prepare(dtype: str, seed: int) -> Prepared:
        raise torch.OutOfMemoryError("CUDA out of memory")

    [row] = case_rows(OperatorCase("Linear", "tiny", "8 x 8", 1, 1, prepare), BlockOptions(), timer)
    assert (row.state, row.note) == ("failed", "OutOfMemoryError: CUDA out of memory")


def test_cases_are_chosen_by_operator_and_model() -> None:
    assert [str(case) for case in select_cases()] == [str(case) for case in all_cases()]
    chosen = select_cases(["Fp8Linear"], ["wan-14b"])
    assert [case.size for case in chosen] == [
        "72,000 x 5120 to 5120", "72,000 x 5120 to 13824, gelu_tanh", "72,000 x 13824 to 5120"
    ]  # fmt: skip
    # Weights and input take one byte, the output two.
    assert chosen[0].bytes == 5120 * 5120 + 72000 * (5120 + 2 * 5120)
    assert chosen[0].flops == 2 * 72000 * 5120 * 5120
    with pytest.raises(ValueError, match="operator 'Conv': must be one of Linear, Fp8Linear"):
        select_cases(["Conv"])
    with pytest.raises(ValueError, match="model 'gpt': must be one of wan-14b"):
        BlockOptions(models=("gpt",))


@pytest.mark.parametrize(("block", "norm"), [(block, norm) for block, listed in NORMS for norm in listed])
def test_norms_are_right_and_their_check_sees_what_is_wrong(block: Block, norm: Norm) -> None:
    """At a small size, on the CPU; the compiled peer is left out."""
    prepared = prepare(replace(block, tokens=70), norm, "bfloat16", 3, device="cpu")
    assert [one.name for one in prepared.implementations if one.ours] == ["vorta-trt"]
    for implementation in prepared.implementations[1:]:
        given = implementation.run()
        error = prepared.error(given)
        # The rounding of bfloat16, or of e4m3.
        assert 1e-4 < error < 4e-3 if norm.quantizes is None else 0.01 < error < 0.05
        outputs = (given,) if isinstance(given, Tensor) else given
        outputs[-1][:, -1] *= 1.5
        assert prepared.error(given) > max(0.01, 1.2 * error)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = rows_of(output("torch", 1.001), broken("other"), output("vorta-trt", 1.001))
    about = {"gpu": "NVIDIA H100", "driver": "580", "versions": {"torch": "2.11"}, "ceiling_tflops": 735.0}
    path = tmp_path / "blocks.json"
    path.write_text(BlockReport(about, rows).to_json())
    return path


def bench(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", "blocks", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_report_is_shown_drawn_and_written(path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "blocks.png"
    code, text, _ = bench("--from", path, "--plot", picture)
    assert code == 0
    assert "NVIDIA H100, driver 580, torch 2.11" in text
    assert "other: UNAVAILABLE, NotImplementedError: no kernel" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, text, _ = bench("--from", path, "--json")
    assert json.loads(text) == json.loads(path.read_text())


def test_bad_use_is_said_in_one_message(path: Path, tmp_path: Path) -> None:
    code, _, message = bench("--operator", "Conv")
    assert (code, "operator 'Conv': must be one of Linear, Fp8Linear" in " ".join(message.split())) == (2, True)
    other = tmp_path / "other.json"
    other.write_text('{"schema": 1, "question": "step"}')
    code, _, message = bench("--from", other)
    assert (code, "is no report of `bench blocks`" in " ".join(message.split())) == (1, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_without_a_gpu_it_says_what_is_missing() -> None:
    code, _, message = bench()
    assert (code, "bench blocks: needs a CUDA GPU" in " ".join(message.split())) == (1, True)
