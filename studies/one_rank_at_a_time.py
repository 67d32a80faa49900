# SPDX-License-Identifier: Apache-2.0
"""What does each of P GPUs compute of a pass, measured one after the other on a single GPU?

For a machine with one GPU. Every rank of a parallelized model runs by itself, its exchanges replaced by copies on the
same GPU, which are timed and taken out; packing, unpacking and the attention of its own heads are real. A pass of P
GPUs is put together as they would run: between two exchanges all wait for the slowest rank. The exchanges are added as
an H100's were measured (`runtime/parallel/rates.py`), so the speedup is an estimate, of measured computing.

    python studies/one_rank_at_a_time.py --model wan-14b --layers 8 [--gpus 2,4] [--json results.json]

Letters: P ranks, L layers, N heads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from vorta_trt.benchmarks.harness import environment
from vorta_trt.benchmarks.step.cases import mixed_routes, select_case
from vorta_trt.benchmarks.step.models import OURS, Subject, Variant
from vorta_trt.model.parallel import exchange, ranks
from vorta_trt.model.parallel.exchange import HeadExchange
from vorta_trt.runtime.parallel.rates import H100, PassWork

TIMESTEP, RUNS = 700.0, 3
Mark = Any  # a CUDA event, or a time of the host


@dataclass
class Clock:
    """Marks of one pass: the start and the end of every copy that stands for an exchange."""

    on_gpu: bool
    marks: list[Mark] = field(default_factory=list)
    packing: list[Mark] = field(default_factory=list)  # around packing and unpacking, copies included

    def mark(self) -> Mark:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def copying(self) -> Iterator[None]:
        self.marks.append(self.mark())
        yield
        self.marks.append(self.mark())

    @contextmanager
    def watch(self, name: str) -> Iterator[None]:
        self.packing.append(self.mark())
        yield
        self.packing.append(self.mark())

    def seconds(self, marks: Sequence[Mark]) -> list[float]:
        """Seconds between each mark and the next."""
        pairs = zip(marks[:-1], marks[1:], strict=True)
        return [1e-3 * start.elapsed_time(end) if self.on_gpu else end - start for start, end in pairs]


@dataclass(frozen=True)
class RankTimes:
    """Seconds of one rank: of every stretch between two exchanges, and of all packing and unpacking in them."""

    stretches: list[float]
    packing: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="wan-14b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--mix", default="50/50,10/45/45")
    parser.add_argument("--gpus", default="2,4")
    parser.add_argument("--precision", default="same")
    parser.add_argument("--linear-precision", default="same")
    parser.add_argument("--json", type=Path, help="write the numbers here, after every one of them")
    options = parser.parse_args()
    case = select_case(options.model, options.layers)
    variant = Variant(options.precision, "plugin", options.linear_precision)
    about = {**environment(), "case": str(case), "layers": options.layers, "variant": variant._asdict(), "rows": []}
    subject = Subject.make(case, "cuda", torch.bfloat16)
    with subject.computed_by(variant):
        for row in measure(subject, options.mix.split(","), [int(count) for count in options.gpus.split(",")]):
            print(json.dumps(row), flush=True)
            about["rows"].append(row)
            if options.json is not None:
                options.json.write_text(json.dumps(about, indent=1) + "\n")


def measure(subject: Subject, mixes: Sequence[str], gpus: Sequence[int], runs: int = RUNS) -> Iterator[dict[str, Any]]:
    """A row for every number of GPUs, mix and placement."""
    layers, heads = subject.case.layers_and_heads(subject.routed.config)
    work = PassWork.of(subject.routed)
    for mix in mixes:
        routes = mixed_routes(mix, layers, heads).to(subject.device)  # [L, N]
        one = sum(rank_times(subject, routes, runs).stretches)
        for count in gpus:
            exchanges = layers * sum(map(H100.exchange, work.sent_bytes(count)))
            for placement in ("balanced", "in_order"):
                times = [of_rank(subject, routes, rank, count, placement, runs) for rank in range(count)]
                computing = sum(max(same) for same in zip(*(each.stretches for each in times), strict=True))
                yield {
                    "gpus": count,
                    "mix": mix,
                    "placement": placement,
                    "one_gpu_seconds": one,
                    "computing_seconds": computing,
                    "rank_seconds": [sum(each.stretches) for each in times],
                    "packing_seconds": statistics.mean(each.packing for each in times),
                    "speedup_of_computing": one / computing,
                    "h100_exchange_seconds": exchanges,
                    "estimated_speedup": one / (computing + exchanges),
                }


def of_rank(subject: Subject, routes: Tensor, rank: int, count: int, placement: str, runs: int) -> RankTimes:
    """The times of one rank of several; the other ranks do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
    try:
        subject.routed.parallelize(placement=placement)
        return rank_times(subject, routes, runs)
    finally:
        subject.routed.parallel = None
        dist.destroy_process_group()


def rank_times(subject: Subject, routes: Tensor, runs: int) -> RankTimes:
    """The median times of some passes."""
    run = subject.runs(OURS, routes)
    found = [_pass(subject, run) for _ in range(runs + 1)][1:]
    stretches = [statistics.median(same) for same in zip(*(each.stretches for each in found), strict=True)]
    return RankTimes(stretches, statistics.median(each.packing for each in found))


def _pass(subject: Subject, run: Callable[[float], Tensor]) -> RankTimes:
    clock = Clock(subject.device.type == "cuda")

    def all_to_all(self: HeadExchange, received: Tensor, sent: Tensor, *rows: object) -> None:
        with clock.copying():
            count = min(received.numel(), sent.numel())  # not the same where shards are uneven
            received.view(-1)[:count].copy_(sent.view(-1)[:count])

    def gather(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        with clock.copying():
            return tensor.expand(group.size(), *tensor.shape).contiguous()

    if isinstance(subject.routed.parallel, ranks.Ranks):
        subject.routed.parallel.watch = clock.watch
    with (
        mock.patch.object(HeadExchange, "_all_to_all", all_to_all),
        mock.patch.object(exchange, "gather", gather),
    ):
        start = clock.mark()
        run(TIMESTEP)
        marks = [start, *clock.marks, clock.mark()]
    if clock.on_gpu:
        torch.cuda.synchronize()
    between = clock.seconds(marks)
    stretches, copies = between[0::2], between[1::2]
    packing = sum(clock.seconds(clock.packing)[0::2]) - sum(copies) if copies else 0.0
    return RankTimes(stretches, packing)


if __name__ == "__main__":
    main()
