# SPDX-License-Identifier: Apache-2.0
"""What does attention in 8 bits lose on inputs that are hard for it, and what does it cost? On a GPU that has fp8.

    python studies/fp8_accuracy.py --geometry wan-14b

Each set of inputs goes through the kernels twice, with attention_precision "fp8" and "same"; the table has the relative
error of the first against the second and the ratio of their norms, of the worst head. VORTA_TRT_LIBRARY names another
build of the library to measure.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vorta_trt.benchmarks.cases import SUBJECTS
from vorta_trt.benchmarks.harness import write_result
from vorta_trt.model import AttentionGeometry, Branch, routed_attention

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HEAD_DIM = 128
SINK_NATS = (0.0, 6.0, 9.0, 10.0, 11.0, 12.0, 14.0)
DEVIATIONS = (0.5, 1.0, 2.0)
#: Tokens from one sink to the next where there are several.
SINK_DISTANCE = 4001


@dataclass
class Inputs:
    """Query, key and value, float32 [1, S+T, N, D]; they are rounded to bfloat16 before use."""

    query: Tensor
    key: Tensor
    value: Tensor


def normal(geometry: AttentionGeometry, heads: int, generator: torch.Generator) -> Inputs:
    shape = (1, geometry.tokens, heads, HEAD_DIM)
    return Inputs(*(torch.randn(shape, generator=generator, device="cuda") for _ in range(3)))


def benchmark_outliers(inputs: Inputs) -> None:
    inputs.query[..., :4] *= 16
    inputs.key[..., 4:8] *= 16


def key_outliers(inputs: Inputs) -> None:
    inputs.key[..., :3] *= 20


def shared_outliers(inputs: Inputs) -> None:
    inputs.query[..., :3] *= 20
    inputs.key[..., :3] *= 20


def key_mean(inputs: Inputs) -> None:
    inputs.key[..., :3] += 20


def query_mean(inputs: Inputs) -> None:
    inputs.query[..., :3] += 20


def value_mean(inputs: Inputs) -> None:
    inputs.value += 1


def value_outliers(inputs: Inputs) -> None:
    inputs.value[..., :3] *= 20


def sinks(nats: float, deviation: float, tokens: Tensor, generator: torch.Generator) -> Callable[[Inputs], None]:
    """Keys at `tokens` whose logits stand `nats` above the others', of standard deviation `deviation`; V has a mean."""

    def change(inputs: Inputs) -> None:
        direction = torch.randn(inputs.query.shape[2:], generator=generator, device="cuda")  # [N, D]
        direction /= direction.norm(dim=-1, keepdim=True)
        length = math.sqrt(nats * math.sqrt(HEAD_DIM))
        for tensor in (inputs.query, inputs.key):
            tensor -= (tensor * direction).sum(-1, keepdim=True) * direction
            tensor *= math.sqrt(deviation)
        inputs.query += length * direction
        inputs.key[:, tokens] = length * direction
        inputs.value += torch.randn(inputs.query.shape[2:], generator=generator, device="cuda")

    return change


