# SPDX-License-Identifier: Apache-2.0
"""Is the chain checkpoint -> ONNX -> engine -> GPU right? A small Wan in TensorRT 8.6, against torch.

    python studies/tensorrt8_chain.py --work /tmp/chain                    # everything
    python studies/tensorrt8_chain.py --work /tmp/chain --stage export     # or stage by stage: torch and diffusers,
    python studies/tensorrt8_chain.py --work /tmp/chain --stage build      # TensorRT 8.6,
    python studies/tensorrt8_chain.py --work /tmp/chain --stage run        # both

Three layers with random weights and a router, heads of 64 and of 128. One engine per head dimension runs every kind of
route, chosen by tau and by route_override, which change from call to call, at batch 1 and 2, launched and as a CUDA
graph. It may err twice as much as torch in float16 does; the measure is torch in float32 on the CPU, on the routes that
the engine took. Where two tokens of a bucket are almost equally unlike its centre, rounding decides which of them a
coreset keeps, and the error jumps: each case runs on several fresh inputs, and the middle errors count. Routes have to
be those of torch, and a graph's outputs those of the launched engine, bit for bit, every time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.benchmarks.harness import write_result
from vorta_trt.benchmarks.step.measure import difference
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.precision import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from vorta_trt.model import RoutedTransformer

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
STAGES = ("export", "build", "run")
HEAD_DIMS = (64, 128)
LAYERS, HEADS = 3, 4
GEOMETRY = AttentionGeometry(grid=(6, 18, 24), tile=(2, 6, 8), window=(3, 1, 3), bucket=(2, 3, 2), keep=6)
ERROR_FACTOR = 2.0  # of torch's own error in float16
DRAWS = 3  # fresh inputs per case

# name: tau, and the branch of every head: a Branch, -1 for the router's choice, or "mixed" for random ones.
ROUTINGS: dict[str, tuple[float, int | str]] = {
    "router, tau 0.3": (0.3, -1),
    "router, tau 0.45": (0.45, -1),
    "router, tau 1.1 (dense)": (1.1, -1),
    "all full": (0.3, 0),
    "all coreset": (0.3, 1),
    "all sliding": (1.1, 2),
    "mixed": (0.3, "mixed"),
    "router again": (0.3, -1),
}


@dataclass(frozen=True)
class Draw:
    """One call. `error` and `torch_error` are relative errors against float32."""

    error: float
    torch_error: float
    routes_equal: bool
    graph_equal: bool
    routed_heads: int  # of all heads, samples and layers, those that are not full


@dataclass(frozen=True)
class Outcome:
    """One case. `error` and `torch_error` are medians over its draws."""

    head_dim: int
    routing: str
    batch: int
    draws: tuple[Draw, ...]

    @property
    def error(self) -> float:
        return statistics.median(draw.error for draw in self.draws)

    @property
    def torch_error(self) -> float:
        return statistics.median(draw.torch_error for draw in self.draws)

    @property
    def routes_equal(self) -> bool:
        return all(draw.routes_equal for draw in self.draws)

    @property
    def graph_equal(self) -> bool:
        return all(draw.graph_equal for draw in self.draws)

    @property
    def right(self) -> bool:
        return self.error <= ERROR_FACTOR * self.torch_error and self.routes_equal and self.graph_equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, ONNX files and bundles; kept")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--head-dim", type=int, choices=HEAD_DIMS, action="append", help="[default: both]")
    parser.add_argument("--optimization-level", type=int, help="[default: the flavour's]")
    arguments = parser.parse_args()
    head_dims = arguments.head_dim or HEAD_DIMS
    stages = STAGES if arguments.stage == "all" else (arguments.stage,)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for head_dim in head_dims:
        if "export" in stages:
            export(arguments.work, head_dim)
        if "build" in stages:
            build(arguments.work, head_dim, arguments.optimization_level)
    if "run" not in stages:
        return 0
    outcomes = [outcome for head_dim in head_dims for outcome in run(arguments.work, head_dim)]
    show(outcomes)
    figures = {
        "geometry": GEOMETRY.to_dict(),
        "layers": LAYERS,
        "heads": HEADS,
        "engines": [_engine(arguments.work, head_dim) for head_dim in head_dims],
        "all_right": all(outcome.right for outcome in outcomes),
        "outcomes": [
            {**asdict(outcome), "error": outcome.error, "torch_error": outcome.torch_error, "right": outcome.right}
            for outcome in outcomes
        ],
    }
    print(f"written: {write_result(RESULTS, 'tensorrt8-chain', figures)}")
    return 0 if figures["all_right"] else 1


def export(work: Path, head_dim: int) -> None:
    """Checkpoint, router and an ONNX file of opset 17 in float16."""
    from vorta_trt.export import export_onnx
    from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
    from vorta_trt.model.random_checkpoint import make_router

    sizes: dict[str, Any] = {"layers": LAYERS, "heads": HEADS, "head_dim": head_dim}
    checkpoint = work / f"wan-{head_dim}"
    make_wan_checkpoint(checkpoint, **sizes, ffn_dim=4 * HEADS * head_dim, text_dim=128, seed=head_dim)
    make_router(checkpoint / "router", GEOMETRY, **sizes, seed=head_dim)
    path = export_onnx(load(work, head_dim, "float32"), work / f"wan-{head_dim}.onnx", "fp16", opset=17)
    print(f"exported {path}")


def build(work: Path, head_dim: int, level: int | None) -> None:
    from vorta_trt.engines import build_engine

    onnx, bundle = work / f"wan-{head_dim}.onnx", work / f"wan-{head_dim}.bundle"
    built = build_engine(onnx, bundle, "tensorrt8", batch=(1, 1, 2), optimization_level=level, overwrite=True)
    engine = built.manifest.engine
    print(f"built {bundle}: level {engine.optimization_level}, {engine.build_seconds:.0f} s, flags {engine.flags}")


def load(work: Path, head_dim: int, dtype: str) -> RoutedTransformer:

    from vorta_trt.model import RoutedTransformer

    checkpoint = work / f"wan-{head_dim}"
    return RoutedTransformer.from_pretrained(
        checkpoint, router=checkpoint / "router", geometry=GEOMETRY, dtype=torch_dtype(dtype)
    )


def run(work: Path, head_dim: int) -> Iterator[Outcome]:
    """Every routing at batch 1 and 2, in one engine; shapes alternate with the routes."""
    import torch

    from vorta_trt.runtime import Engine

    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    exact, half = load(work, head_dim, "float32"), load(work, head_dim, "float16").cuda()
    bundle = work / f"wan-{head_dim}.bundle"
    plain: dict[str, Any] = {"cuda_graph": False}
    launched: Any = Engine(bundle, **plain)
    graphed: Any = Engine(bundle)
    with launched, graphed, torch.no_grad():
        for index, (routing, (tau, branch)) in enumerate(ROUTINGS.items()):
            for batch in (1, 2):
                draws = []
                for draw in range(DRAWS):
                    inputs = _inputs(half, batch, tau, branch, seed=100 * draw + 2 * index + batch)
                    on_gpu = {name: value.cuda() for name, value in inputs.items()}
                    expected, expected_routes = half(**on_gpu)
                    found = launched(**on_gpu)
                    for _ in range(3):  # launches, captures, replays
                        replayed = graphed(**on_gpu)
                    reference = _reference(exact, inputs, found["routes"].cpu())
                    draws.append(
                        Draw(
                            difference(found["sample"].cpu(), reference),
                            difference(expected.cpu(), reference),
                            torch.equal(found["routes"], expected_routes),
                            all(torch.equal(found[name], replayed[name]) for name in found),
                            int((found["routes"] != 0).sum()),
                        )
                    )
                yield Outcome(head_dim, routing, batch, tuple(draws))


def _inputs(model: RoutedTransformer, batch: int, tau: float, branch: int | str, seed: int) -> dict[str, Tensor]:
    """Fresh inputs on the CPU; samples have timesteps, and so routes, of their own."""
    import torch

    inputs = {name: value.cpu() for name, value in model.inputs(batch, seed).items()}
    inputs["tau"] = torch.tensor([tau])
    override = inputs["route_override"]  # [L, N]
    if isinstance(branch, int):
        override.fill_(branch)
    else:
        override.copy_(torch.randint(-1, 3, override.shape, generator=torch.Generator().manual_seed(seed)))
    return inputs


def _reference(model: RoutedTransformer, inputs: dict[str, Tensor], routes: Tensor) -> Tensor:
    """float32 on the CPU, sample by sample on the given routes [L, B, N]: an override is the same for all samples."""
    import torch

    samples = []
    for index in range(routes.shape[1]):
        own = {name: value if name == "tau" else value[index : index + 1] for name, value in inputs.items()}
        own |= {name: own[name].float() for name in ("hidden_states", "encoder_hidden_states")}
        own["route_override"] = routes[:, index].contiguous()  # [L, N]
        samples.append(model(**own)[0])
    return torch.cat(samples)


def show(outcomes: list[Outcome]) -> None:
    print(f"{'D':>4} {'routing':<26}{'batch':>6}{'error':>11}{'torch':>11}{'ratio':>7}{'routes':>8}{'graph':>7}")
    for o in outcomes:
        ratio = o.error / o.torch_error
        equal = ["equal" if same else "DIFFER" for same in (o.routes_equal, o.graph_equal)]
        line = f"{o.head_dim:>4} {o.routing:<26}{o.batch:>6}{o.error:>11.2e}{o.torch_error:>11.2e}{ratio:>7.2f}"
        print(f"{line}{equal[0]:>8}{equal[1]:>7}{'' if o.right else '  WRONG'}")


def _engine(work: Path, head_dim: int) -> dict[str, Any]:
    from vorta_trt.engines import Bundle

    manifest = Bundle.open(work / f"wan-{head_dim}.bundle", verify=False, runtime=False).manifest
    plugin_layers = None if manifest.plugin is None else manifest.plugin.layers
    return {"head_dim": head_dim, "plugin_layers": plugin_layers, **manifest.engine.model_dump(mode="json")}


if __name__ == "__main__":
    sys.exit(main())
