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
    """Two samples.

    Attributes:
        name: Of the pair.
        first: One file.
        second: The other.
        frames: How many both have.
        height: In pixels.
        width: In pixels.
        mean_squared_error: Of values in [0, 1], over all frames, pixels and channels. `psnr` is that of it, in dB,
            infinite (in JSON the string "Infinity") for equal samples.
        worst_frame_mean_squared_error: Of the frame that is least alike.
        ssim: Mean over the frames.
        worst_frame_ssim: Of the frame that is least alike.
        lpips: Mean over the frames; None if it was not computed.
        video: Where both were written side by side.
        prompt: That both were sampled with; None if it is not known.
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
        """That of the frame that is least alike."""
        return psnr(self.worst_frame_mean_squared_error)


class CompareReport(Strict):
    """All pairs, and the set as a whole.

    Attributes:
        first: What was compared.
        second: What with.
        pairs: Of samples.
        lpips_note: Why there is no LPIPS; None if there is.
        floor: The noise floor: `first` against what the same setting gives in another way of computing it, pair by
            pair by the same names. None if it was not measured.
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
        """Mean over the pairs."""
        return fmean(pair.ssim for pair in self.pairs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lpips(self) -> float | None:
        """Mean over the pairs that have one; None without any."""
        distances = [pair.lpips for pair in self.pairs if pair.lpips is not None]
        return fmean(distances) if distances else None
