# SPDX-License-Identifier: Apache-2.0
"""Why does fp8 attention take longer in a pass than alone? One row for each guess, with clock and cycles of every call.

Routed attention of Wan 14B (72,000 tokens, 40 heads) took 34.3 ms a layer inside the fp8 engine on an H200, where 25 ms
were expected from 8 heads of each branch, 26.6 ms by a run of 40 heads on an H100. Time is cycles over clock, so each
finding points to a cause:

- cycles as alone, clock lower:       the power limit; the work before it lowers the clock.
- cycles more after other work:       memory: a cold L2, or pages that HBM has closed.
- cycles more with the model's q k v: the numbers: fp8's softmax weighs a block a second time where its maximum rises.
- cycles more with a layer's routes:  the counts: a full head costs as much as five others; or their order.
- other kernels than the attention's: quantisation, statistics, selection; the profile at the end names them.

    python studies/hopper/fp8_attention_in_pass.py --output fp8_attention_in_pass.json      # about 50 s of an H200
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from product_variants import Problem
from sustained import Card, Figures, Sustained, table
from torch import Tensor

from vorta_trt.model import AttentionGeometry, routed_attention
from vorta_trt.model.rotary import rotate

TOKENS, HEADS, HEAD_DIM = 72000, 40, 128
GEOMETRY = AttentionGeometry(
    grid=(20, 45, 80), tile=(5, 9, 8), window=(3, 3, 3), bucket=(2, 3, 2), keep=6, coreset_keys="query", text_tokens=0
)
LAYERS = ((0, 18, 22), (1, 19, 20), (0, 19, 21), (0, 24, 16))  # full, coreset, sliding: the four of the engine's run
COLUMNS = ("name", "ms", "mhz", "megacycles", "watts", "calls")
Run = Callable[[], Any]


def routes_of(full: int, coreset: int, sliding: int, order: str = "random") -> Tensor:
    """Routes int32 [1, N] with these numbers of heads by branch."""
    ids = torch.tensor([0] * full + [1] * coreset + [2] * sliding, dtype=torch.int32)
    if order == "random":
        ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    return ids[None].cuda()


def normals(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [1, S, N, D] of unit normals: what the kernels' benchmark takes."""
    made = [torch.randn(1, TOKENS, HEADS, HEAD_DIM, device="cuda", dtype=dtype) for _ in range(3)]
    return made[0], made[1], made[2]


