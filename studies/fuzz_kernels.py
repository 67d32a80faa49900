# SPDX-License-Identifier: Apache-2.0
"""Are the attention kernels right on random problems? A fuzz of the C API on a GPU against an oracle in float64.

    python studies/fuzz_kernels.py --count 10000 --processes 6
    python studies/fuzz_kernels.py --count 400 --mutate window     # proves that it can fail

Problems are drawn from numbers (tests/plugins/random_problems.py): grids that tile, bucket and window do not divide,
strides, types, text, batch, huge logits, sinks, outliers, NaN and infinity. Each runs on every family of kernels that
the GPU has for it, in 16 and in 8 bits. A run is right if its error is at most twice torch's own in the same type (8
bits: within --fp8-limit of a head's norm, where the inputs are mild), if NaN and infinity stay with the rows that may
see them, padding is 0, coreset lists are those of float64 but for near ties, and no guard or gap is touched. Problems
with a mistake have to be refused and to write nothing. The result goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.plugins.random_judge import BRANCHES, COUNTS, FIGURES, FP8_LIMIT, RUNS, Judge, faults, refusal, runs_of  # noqa: E402
from tests.plugins.random_problems import RandomProblem, draw  # noqa: E402
from vorta_trt.benchmarks.harness import write_result  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MUTATIONS = ("window", "tile", "bucket", "keep", "coreset_keys", "route", "length", "scale")
TOGETHER = 128  # runs whose verdicts are read from the GPU at once
SHOWN = 40  # findings in the result


def name_of(family: str, precision: str) -> str:
    """A run in words, such as "default-same" and "sm80-fp8"."""
    return f"{family or 'default'}-{precision}"


def mutated(problem: RandomProblem, what: str) -> RandomProblem:
    """The changed problem that the kernels get in place of `problem`, without the oracle's knowledge."""
    pattern = problem.pattern
    if what == "window":
        frames, height, width = (max(1, entry - 2) for entry in pattern.window)
        return replace(problem, pattern=replace(pattern, window=(frames, height, width)))
    if what == "tile":
        frames, height, width = (entry + 1 for entry in pattern.tile)
        return replace(problem, pattern=replace(pattern, tile=(frames, height, width)))
    if what == "bucket":
        width, height, frames = pattern.bucket
        return replace(problem, pattern=replace(pattern, bucket=(frames, height, width)))
    if what == "keep":
        return replace(problem, pattern=replace(pattern, keep=max(1, pattern.keep - 1)))
    if what == "coreset_keys":
        return replace(problem, coreset_keys="key" if problem.coreset_keys == "query" else "query")
    if what == "route":
        first = (problem.routes[0][0] + 1) % 3
        return replace(problem, routes=((first, *problem.routes[0][1:]), *problem.routes[1:]))
    if what == "length":
        return replace(problem, lengths=tuple(length - 1 for length in problem.lengths))
    return replace(problem, scale=problem.used_scale * 1.02)


