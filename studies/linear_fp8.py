# SPDX-License-Identifier: Apache-2.0
"""Errors of linear layers in fp8 on random numbers of realistic statistics, outlier channels included. Runs on a CPU.

Each case is one product at the width of Wan 14B, K = 5120, with fewer rows and output features, on which the error of
one number does not depend. A table has the relative L2 error against float64 and, in brackets, the norm ratio: of the
operator, with a scale for each token, and of the native form of engines, with one scale for all tokens.

    python studies/linear_fp8.py [--json results.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.block_operators import quantize_rows
from vorta_trt.model.block_operators.references import FLOAT8, LARGEST_FLOAT8, fp8_linear, quantize
from vorta_trt.runtime.verification.distance import distance

WIDTH, ROWS, FEATURES = 5120, 256, 512
EVERY, TIMES = 256, 30.0  # one channel in 256 is 30 times as large
MASSIVE = 1e5  # of one channel, beyond the range of e4m3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    results = list(measure())
    print(f"{'inputs and weights':44} {'by token':>18} {'one scale':>18}")
    for result in results:
        cells = (f"{result[form][0]:.4f} ({result[form][1]:.4f})" for form in ("by token", "one scale"))
        print(f"{result['case']:44} " + " ".join(f"{cell:>18}" for cell in cells))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Error and norm ratio of each case."""
    for name, make in CASES.items():
        torch.manual_seed(seed)
        tokens, matrix = make()
        tokens = tokens.bfloat16().float()
        exact = tokens.double() @ matrix.double().t()  # [R, O]
        weight, scale = quantize_rows(matrix)
        bias = torch.zeros(FEATURES)
        by_token = fp8_linear(*quantize(tokens[None]), weight, scale.flatten(), bias, "none")[0]
        largest = tokens.abs().amax() / LARGEST_FLOAT8
        rounded = (tokens / largest).to(FLOAT8).double() * largest
        one_scale = rounded @ (weight.double() * scale).t()
        yield {"case": name, "by token": distance(by_token, exact), "one scale": distance(one_scale, exact)}


def _normal() -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, WIDTH), torch.randn(FEATURES, WIDTH) / WIDTH**0.5


def _outlier_channels(tokens: Tensor) -> Tensor:
    tokens[:, ::EVERY] *= TIMES
    return tokens


def _with_outliers() -> tuple[Tensor, Tensor]:
    tokens, matrix = _normal()
    return _outlier_channels(tokens), matrix


def _outliers_met_by_small_weights() -> tuple[Tensor, Tensor]:
    tokens, matrix = _with_outliers()
    matrix[:, ::EVERY] /= TIMES
    return tokens, matrix


def _massive_channel() -> tuple[Tensor, Tensor]:
    tokens, matrix = _normal()
    tokens[:, 0] *= MASSIVE
    matrix[:, 0] /= MASSIVE
    return tokens, matrix


def _tokens_of_many_sizes() -> tuple[Tensor, Tensor]:
    tokens, matrix = _with_outliers()
    return tokens * torch.logspace(-2, 1, ROWS)[:, None], matrix


def _heavy_tails() -> tuple[Tensor, Tensor]:
    tokens, matrix = _normal()
    return torch.distributions.StudentT(3.0).sample(tokens.shape), matrix


def _rows_of_many_sizes() -> tuple[Tensor, Tensor]:
    tokens, matrix = _with_outliers()
    return tokens, matrix * torch.logspace(-2, 0, FEATURES)[:, None]


def _after_gelu() -> tuple[Tensor, Tensor]:
    tokens, matrix = _normal()
    return torch.nn.functional.gelu(tokens * 2, approximate="tanh"), matrix


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "normal": _normal,
    f"outlier channels, {TIMES:g} x, one in {EVERY}": _with_outliers,
    "outlier channels with small weights": _outliers_met_by_small_weights,
    f"one channel {MASSIVE:g} x, with small weights": _massive_channel,
    "outlier channels, tokens of 1 : 1000": _tokens_of_many_sizes,
    "heavy tails (Student t, 3 degrees)": _heavy_tails,
    "outlier channels, weight rows of 1 : 100": _rows_of_many_sizes,
    "behind GELU": _after_gelu,
}


if __name__ == "__main__":
    main()