def like_a_first_layer(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as in a random first layer: tokens embedded from 64 numbers, normed, projected, rotated."""
    width = HEADS * HEAD_DIM

    def weight(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device="cuda", dtype=dtype) / math.sqrt(columns)

    tokens = torch.randn(TOKENS, 64, device="cuda", dtype=dtype) @ weight(width, 64).T  # [S, E]
    tokens = torch.nn.functional.layer_norm(tokens, (width,))
    frequencies = 1e4 ** (-torch.arange(0, HEAD_DIM, 2, device="cuda") / HEAD_DIM)  # [D/2]
    angles = torch.arange(TOKENS, device="cuda")[:, None] % 80 * frequencies  # [S, D/2]: along a row of the video
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]  # [1, S, 1, D/2]
    made = []
    for rotated in (True, True, False):
        rows = tokens @ weight(width, width).T  # [S, E]
        if rotated:
            rows = torch.nn.functional.rms_norm(rows, (width,))
        heads = rows.view(1, TOKENS, HEADS, HEAD_DIM)
        made.append(rotate(heads.float(), cos, sin).to(dtype).contiguous() if rotated else heads)
    return made[0], made[1], made[2]


def of_the_model(dtype: torch.dtype, layers: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Query, key and value of the first layers of the model that `bench step` runs; needs diffusers."""
    from vorta_trt.benchmarks.step.cases import mixed_routes, select_case
    from vorta_trt.benchmarks.step.models import OURS, Subject, Variant

    subject = Subject.make(select_case("wan-14b", layers), "cuda", dtype, 0)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def observe(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> None:
        seen.append((query.clone(), key.clone(), value.clone()))

    for block in subject.routed.routed_blocks():
        block.observer = observe
    with subject.computed_by(Variant("same", "plugin", "same")):
        subject.runs(OURS, mixed_routes("50/50", layers, HEADS).cuda())(999.0)
    return seen


def written(size: int) -> Run:
    """A run that writes `size` bytes."""
    memory = torch.empty(size, dtype=torch.uint8, device="cuda")
    return memory.zero_


def copied(size: int, times: int) -> Run:
    """A run that copies `size` bytes some times."""
    source, target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    return lambda: [target.copy_(source) for _ in range(times)]


def rested(seconds: float) -> Run:
    """A run that waits until the GPU is idle, and lets it rest for some seconds."""

    def rest() -> None:
        torch.cuda.synchronize()
        time.sleep(seconds)

    return rest


def waited(seconds: float) -> Run:
    """A run that keeps the GPU waiting for some seconds, taken as cycles at 1.8 GHz."""
    return lambda: torch.cuda._sleep(int(seconds * 1.8e9))


def products_of_a_layer(fp8: bool) -> Run:
    """A run of the eight products of a layer."""
    calls = [Problem("5120 to 5120", fp8).call(0)] * 6
    calls += [Problem(name, fp8).call(0) for name in ("5120 to 13824, GELU", "13824 to 5120")]
    return lambda: [call() for call in calls]


def profile(run: Run) -> dict[str, float]:
    """Milliseconds of each kernel of a call."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    run()
    with profiler(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    found = {event.key[:90]: round(event.self_device_time_total / 1e3, 3) for event in seen.key_averages()}
    return {name: ms for name, ms in sorted(found.items(), key=lambda pair: -pair[1]) if ms > 0.002}


class Study:
    """Measures rows and keeps them."""

    def __init__(self, card: Card, seconds: float) -> None:
        self.sustained, self.seconds = Sustained(card), seconds
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, run: Run, between: Run | None = None, seconds: float | None = None) -> None:
        """Measures and prints a row."""
        figures = Figures()
        self.sustained.slice(seconds or self.seconds, figures, run, between)
        self.rows.append({"name": name, **figures.summary()})
        print(table([self.rows[-1]], COLUMNS).splitlines()[1], flush=True)


def measure(study: Study, precision: str, dtype: torch.dtype, models: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """All guesses for one precision of the attention."""
    query, key, value = normals(dtype)
    even = routes_of(0, 20, 20)

    def attend(inputs: tuple[Tensor, Tensor, Tensor] = (query, key, value), routes: Tensor = even) -> Run:
        return lambda: routed_attention(*inputs, routes, GEOMETRY, attention_precision=precision)

    label = f"{precision:<5}"
    alone = attend()
    alone()
    torch.cuda.synchronize()
    rest, short = 0.4, 0.6 * study.seconds
    study.add(f"{label} alone, rested {rest} s before each", alone, rested(rest))
    study.add(f"{label} alone, without a pause", alone)
    study.add(f"{label} after 1 GiB was written (cold L2)", alone, written(1 << 30))
    study.add(f"{label} after 16 GiB were copied 4 times", alone, copied(16 << 30, 4))
    study.add(f"{label} after 34 ms of waiting on the GPU", alone, waited(34e-3))
    for fp8 in (True, False) if precision == "fp8" else (False,):
        kind, products, longer = "fp8" if fp8 else "16 bits", products_of_a_layer(fp8), 2 * study.seconds
        study.add(f"{label} after a layer's products in {kind}", alone, products, longer)
        study.add(f"      these products in {kind}, that attention between", products, alone, longer)
        study.add(f"      these products in {kind}, without a pause", products)
        del products
        torch.cuda.empty_cache()
    for counts in LAYERS:
        study.add(
            f"{label} routes {counts}: full, coreset, sliding",
            attend(routes=routes_of(*counts)),
            None,
            short,
        )
    study.add(f"{label} routes (0, 20, 20) in order", attend(routes=routes_of(0, 20, 20, "order")), None, short)
    del alone, query, key, value
    study.add(f"{label} inputs like a random first layer's", attend(like_a_first_layer(dtype)))
    for layer, inputs in enumerate(models):
        study.add(f"{label} inputs of layer {layer} of bench step's model", attend(inputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.2, help="of most rows")
    parser.add_argument("--precisions", default="fp8,same")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    start, card = time.perf_counter(), Card()
    study, dtype = Study(card, options.seconds), torch.float16
    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "dtype": str(dtype)}
    try:
        models = of_the_model(dtype)
    except Exception as error:  # no diffusers: the other rows do not need it
        models, figures["model"] = [], f"not run: {type(error).__name__}: {error}"
        print(figures["model"], flush=True)
    torch.cuda.empty_cache()
    print(f"[{time.perf_counter() - start:.1f} s]\n" + "  ".join(COLUMNS), flush=True)
    for precision in options.precisions.split(","):
        measure(study, precision, dtype, models)
        print(f"[{time.perf_counter() - start:.1f} s]", flush=True)
    inputs = models[0] if models else normals(dtype)
    figures["kernels"] = {
        p: profile(partial(routed_attention, *inputs, routes_of(0, 20, 20), GEOMETRY, attention_precision=p))
        for p in options.precisions.split(",")
    }
    print(json.dumps(figures["kernels"], indent=1), flush=True)
    figures |= {"rows": study.rows, "throttle_reasons": card.reasons(start, time.perf_counter())}
    figures["seconds"] = round(time.perf_counter() - start, 1)
    print("\n" + table(study.rows, COLUMNS) + f"\n[{figures['seconds']} s]", flush=True)
    options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    card.close()


if __name__ == "__main__":
    main()
