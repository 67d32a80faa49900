# SPDX-License-Identifier: Apache-2.0
"""The outcome of `compare`, for scripts; `tables` shows it to people."""

from __future__ import annotations

from statistics import fmean

from pydantic import computed_field

from vorta_trt.model.files import json_kind
from vorta_trt.runtime.comparison.image_quality import psnr
from vorta_trt.runtime.verification.report import Strict

KIND = json_kind("report of `vorta-trt compare`", "first", "second", "pairs", "lpips_note")


class PairReport(Strict):
    """How alike two samples are.

    Attributes:
        name: Name of the pair.
        first: Path of the first sample.
        second: Path of the second sample.
        frames: Number of frames of each sample.
        height: Height of the frames in pixels.
        width: Width of the frames in pixels.
        mean_squared_error: Mean squared error of values in [0, 1], over all frames, pixels and channels. `psnr` is
            computed from it; for equal samples it is infinite, in JSON the string "Infinity".
        worst_frame_mean_squared_error: Mean squared error of the frame where it is largest.
        ssim: SSIM, mean over the frames.
        worst_frame_ssim: SSIM of the frame where it is smallest.
        lpips: LPIPS, mean over the frames; None if it was not computed.
        video: Path of the video that shows both samples side by side; None if none was written.
        prompt: The prompt that both were sampled with; None if it is not known.
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
    prompt: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB."""
        return psnr(self.mean_squared_error)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worst_frame_psnr(self) -> float:
        """Peak signal-to-noise ratio in dB of the frame with the largest mean squared error."""
        return psnr(self.worst_frame_mean_squared_error)


class CompareReport(Strict):
    """All pairs, and the set as a whole.

    Attributes:
        first: The first file, folder or setting.
        second: The file, folder or setting that `first` was compared with.
        pairs: A report for each pair of samples.
        lpips_note: Why there is no LPIPS; None if there is.
        floor: The noise floor: `first` against the same setting computed in another way, with pairs of the same names.
            None if it was not measured.
    """

    first: str
    second: str
    pairs: list[PairReport]
    lpips_note: str | None
    floor: CompareReport | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio of all pairs, in dB."""
        return psnr(fmean(pair.mean_squared_error for pair in self.pairs))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ssim(self) -> float:
        """SSIM, mean over the pairs."""
        return fmean(pair.ssim for pair in self.pairs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lpips(self) -> float | None:
        """LPIPS, mean over the pairs that have it; None if no pair has."""
        distances = [pair.lpips for pair in self.pairs if pair.lpips is not None]
        return fmean(distances) if distances else None
