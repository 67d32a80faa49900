# SPDX-License-Identifier: Apache-2.0
"""Which transforms before the rounding to 8 bits pay, on inputs that are hard for it? Emulated, on any machine.

    python studies/fp8_transforms.py

Each set of inputs goes through the emulation of the 8-bit kernels with some of its transforms; the table has the
relative error against float64 and the ratio of the norms. `fp8_accuracy.py` measures the kernels themselves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vorta_trt.benchmarks.harness import write_result
from vorta_trt.model.fp8_emulation import TRANSFORMS, attend_in_fp8

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HEAD_DIM, QUERIES = 128, 64
MEANS = frozenset({"mean of K", "mean of V"})
VARIANTS = {
    "none": frozenset[str](),
    "means": MEANS,
    "means, Hadamard": MEANS | {"Hadamard"},
    "means, balance": MEANS | {"balance"},
    "all": TRANSFORMS,
}
SINK_NATS, DEVIATIONS = (6.0, 9.0, 10.0, 11.0, 12.0, 14.0), (0.5, 1.0, 2.0)

Rows = tuple[Tensor, Tensor, Tensor]
"""Query [1, q, D], key and value [1, k, D]."""


def with_channels(query: float = 1, key: float = 1, shared: bool = False, mean: float = 0) -> Callable[[Rows], None]:
    """Makes channels of the query and of the key `query` and `key` times as large, or adds a mean to the key's."""

    def change(rows: Rows) -> None:
        rows[0][..., :4] *= query
        rows[1][..., slice(0, 4) if shared else slice(4, 8)] *= key
        rows[1][..., 8:11] += mean

    return change


def with_sink(nats: float, deviation: float) -> Callable[[Rows], None]:
    """One key `nats` above the others, whose logits have the standard deviation `deviation`; V has a mean."""

    def change(rows: Rows) -> None:
        query, key, value = rows
        length = math.sqrt(nats * math.sqrt(HEAD_DIM))
        for tensor in (query, key):
            tensor *= math.sqrt(deviation)
            tensor[..., 0] = 0
        query[..., 0] = length
        key[:, 7] = 0
        key[:, 7, 0] = length
        value += torch.randn(HEAD_DIM, generator=torch.Generator().manual_seed(1))

    return change


def input_sets() -> dict[str, Callable[[Rows], None]]:
    sets = {
        "unit normal": with_channels(),
        "4 channels of Q, 4 others of K x 16": with_channels(16, 16),
        "4 channels of K x 20": with_channels(1, 20),
        "the same 4 channels of Q and K x 20": with_channels(20, 20, shared=True),
        "mean of 20 in 3 channels of K": with_channels(mean=20),
    }
    for deviation in DEVIATIONS:
        for nats in SINK_NATS:
            sets[f"sink of {nats:g} nats, sd {deviation:g}"] = with_sink(nats, deviation)
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args()

    generator = torch.Generator().manual_seed(arguments.seed)
    found = []
    print(f"{'':38s}" + "".join(f"{name:>18s}" for name in VARIANTS))
    for name, change in input_sets().items():
        query, key, value = (
            torch.randn(1, count, HEAD_DIM, generator=generator) for count in (QUERIES, arguments.keys, arguments.keys)
        )
        change((query, key, value))
        query, key, value = (tensor.bfloat16().float() for tensor in (query, key, value))
        exact = attend_in_float64(query, key, value)
        cells = []
        for variant, transforms in VARIANTS.items():
            output = attend_in_fp8(query, key, value, HEAD_DIM**-0.5, transforms).double()
            error, ratio = float((output - exact).norm() / exact.norm()), float(output.norm() / exact.norm())
            found.append({"inputs": name, "transforms": variant, "error": error, "norm_ratio": ratio})
            cells.append(f"{error:.4f} {ratio:.4f}")
        print(f"{name:38s}" + "".join(f"{cell:>18s}" for cell in cells), flush=True)
    print("written:", write_result(arguments.output, "fp8-transforms", {"keys": arguments.keys, "rows": found}))


def attend_in_float64(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention in float64, [1, q, D]."""
    logits = query.double() @ key.double().transpose(1, 2) * HEAD_DIM**-0.5  # [1, q, k]
    output: Tensor = logits.softmax(-1) @ value.double()
    return output


if __name__ == "__main__":
    main()
