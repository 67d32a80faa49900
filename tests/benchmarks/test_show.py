# SPDX-License-Identifier: Apache-2.0
"""Reports on the command line: table, JSON, picture, and one clean message for everything that cannot be."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from vorta_trt.benchmarks.attention import blank_row
from vorta_trt.benchmarks.cases import select_cases
from vorta_trt.benchmarks.plot import plot_report
from vorta_trt.benchmarks.report import Report, Row, with_speedups
from vorta_trt.benchmarks.table import case_table, headline, remarks
from vorta_trt.cli import app

IMPLEMENTATIONS = (
    ("full", "vorta-trt", 31.0),
    ("mixed", "vorta-trt", 12.0),
    ("mixed", "vorta-trt, graph replay", 11.5),
    ("full", "torch cuDNN", 37.2),
    ("sliding", "FlexAttention, tile order", 15.5),
    ("sliding", "flash-attn-4, tile order", None),
)


def fake_rows(name: str, heads: int) -> list[Row]:
    case = select_cases([name], [heads])[0]
    rows = []
    for branch, implementation, milliseconds in IMPLEMENTATIONS:
        row = replace(blank_row(case, branch, implementation), relative_error=2.3e-3, error_bound=4.6e-3)
        if milliseconds is None:
            row = replace(row, state="unavailable", note="no [kernels] here")
        else:
            useful = round(case.flops(branch) / milliseconds * 1e-9, 1)
            times = {"milliseconds": milliseconds, "minimum": milliseconds - 1, "p90": milliseconds + 1}
            row = replace(row, **times, useful_tflops=useful, ceiling_share=useful / 790)
        if (branch, implementation) == ("mixed", "vorta-trt"):
            row = replace(row, parts={"prorated_milliseconds": 11.9, "over_prorated": 1.008})
        rows.append(row)
    return with_speedups(rows)


@pytest.fixture
def report() -> Report:
    about = {"gpu": "NVIDIA H200", "driver": "580", "versions": {"torch": "2.13"}, "ceiling_tflops": 790.0}
    return Report(about, [*fake_rows("wan-14b", 8), *fake_rows("hunyuan", 24), *fake_rows("wan-14b", 40)])


@pytest.fixture
def path(report: Report, tmp_path: Path) -> Path:
    path = tmp_path / "a report.json"
    path.write_text(report.to_json())
    return path


def bench(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", "attention", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_speedups(report: Report) -> None:
    own, mixed, _, cudnn, flex, missing = report.rows[:6]
    assert (own.times_own_dense, own.times_cudnn) == (1.0, 1.2)
    assert mixed.times_own_dense == round(31 / 12, 3)
    assert (cudnn.times_own_dense, flex.times_cudnn) == (round(31 / 37.2, 3), 2.4)
    assert missing.times_own_dense is None
    assert report.passed  # a peer that is missing is no failure of ours
    assert not Report({}, [replace(own, state="wrong")]).passed


def test_table_fits_a_pipe_and_tells_everything(report: Report) -> None:
    from rich.console import Console

    console = Console(width=120, file=io.StringIO(), record=True)
    for rows in report.cases().values():
        console.print(case_table(rows))
    text = console.export_text()
    assert "…" not in text
    for _, implementation, milliseconds in IMPLEMENTATIONS:
        assert implementation in text
        assert milliseconds is None or f"{milliseconds:.3f}" in text
    assert text.count("wan-14b: grid 20x45x80") == 2


def test_remarks(report: Report) -> None:
    assert remarks(report.rows[:6]) == [
        "  mixed, vorta-trt: 1.008 x the sum of its prorated parts (11.900 ms)",
        "  sliding, flash-attn-4, tile order: UNAVAILABLE, no [kernels] here",
    ]
    assert headline(report).startswith("NVIDIA H200, driver 580, torch 2.13, commit None, matrix product 790")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot(report: Report, suffix: str, tmp_path: Path) -> None:
    picture = plot_report(report, tmp_path / f"picture.{suffix}")
    assert picture.stat().st_size > 10_000
    if suffix == "svg":
        for text in ("vorta-trt, graph replay", "wan-14b: grid 20x45x80", "useful TFLOP/s"):
            assert text in picture.read_text()


def test_plot_of_nothing(report: Report, tmp_path: Path) -> None:
    rows = [row for row in report.rows if row.milliseconds is None]
    with pytest.raises(ValueError, match="nothing to plot: no row of the report was timed"):
        plot_report(Report(report.about, rows), tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


# -- the command -------------------------------------------------------------------------------------------------------


def test_shows_an_earlier_report(path: Path, report: Report, tmp_path: Path) -> None:
    picture, copy = tmp_path / "picture.png", tmp_path / "copy.json"
    code, out, err = bench("--from", path, "--plot", picture, "--output", copy)
    assert (code, err) == (0, "")
    assert "no [kernels] here" in out and f"wrote {picture}" in out
    assert picture.exists() and copy.read_text().strip() == report.to_json()


def test_json(path: Path, report: Report) -> None:
    code, out, _ = bench("--from", path, "--json")
    assert code == 0 and json.loads(out) == json.loads(report.to_json())


def test_a_report_with_a_wrong_kernel_fails(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(Report(report.about, [replace(report.rows[0], state="wrong", note="why")]).to_json())
    code, out, _ = bench("--from", path)
    assert code == 1 and "WRONG, why" in out


def test_recorded_errors_are_merged(path: Path, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text("<testsuites><property name='x' value=\"{'rms': 1.0}\"/></testsuites>")
    code, out, _ = bench("--from", path, "--junit", junit, "--json")
    assert code == 0 and json.loads(out)["errors"] == [{"case": "x", "rms": 1.0}]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--from", "absent.json"), 1, "^error: report absent.json: no such file; give a file of --output$"),
        (("--geometry", "wan"), 2, "geometry 'wan': must be one of wan-1.3b"),
        (("--heads", "8,x"), 2, "'x': must be a whole number; use e.g. 8"),
        (("--branch", "dense"), 2, "branch 'dense': must be one of full"),
        (("--peers", "fa3"), 2, "peer 'fa3': must be one of cudnn"),
        (("--precision", "int8"), 2, "precision 'int8': must be one of same, fp8"),
        (("--dtype", "fp32"), 2, "'fp32' is not one of 'bf16', 'fp16'"),
        (("--text-length", "300"), 2, "text length 300: must be between 0 and"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], code: int, message: str) -> None:
    found, out, err = bench(*arguments)
    assert (found, out) == (code, "") and re.search(message, err.strip()), err
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_needed(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    code, out, err = bench("--small", "--output", output)
    assert (code, out) == (1, "") and not output.exists()
    assert re.fullmatch(r"error: bench attention: needs a CUDA GPU .* --output FILE.json, and show .*\n", err), err


@pytest.mark.parametrize("arguments", [("bench", "--help"), ("bench", "attention", "--help")])
def test_help_has_an_example_and_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0 and re.search(r"Examples?:\s+vorta-trt bench attention", result.stdout), result.stdout
    code = (
        f"import sys; sys.argv[1:] = {list(arguments)!r}\n"
        "from vorta_trt.cli import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'numpy', 'rich') if name in sys.modules], file=sys.stderr)"
    )
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.strip()
    assert heavy == "[]"
