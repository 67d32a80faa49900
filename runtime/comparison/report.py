# SPDX-License-Identifier: Apache-2.0
"""The outcome of `compare`: JSON for scripts, a table for people."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from pydantic import computed_field

from vorta_trt.runtime.comparison.image_quality import psnr
from vorta_trt.runtime.verification.report import Strict

if TYPE_CHECKING:
    from rich.table import Table


class PairReport(Strict):
    """Two samples.

    mean_squared_error: of values in [0, 1], over all frames, pixels and channels; psnr is that of it, in dB, infinite
    (in JSON the string "Infinity") for equal samples. ssim, lpips: means over the frames. worst_frame_*: of the frame
    that is least alike.
    """

    name: str
    first: str
    second: str
    frames: int
    height: int
    width: int
    mean_squared_error: float
    worst_frame_mean_squared_error: float
    ssim: float
    worst_frame_ssim: float
    lpips: float | None
    video: str | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB."""
        return psnr(self.mean_squared_error)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worst_frame_psnr(self) -> float:
        """That of the frame that is least alike."""
        return psnr(self.worst_frame_mean_squared_error)


class CompareReport(Strict):
    """All pairs, and the set as a whole.

    Attributes:
        first: What was compared.
        second: What with.
        pairs: Of samples.
        lpips_note: Why there is no LPIPS; None if there is.
    """

    first: str
    second: str
    pairs: list[PairReport]
    lpips_note: str | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio of all pairs, in dB."""
        return psnr(fmean(pair.mean_squared_error for pair in self.pairs))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ssim(self) -> float:
        """Mean over the pairs."""
        return fmean(pair.ssim for pair in self.pairs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lpips(self) -> float | None:
        """Mean over the pairs that have one; None without any."""
        distances = [pair.lpips for pair in self.pairs if pair.lpips is not None]
        return fmean(distances) if distances else None


def compare_table(report: CompareReport) -> Table:
    """A row per pair, and one for the set if there are several."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{report.first} against {report.second}"))
    table.add_column("sample", overflow="fold")
    for column in (
        "frames",
        "size",
        "PSNR dB",
        "worst",
        "SSIM",
        "worst",
        *(("LPIPS",) if report.lpips_note is None else ()),
    ):
        table.add_column(column, justify="right")
    for pair in report.pairs:
        table.add_row(
            escape(pair.name),
            str(pair.frames),
            f"{pair.height}x{pair.width}",
            f"{pair.psnr:.2f}",
            f"{pair.worst_frame_psnr:.2f}",
            f"{pair.ssim:.4f}",
            f"{pair.worst_frame_ssim:.4f}",
            *_lpips(report, pair.lpips),
        )
    if len(report.pairs) > 1:
        worst_psnr = min(pair.worst_frame_psnr for pair in report.pairs)
        worst_ssim = min(pair.worst_frame_ssim for pair in report.pairs)
        table.add_section()
        table.add_row(
            "all",
            str(sum(pair.frames for pair in report.pairs)),
            "",
            f"{report.psnr:.2f}",
            f"{worst_psnr:.2f}",
            f"{report.ssim:.4f}",
            f"{worst_ssim:.4f}",
            *_lpips(report, report.lpips),
        )
    return table


def _lpips(report: CompareReport, distance: float | None) -> tuple[str, ...]:
    if report.lpips_note is not None:
        return ()
    return ("-" if distance is None else f"{distance:.4f}",)