class Tally:
    """Verdicts of all runs of some problems."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.waiting: list[tuple[RandomProblem, str, str, torch.Tensor]] = []
        self.problems = 0
        self.crashed = False
        self.runs: Counter[str] = Counter()
        self.mistakes: Counter[str] = Counter()
        self.worst: dict[str, float] = {}
        self.findings: list[dict[str, Any]] = []

    def add(self, problem: RandomProblem, family: str, precision: str, row: torch.Tensor | None) -> None:
        name = name_of(family, precision)
        if row is None:
            self.runs[f"{name}, unsupported"] += 1
            return
        self.runs[name] += 1
        self.waiting.append((problem, family, precision, row))

    def read(self) -> None:
        """Fetches the rows that wait on the GPU."""
        if not self.waiting:
            return
        rows = torch.stack([row for *_, row in self.waiting]).tolist()
        for (problem, family, precision, _), row in zip(self.waiting, rows, strict=True):
            name = name_of(family, precision)
            limit = self.limit if problem.mild else float("inf")
            self.note(problem, name, faults(row, precision, limit, problem.few_rows))
            for branch, branch_name in enumerate(BRANCHES):
                at = len(COUNTS) + branch * len(FIGURES)
                figures = dict(zip(FIGURES, row[at : at + len(FIGURES)], strict=True))
                if precision == "same" and figures["rows"]:
                    allowed = max(figures["torch_rms"], figures["rounding_rms"], 1e-30)
                    self.raise_worst(f"{name}, {branch_name}: rms over torch's", figures["rms"] / allowed)
                elif precision == "fp8" and problem.mild and figures["rows"]:
                    self.raise_worst(f"{name}, {branch_name}: relative error", figures["relative"])
        self.waiting.clear()

    def raise_worst(self, figure: str, value: float) -> None:
        self.worst[figure] = max(self.worst.get(figure, 0.0), round(value, 4))

    def note(self, problem: RandomProblem, name: str, found: list[str]) -> None:
        if found:
            self.findings.append({"number": problem.number, "run": name, "found": found, "problem": repr(problem)})

    def join(self, other: Tally) -> None:
        self.problems += other.problems
        self.crashed |= other.crashed
        self.runs += other.runs
        self.mistakes += other.mistakes
        for figure, value in other.worst.items():
            self.raise_worst(figure, value)
        self.findings = sorted(self.findings + other.findings, key=lambda finding: int(finding["number"]))


def fuzz(numbers: Sequence[int], runs: Sequence[str], mutation: str | None, limit: float, seconds: float) -> Tally:
    """Runs the problems of these numbers, one after another; a crash of a kernel ends it."""
    tally, start = Tally(limit), time.perf_counter()
    for number in numbers:
        problem = draw(number)
        tally.problems += 1
        if problem.mistake:
            tally.mistakes[problem.mistake] += 1
            said = refusal(problem)
            tally.note(problem, "refusal", [f"{problem.mistake}: {said}"] if said else [])
            continue
        judge = Judge(problem, mutated(problem, mutation) if mutation else problem)
        for family, precision in runs_of(problem):
            if name_of(family, precision) not in runs:
                continue
            try:
                tally.add(problem, family, precision, judge.run(family, precision))
                torch.cuda.synchronize()
            except torch.AcceleratorError as error:  # of a kernel that ran: this process is done with CUDA
                tally.note(problem, name_of(family, precision), [f"crash: {str(error).splitlines()[0]}"])
                tally.crashed = True
                tally.waiting.clear()
                return tally
        if len(tally.waiting) >= TOGETHER:
            tally.read()
        if time.perf_counter() - start > seconds:
            break
    tally.read()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="problems")
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--number", type=int, help="run this problem alone, and print what is found")
    parser.add_argument("--processes", type=int, default=1, help="that share the problems, and the GPU")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="each process stops after this time")
    every = [name_of(*run) for run in RUNS]
    parser.add_argument("--run", action="append", choices=every, help="these runs alone")
    parser.add_argument("--mutate", choices=MUTATIONS, help="tell the kernels something else than the oracle")
    parser.add_argument("--fp8-limit", type=float, default=FP8_LIMIT, help="relative error of a head in 8 bits")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args()

    numbers = range(arguments.first, arguments.first + arguments.count)
    settings = (arguments.run or every, arguments.mutate, arguments.fp8_limit, arguments.seconds)
    tally, start = Tally(arguments.fp8_limit), time.perf_counter()
    if arguments.number is not None:
        tally = fuzz([arguments.number], *settings)
    elif arguments.processes == 1:
        tally = fuzz(numbers, *settings)
    else:
        shares = [numbers[i :: arguments.processes] for i in range(arguments.processes)]
        with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
            for part in pool.map(fuzz, shares, *([setting] * len(shares) for setting in settings)):
                tally.join(part)
    figures = {
        "problems": tally.problems,
        "first": arguments.first,
        "mutation": arguments.mutate,
        "crashed": tally.crashed,
        "seconds": round(time.perf_counter() - start, 1),
        "processes": arguments.processes,
        "runs": dict(sorted(tally.runs.items())),
        "refused_as_they_should_be": tally.mistakes.total() - sum(f["run"] == "refusal" for f in tally.findings),
        "mistakes": dict(sorted(tally.mistakes.items())),
        "fp8_limit": arguments.fp8_limit,
        "worst": dict(sorted(tally.worst.items())),
        "wrong_problems": len({finding["number"] for finding in tally.findings}),
        "findings": tally.findings[:SHOWN],
    }
    for finding in tally.findings[:SHOWN]:
        print(f"{finding['number']} {finding['run']}: {'; '.join(finding['found'])}\n    {finding['problem']}")
    print({key: value for key, value in figures.items() if key != "findings"})
    if arguments.number is None:
        name = "fuzz-kernels" + (f"-mutated-{arguments.mutate}" if arguments.mutate else "")
        print("written:", write_result(arguments.output, name, figures))
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
