# SPDX-License-Identifier: Apache-2.0
"""A comparison against a noise floor, and how it is shown."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from vorta_trt.runtime.comparison.compare import compare_samples
from vorta_trt.runtime.comparison.report import CompareReport
from vorta_trt.runtime.comparison.tables import sample_columns, sample_rows, summary_rows, write_table
from vorta_trt.runtime.frames import SampleError


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two samples; `b` is 8 levels from `a` everywhere, and `floor` one level."""
    random = np.random.default_rng(0)
    frames = random.integers(16, 200, (2, 3, 24, 32, 3), dtype=np.uint8)
    paths = {}
    for name, offset in (("a", 0), ("b", 8), ("floor", 1)):
        paths[name] = tmp_path / name
        paths[name].mkdir()
        for number, sample in enumerate(frames):
            np.save(paths[name] / f"{number}|x.npy", sample + np.uint8(offset))
    return paths


def level(offset: int) -> float:
    """PSNR of a constant difference."""
    return -20 * math.log10(offset / 255)


def test_a_noise_floor(folders: dict[str, Path]) -> None:
    report = compare_samples(folders["a"], folders["b"], silent, floor=folders["floor"], lpips=False)
    assert report.floor is not None and report.floor.second == str(folders["floor"])
    assert [pair.name for pair in report.floor.pairs] == [pair.name for pair in report.pairs] == ["0|x", "1|x"]
    assert report.psnr == pytest.approx(level(8)) and report.floor.psnr == pytest.approx(level(1))
    again = CompareReport.model_validate_json(report.model_dump_json(exclude=_computed(report)))
    assert again == report
    assert sample_columns(report) == ["sample", "frames", "size", "PSNR dB", "worst", "floor", "SSIM", "worst", "floor"]
    rows = sample_rows(report)
    assert [row[0] for row in rows] == ["0|x", "1|x", "all"]
    assert rows[0][3:6] == [f"{level(8):.2f}", f"{level(8):.2f}", f"{level(1):.2f}"]
    psnr, ssim = summary_rows(report)
    assert psnr == ["PSNR dB", *[f"{level(8):.2f}"] * 4, f"{level(1):.2f}", f"{level(1) - level(8):.2f} dB"]
    assert ssim[0] == "SSIM" and float(ssim[-1].removesuffix(" x")) > 10


def _computed(report: CompareReport) -> dict[str, object]:
    """The fields of a report that follow from others, which it does not take back."""
    own = {"psnr": True, "ssim": True, "lpips": True}
    pairs = {"__all__": {"psnr": True, "worst_frame_psnr": True}}
    return {**own, "pairs": pairs, "floor": {**own, "pairs": pairs}}


def test_equal_samples_have_no_floor(folders: dict[str, Path]) -> None:
    report = compare_samples(folders["a"], folders["b"], silent, floor=folders["a"], lpips=False)
    psnr, ssim = summary_rows(report)
    assert (psnr[-2], psnr[-1]) == ("inf", "-") and (ssim[-2], ssim[-1]) == ("1.0000", "-")


def test_single_files_and_their_floor(folders: dict[str, Path]) -> None:
    a, b, floor = (folders[name] / "0|x.npy" for name in ("a", "b", "floor"))
    report = compare_samples(a, b, silent, floor=floor, lpips=False)
    assert report.floor is not None and report.floor.psnr == pytest.approx(level(1))
    assert len(sample_rows(report)) == 1
    with pytest.raises(ValueError, match="must be two folders or two files"):
        compare_samples(a, b, silent, floor=folders["floor"], lpips=False)


def test_a_floor_of_other_samples(folders: dict[str, Path]) -> None:
    (folders["floor"] / "1|x.npy").rename(folders["floor"] / "2.npy")
    with pytest.raises((FileNotFoundError, SampleError), match="lacks 1.x; samples are paired by name"):
        compare_samples(folders["a"], folders["b"], silent, floor=folders["floor"], lpips=False)


def test_files(folders: dict[str, Path], tmp_path: Path) -> None:
    report = compare_samples(folders["a"], folders["b"], silent, lpips=False)
    write_table(tmp_path / "table.csv", report)
    content = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert content == [sample_columns(report), *sample_rows(report)] and content[0][-1] == "worst"
    write_table(tmp_path / "table.md", report)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "|  | all | median | least alike | most alike | floor | beyond the floor |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[4] == "" and lines[7].startswith("| 0\\|x | 3 | 24x32 |")
    with pytest.raises(ValueError, match=r"table.txt: must end in .md or .csv"):
        write_table(tmp_path / "table.txt", report)
