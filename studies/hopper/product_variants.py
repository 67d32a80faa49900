# SPDX-License-Identifier: Apache-2.0
"""Which kernel of a product is fastest on Hopper when the card is at its power limit?

All candidates in one process: torch (cuBLAS), the kernels that cuBLASLt lists, and the one that the library takes, at
the shapes of Wan 14B with 72,000 tokens. First a short look at all of them, then the best and those in use in slices
that take turns, each back to back; last the products of a whole layer with its attention, as they are and with the
fastest. Errors are checked before anything is timed.

    python studies/hopper/product_variants.py --output product_variants.json      # about 90 s of an H200, estimated

The kept result (benchmarks/results/2026-11-29-h200-product-variants.json) is of commit debe665. There the library also
had CUTLASS's products with other tiles and orders of tiles, with a gated residual and with e4m3 in their epilogues;
what won is in `plugins/kernels/sm90_linear/`, the others are no longer compiled. clock_stamp.so, for the clocks, is
compiled from clock_stamp.cu by the command in it.

Letters: R rows, K input features, O output features.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sustained import Card, Figures, Sustained, table
from torch import Tensor
from torch.nn import functional

from vorta_trt.plugins import load_library
from vorta_trt.plugins.linear import LinearParams, QuantizeParams, backend, workspace_size
from vorta_trt.plugins.operator_calls import enqueue

ROWS = 72000
SHAPES = {  # name: in features, out features, activation
    "5120 to 5120": (5120, 5120, "none"),
    "5120 to 13824, GELU": (5120, 13824, "gelu_tanh"),
    "13824 to 5120": (13824, 5120, "none"),
}
LISTED = 6  # kernels of cuBLASLt's list that are tried
DTYPE, NAME = torch.float16, "float16"
FINALISTS = 2
SAMPLE = 48  # rows that are checked
COLUMNS = ("name", "ms", "TFLOP/s", "mhz", "megacycles", "watts", "joules", "error")

Run = Callable[[], Any]


def normal(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    """Unit normals on the GPU."""
    return torch.randn(*shape, device="cuda", dtype=dtype)


def tokens(features: int, hidden: bool) -> Tensor:
    """[R, K]: unit normals with every 512th channel 20 times as large; hidden: what a GELU leaves of normals."""
    made = normal(ROWS, features)
    if hidden:
        return functional.gelu(made, approximate="tanh")
    made[:, ::512] *= 20
    return made


def by_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [O, K] in e4m3, with a scale for each row, [O]."""
    scale = (weight.float().abs().amax(1) / 448).clamp(min=1e-12)
    return (weight.float() / scale[:, None]).to(torch.float8_e4m3fn), scale


class Call:
    """One call of the library; outputs may be shared."""

    def __init__(self, tensors: dict[str, Tensor], output: Tensor, **values: Any) -> None:
        self.library, self.tensors, self.output = load_library(), tensors, output
        self.params = LinearParams(
            dtype=NAME, output=output.data_ptr(), **{n: t.data_ptr() for n, t in tensors.items()}, **values
        )
        size = workspace_size(self.library, self.params)
        global WORKSPACE
        if WORKSPACE is None or WORKSPACE.numel() < size:
            WORKSPACE = torch.empty(2 * size, dtype=torch.uint8, device="cuda")
        self.params.workspace, self.params.workspace_bytes = WORKSPACE.data_ptr(), WORKSPACE.numel()
        self.workspace = WORKSPACE

    def __call__(self) -> Tensor:
        enqueue(self.library, self.params, torch.cuda.current_stream().cuda_stream)
        return self.output


WORKSPACE: Tensor | None = None