def input_sets(geometry: AttentionGeometry, generator: torch.Generator) -> dict[str, Callable[[Inputs], None]]:
    sets: dict[str, Callable[[Inputs], None]] = {
        "unit normal": lambda inputs: None,
        "4 channels of Q, 4 others of K x 16": benchmark_outliers,
        "3 channels of K x 20": key_outliers,
        "3 channels of Q and K x 20": shared_outliers,
        "mean of 20 in 3 channels of K": key_mean,
        "mean of 20 in 3 channels of Q": query_mean,
        "mean of 1 in V": value_mean,
        "3 channels of V x 20": value_outliers,
    }
    video = geometry.video_tokens
    for deviation in DEVIATIONS:
        for nats in SINK_NATS:
            place = torch.tensor([video // 2], device="cuda")
            sets[f"sink of {nats:g} nats, sd {deviation:g}"] = sinks(nats, deviation, place, generator)
        many = torch.arange(SINK_DISTANCE // 2, video, SINK_DISTANCE, device="cuda")
        sets[f"{len(many)} sinks of 10 nats, sd {deviation:g}"] = sinks(10.0, deviation, many, generator)
    for name, token in (("first", 0), ("last", video - 1)):
        sets[f"sink of 10 nats at the {name} token, sd 0.5"] = sinks(
            10.0, 0.5, torch.tensor([token], device="cuda"), generator
        )
    return sets


def norm_of_heads(tensor: Tensor) -> Tensor:
    """Frobenius norm of each head of [B, S+T, N, D]."""
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=(0, 1, 3))
    return norms


def compare(inputs: Inputs, geometry: AttentionGeometry, branch: Branch) -> tuple[float, float]:
    """The largest relative error of a head, and the norm ratio that is furthest from 1."""
    query, key, value = (tensor.bfloat16() for tensor in (inputs.query, inputs.key, inputs.value))
    routes = torch.full((1, query.shape[2]), int(branch), dtype=torch.int32, device="cuda")
    lengths = torch.full((1,), geometry.text_tokens, dtype=torch.int32, device="cuda") if geometry.text_tokens else None
    outputs = [
        routed_attention(query, key, value, routes, geometry, lengths, attention_precision=precision).float()
        for precision in ("fp8", "same")
    ]
    norms = [norm_of_heads(output) for output in outputs]  # [N]
    errors = norm_of_heads(outputs[0] - outputs[1]) / norms[1]
    ratios: list[float] = (norms[0] / norms[1]).tolist()
    return float(errors.max()), max(ratios, key=lambda ratio: abs(ratio - 1))


def milliseconds(geometry: AttentionGeometry, heads: int, branch: Branch, precision: str, calls: int = 7) -> float:
    """Median milliseconds of a call."""
    query, key, value = (torch.randn(1, geometry.tokens, heads, HEAD_DIM, device="cuda").bfloat16() for _ in range(3))
    routes = torch.full((1, heads), int(branch), dtype=torch.int32, device="cuda")
    lengths = torch.full((1,), geometry.text_tokens, dtype=torch.int32, device="cuda") if geometry.text_tokens else None
    times = []
    for _ in range(calls + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        routed_attention(query, key, value, routes, geometry, lengths, attention_precision=precision)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    median: float = sorted(times[2:])[calls // 2]
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=sorted(SUBJECTS), default="wan-14b")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--timed-heads", type=int, default=8, help="heads of the timed calls; 0 times nothing")
    parser.add_argument("--only", default="", help="the sets whose names contain this")
    parser.add_argument("--branches", nargs="+", default=["full", "coreset", "sliding"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args()

    geometry = SUBJECTS[arguments.geometry].geometry
    branches = [Branch[name.upper()] for name in arguments.branches]
    generator = torch.Generator("cuda").manual_seed(arguments.seed)
    rows, times = [], {}
    for name, change in input_sets(geometry, generator).items():
        if arguments.only not in name:
            continue
        inputs = normal(geometry, arguments.heads, generator)
        change(inputs)
        cells = []
        for branch in branches:
            error, ratio = compare(inputs, geometry, branch)
            rows.append({"inputs": name, "branch": branch.name.lower(), "error": error, "norm_ratio": ratio})
            cells.append(f"{error:.4f} {ratio:.4f}")
        print(f"{name:42s} {'   '.join(cells)}", flush=True)
    if arguments.timed_heads:
        for branch in branches:
            times[branch.name.lower()] = milliseconds(geometry, arguments.timed_heads, branch, "fp8")
        print("ms:", {name: round(time, 3) for name, time in times.items()})
    found = {
        "geometry": arguments.geometry,
        "device": torch.cuda.get_device_name(),
        "rows": rows,
        "milliseconds": times,
    }
    print("written:", write_result(arguments.output, "fp8-accuracy", found))


if __name__ == "__main__":
    main()
