# SPDX-License-Identifier: Apache-2.0
"""How alike two pictures are: mean squared error and PSNR, SSIM, and LPIPS where its package is installed.

Pictures are [H, W, 3] RGB in [0, 1], in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.extras import extra_command

Picture = npt.NDArray[np.float64]
WINDOW, SIGMA = 11, 1.5  # size and standard deviation of SSIM's Gaussian window
K1, K2 = 0.01, 0.03
LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B: ITU-R BT.601


def mean_squared_error(first: Picture, second: Picture) -> float:
    """Mean squared error over all pixels and channels."""
    return float(np.mean((first - second) ** 2))


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of values in [0, 1]: -10 log10(error); inf for 0."""
    return -10 * math.log10(error) if error > 0 else math.inf


def ssim(first: Picture, second: Picture) -> float:
    """Mean structural similarity of the luma, 1 for equal pictures.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity",
    IEEE Transactions on Image Processing 13 (4), 2004, equations 13 to 17: circular Gaussian window of 11 x 11 and
    standard deviation 1.5 with weights of sum 1, K1 = 0.01, K2 = 0.03, mean over the windows that lie inside the
    picture; at full resolution. Luma is that of ITU-R BT.601.

    Raises:
        ValueError: a picture smaller than the window.
    """
    if min(first.shape[:2]) < WINDOW:
        raise ValueError(
            f"picture of {first.shape[0]} x {first.shape[1]}: SSIM's window needs at least {WINDOW} x {WINDOW}; use "
            f"larger pictures"
        )
    x, y = first @ np.array(LUMA), second @ np.array(LUMA)  # [H, W] each
    mean_x, mean_y = _windowed(x), _windowed(y)  # [H - 10, W - 10] each
    variance_x = _windowed(x * x) - mean_x * mean_x
    variance_y = _windowed(y * y) - mean_y * mean_y
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2  # times the squared range of the values, 1
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float(np.mean(luminance * structure))


def _windowed(values: Picture) -> Picture:
    """Gaussian-weighted means over all windows inside `values`: [H, W] -> [H - 10, W - 10]."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()  # the circular window is the product of two of these
    for axis in (0, 1):
        inside = values.shape[axis] - WINDOW + 1
        shifted = (values.take(range(offset, offset + inside), axis=axis) for offset in range(WINDOW))
        values = sum((weight * part for weight, part in zip(weights, shifted, strict=True)), np.float64(0))
    return values


class LpipsUnavailableError(VortaError):
    """The package for LPIPS is not installed, or its weights cannot be loaded."""


def load_lpips() -> Callable[[Picture, Picture], float]:
    """Loads LPIPS, the learned perceptual distance, with AlexNet; it is 0 for equal pictures.

    Source: Zhang et al. 2018, arXiv 1801.03924, in the authors' package `lpips`, version 0.1 of the linear weights.

    Raises:
        LpipsUnavailableError: the package is not installed, or its weights cannot be loaded.
    """
    try:
        import lpips
    except ImportError as error:
        raise LpipsUnavailableError(
            f"LPIPS needs the package lpips, which is not installed ({error}); run {extra_command('compare')}"
        ) from error
    import torch

    try:
        network = lpips.LPIPS(net="alex", version="0.1", verbose=False).eval()
    except (OSError, RuntimeError) as error:
        raise LpipsUnavailableError(
            f"LPIPS: the weights of AlexNet cannot be loaded ({error}); run once where there is a network, or copy "
            f"torch's hub folder from there"
        ) from error

    def tensor(picture: Picture) -> torch.Tensor:
        return torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).float() * 2 - 1  # [1, 3, H, W] in [-1, 1]

    def distance(first: Picture, second: Picture) -> float:
        with torch.no_grad():
            return float(network(tensor(first), tensor(second)))

    return distance