@dataclass
class Problem:
    """A shape with its tensors, in 16 bits and, if `fp8`, in e4m3 as well."""

    name: str
    fp8: bool

    def __post_init__(self) -> None:
        self.k, self.o, self.activation = SHAPES[self.name]
        self.flops = 2 * ROWS * self.k * self.o
        self.input = tokens(self.k, self.k > 5120)
        self.weight = normal(self.o, self.k) * self.k**-0.5
        self.bias = normal(self.o) * 0.1
        self.output = torch.empty(ROWS, self.o, dtype=DTYPE, device="cuda")
        self.rows = torch.linspace(0, ROWS - 1, SAMPLE, device="cuda").long()
        if self.fp8:
            self.weight8, self.weight_scale = by_rows(self.weight)
            self.input8, self.input_scale = quantize(self.input)
            left = self.input8.view(torch.uint8)[self.rows].view(torch.float8_e4m3fn).double()
            sums = left @ self.weight8.double().T
            sums = sums * self.input_scale[self.rows].double()[:, None] * self.weight_scale.double()
        else:
            sums = self.input[self.rows].double() @ self.weight.double().T
        self.wanted = self.activated(sums + self.bias.double())  # [SAMPLE, O]

    def activated(self, product: Tensor) -> Tensor:
        """GELU if the shape has one."""
        return functional.gelu(product, approximate="tanh") if self.activation == "gelu_tanh" else product

    def call(self, candidate: int) -> Call:
        """A call of the library's product."""
        tensors = {"bias": self.bias}
        if self.fp8:
            tensors |= {"input": self.input8, "weight": self.weight8}
            tensors |= {"input_scale": self.input_scale, "weight_scale": self.weight_scale}
        else:
            tensors |= {"input": self.input, "weight": self.weight}
        return Call(
            tensors, self.output, precision="fp8" if self.fp8 else "same", activation=self.activation,
            candidate=candidate, rows=ROWS, in_features=self.k, out_features=self.o,
        )  # fmt: skip

    def torch_call(self) -> Run:
        """Torch's product: cuBLAS with GELU in its epilogue; for fp8, CUTLASS with fast sums, then bias and GELU."""
        if not self.fp8:
            if self.activation == "gelu_tanh":
                return partial(torch._addmm_activation, self.bias, self.input, self.weight.T, use_gelu=True)
            return partial(functional.linear, self.input, self.weight, self.bias)
        scales = (self.input_scale[:, None], self.weight_scale[None])
        return lambda: self.activated(
            torch._scaled_mm(self.input8, self.weight8.T, *scales, out_dtype=torch.bfloat16, use_fast_accum=True)
            + self.bias.bfloat16()
        )

    def error(self, output: Tensor) -> float:
        """Relative error of the sampled rows."""
        return float((output[self.rows].double() - self.wanted).norm() / self.wanted.norm())


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises rows by the library: e4m3 [R, K] and scales [R]."""
    numbers = torch.empty(rows.shape, dtype=torch.float8_e4m3fn, device="cuda")
    scale = torch.empty(len(rows), device="cuda")
    params = QuantizeParams(
        dtype=NAME, rows=len(rows), features=rows.shape[1], input=rows.data_ptr(), quantized=numbers.data_ptr(),
        quantized_scale=scale.data_ptr(),
    )  # fmt: skip
    enqueue(load_library(), params, torch.cuda.current_stream().cuda_stream)
    return numbers, scale


def checked(problem: Problem, run: Run, bound: float) -> tuple[float | None, str]:
    """The error, or why there is none."""
    try:
        if isinstance(run, Call):
            run.output.view(torch.uint8).fill_(255)  # NaN in every type here
        error = problem.error(run())
        torch.cuda.synchronize()
    except Exception as reason:
        return None, f"{type(reason).__name__}: {str(reason)[:160]}"
    return error, "" if error < bound else f"wrong: error {error:.3g}"


def screened(sustained: Sustained, problem: Problem, runs: dict[str, Run], seconds: float) -> list[dict[str, Any]]:
    """Times each kernel briefly, in two turns (the second backwards); those that are wrong or refuse get a note."""
    rows: list[dict[str, Any]] = []
    good: dict[str, Run] = {}
    for name, run in runs.items():
        error, note = checked(problem, run, 6e-3)
        rows.append({"name": name, "error": error, "note": note})
        if not note:
            good[name] = run
    figures = {name: Figures() for name in good}
    for order in (list(good), list(reversed(good))):
        for name in order:
            sustained.slice(seconds / 2, figures[name], good[name])
    for row in rows:
        if row["name"] in good:
            row |= figures[row["name"]].summary()
            row["TFLOP/s"] = round(problem.flops / row["ms"] * 1e-9)
    return rows


def finals(
    sustained: Sustained, problem: Problem, runs: dict[str, Run], rows: list[dict[str, Any]], always: list[str],
    seconds: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """Times the best kernels of cuBLASLt, and those named in `always`, in slices that take turns."""
    timed = sorted((row for row in rows if row.get("ms")), key=lambda row: row["ms"])
    listed = [row["name"] for row in timed if row["name"].startswith("cuBLASLt")][:FINALISTS]
    names = [*(n for n in always if any(r["name"] == n for r in timed)), *listed]
    found = sustained.in_turns({name: runs[name] for name in names}, seconds, rounds=6)
    errors = {row["name"]: row["error"] for row in rows}
    result = [
        {"name": n, **f, "TFLOP/s": round(problem.flops / f["ms"] * 1e-9), "error": errors[n]} for n, f in found.items()
    ]
    return sorted(result, key=lambda row: row["ms"])


def products(sustained: Sustained, fp8: bool, screen: float, seconds: float) -> dict[str, Any]:
    """Measures all shapes in one precision."""
    result = {}
    for name in SHAPES:
        problem = Problem(name, fp8)
        runs: dict[str, Run] = {"torch": problem.torch_call(), "in use": problem.call(0)}
        if not fp8:
            bf16 = [t.bfloat16() for t in (problem.input, problem.weight, problem.bias)]
            runs["torch, bfloat16"] = partial(functional.linear, *bf16)
        runs |= {f"cuBLASLt's {n}": problem.call(n) for n in range(1, LISTED + 1)}
        rows = screened(sustained, problem, runs, screen)
        for row in rows:  # torch's bfloat16 and its fp8 output in bfloat16 are allowed their rounding
            if row["note"].startswith("wrong") and row["name"].startswith("torch"):
                row["note"] = ""
        final = finals(sustained, problem, runs, rows, ["torch", "in use"], seconds)
        print(f"\n{name}, {'fp8' if fp8 else NAME}\n{table(final, COLUMNS)}", flush=True)
        bad = [row for row in rows if row["note"]]
        if bad:
            print("  left out: " + "; ".join(f"{row['name']}: {row['note']}" for row in bad[:6]), flush=True)
        result[name] = {"screened": rows, "finals": final}
        del runs, problem
        torch.cuda.empty_cache()
    return result


def best_of(result: dict[str, Any], name: str) -> int:
    """The place in cuBLASLt's list of a shape's fastest kernel, or 0 where what is in use is as fast within 0.5 %."""
    finals = result[name]["finals"]
    in_use = next(row["ms"] for row in finals if row["name"] == "in use")
    best = min((row for row in finals if row["name"].startswith("cuBLASLt")), key=lambda row: row["ms"], default=None)
    return 0 if best is None or best["ms"] > 0.995 * in_use else int(best["name"].split()[-1])


def layer(sustained: Sustained, result: dict[str, Any], fp8: bool, seconds: float) -> list[dict[str, Any]]:
    """Times the eight products of a layer with its attention, back to back: as they are, and with the winners."""
    from vorta_trt.model import AttentionGeometry, routed_attention

    geometry = AttentionGeometry(
        grid=(20, 45, 80), tile=(5, 9, 8), window=(3, 3, 3), bucket=(2, 3, 2), keep=6, coreset_keys="query",
        text_tokens=0,
    )  # fmt: skip
    problems = {name: Problem(name, fp8) for name in SHAPES}
    query, key, value = (normal(1, ROWS, 40, 128) for _ in range(3))
    routes = torch.tensor([[1, 2] * 20], dtype=torch.int32, device="cuda")
    precision = "fp8" if fp8 else "same"
    counts = {"5120 to 5120": 6, "5120 to 13824, GELU": 1, "13824 to 5120": 1}
    runs: dict[str, Run] = {}
    winners = {name: best_of(result, name) for name in counts}
    for title, chosen in (("as it is", dict.fromkeys(counts, 0)), ("winners", winners)):
        calls = [problems[n].call(chosen[n]) for n, count in counts.items() for _ in range(count)]

        def run(calls: list[Call] = calls) -> None:
            for call in calls[:3]:
                call()
            routed_attention(query, key, value, routes, geometry, attention_precision=precision)
            for call in calls[3:]:
                call()

        runs[title + ": " + ", ".join(f"{n}: {place}" for n, place in chosen.items())] = run
    figures = sustained.in_turns(runs, seconds, rounds=4)
    rows = [{"name": name, **found} for name, found in figures.items()]
    print(f"\nproducts and attention of a layer, {precision}\n{table(rows, COLUMNS)}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default="16,8,layer", help="some of 16, 8, layer")
    parser.add_argument("--screen", type=float, default=0.12, help="seconds for each candidate in the first look")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each finalist")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    start, card = time.perf_counter(), Card()
    sustained = Sustained(card)
    figures: dict[str, Any] = {
        "question": "Which kernel of a product is fastest on Hopper at the power limit?",
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "backend": {name: backend(load_library(), name)[0] for name in ("same", "fp8")}, "rows": ROWS,
    }  # fmt: skip
    print(figures, flush=True)

    def keep() -> None:
        figures["seconds"] = round(time.perf_counter() - start, 1)
        options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"[{figures['seconds']} s]", flush=True)

    parts = options.parts.split(",")
    for part, fp8 in (("16", False), ("8", True)):
        if part in parts:
            figures[part] = products(sustained, fp8, options.screen, options.seconds)
            keep()
    if "layer" in parts:
        for part, fp8 in (("16", False), ("8", True)):
            if part in figures:
                figures[f"layer {part}"] = layer(sustained, figures[part], fp8, options.seconds)
                keep()
    figures["throttle_reasons"] = card.reasons(start, time.perf_counter())
    figures["card"] = card.between(start, time.perf_counter())
    keep()
    card.close()


if __name__ == "__main__":
    main()
