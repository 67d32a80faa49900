# SPDX-License-Identifier: Apache-2.0
"""Can a product write its GELU in e4m3 before it has seen the whole row? The error of a scale that is known before.

`Quantize` divides a row by its largest magnitude / 448, which an epilogue of a tile does not know. No output can be
above 448 * (factor * input_scale[r] + offset), with factor the largest sum of magnitudes of a feature's weights and 448
* offset the largest bias: this bound gives a scale of the row, too, that is known beforehand. The scale is too large,
by the factor printed as "above"; e4m3 has exponents of its own and loses bits only below 2^-6. "by feature" divides
each feature by its own sum of magnitudes as well, which the next layer's weights would take back. Emulated in torch on
a CPU, against float64.

    python studies/fp8_output_scales.py
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.block_operators.references import FLOAT8, quantize_rows
from vorta_trt.model.tables import table_lines

ROWS, IN_FEATURES, OUT_FEATURES = 192, 5120, 2048
STATIC = 448.0  # largest code


def inputs_of(kind: str, generator: torch.Generator) -> Tensor:
    """Normed tokens [R, K]: unit normals, with channels that are larger in every token or in some."""
    tokens = torch.randn(ROWS, IN_FEATURES, generator=generator)
    if kind == "4 channels x 30":
        tokens[:, ::1280] *= 30
    elif kind == "4 channels x 200 in every eighth token":
        tokens[::8, ::1280] *= 200
    return functional.layer_norm(tokens, (IN_FEATURES,))


def weights_of(kind: str, generator: torch.Generator) -> Tensor:
    """Weights [O, K] of standard deviation K^-0.5, with features of the same or of different sizes."""
    weight = torch.randn(OUT_FEATURES, IN_FEATURES, generator=generator) / math.sqrt(IN_FEATURES)
    if kind == "features of lognormal size":
        weight *= (0.7 * torch.randn(OUT_FEATURES, 1, generator=generator)).exp()
    elif kind == "one feature x 16":
        weight[77] *= 16
    elif kind == "outputs x 0.1":
        weight *= 0.1
    return weight


def error_of(tokens: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, ...]:
    """Relative errors of GELU in e4m3: by largest, by bound, worst row, by feature, worst row; log2 of above."""
    numbers, scale = quantize_rows(tokens)  # [R, K], [R, 1]
    numbers_of_weight, weight_scale = quantize_rows(weight)  # [O, K], [O, 1]
    sums = numbers.double() @ numbers_of_weight.double().T * scale.double() * weight_scale.double().T
    hidden = functional.gelu(sums + bias.double(), approximate="tanh")  # [R, O]
    exact, own_scale = quantize_rows(hidden.float())
    factors = (numbers_of_weight.float().abs().sum(1, keepdim=True) * weight_scale).T.double()  # [1, O]
    offsets = bias.abs().double() / STATIC  # [O]
    errors = [exact.double() * own_scale.double() - hidden]
    for factor, offset in ((factors.max(), offsets.max()), (factors, offsets)):
        bound = scale.double() * factor + offset  # [R, 1 or O]
        errors.append((hidden / bound).float().to(FLOAT8).double() * bound - hidden)
        if factor.ndim == 0:
            above = (bound / own_scale.double()).log2().max()
    whole = [float(error.norm() / hidden.norm()) for error in errors]
    worst = [float((error.norm(dim=1) / hidden.norm(dim=1)).max()) for error in errors]
    return whole[0], whole[1], worst[1], whole[2], worst[2], float(above)


def main() -> None:
    rows = []
    for tokens_kind in ("unit normals", "4 channels x 30", "4 channels x 200 in every eighth token"):
        for weight_kind in ("alike", "features of lognormal size", "one feature x 16", "outputs x 0.1"):
            generator = torch.Generator().manual_seed(0)
            tokens, weight = inputs_of(tokens_kind, generator), weights_of(weight_kind, generator)
            bias = 0.1 * torch.randn(OUT_FEATURES, generator=generator)
            *errors, above = error_of(tokens, weight, bias)
            assert all(map(math.isfinite, errors))
            numbers = (*(f"{error:.4f}" for error in errors), f"2^{above:.1f}")
            rows.append((f"{tokens_kind}; weights: {weight_kind}", *numbers))
    titles = ("relative error of the GELU", "largest", "bound", "worst row", "by feature", "worst row", "above")
    print("\n".join(table_lines(titles, rows, left=1)))


if __name__ == "__main__":
    main()
