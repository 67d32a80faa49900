# SPDX-License-Identifier: Apache-2.0
"""How fast is the chain checkpoint -> ONNX -> engine -> GPU at real size? Blocks of Wan 14B in TensorRT 8.6.

    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2                   # everything
    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2 --stage export    # or only with diffusers,
    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2 --stage build     # with TensorRT 8.6,
    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2 --stage run       # with both
    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2 --fp8             # fp8 products and fp8 attention
    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2 --compiled        # beside torch.compile, too
    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 3 --model hunyuan-video

The architecture, the video (77x720x1280, 72,000 tokens) and every file are real, the weights are random and made on the
GPU; all 40 layers take 28 GB of weights on the GPU, in the ONNX file and in the plan, and twice that in host memory
while the engine is built. One engine runs dense (tau above 1) and routed (route_override); torch runs the same weights
on the same inputs in 16 bits, first to compare, then to time.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.benchmarks.harness import gib, write_result
from vorta_trt.benchmarks.step.cases import DENSE, MIXES, mixed_routes, select_case
from vorta_trt.benchmarks.step.measure import difference, time_step

if TYPE_CHECKING:
    from torch import Tensor

    from vorta_trt.benchmarks.step.cases import StepCase
    from vorta_trt.benchmarks.step.models import Subject
    from vorta_trt.plugins.operator_schema import BlockOps

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
STAGES = ("export", "build", "run")
OURS, EAGER, COMPILED = "vorta-trt", "eager", "compiled"  # as in `bench step`
ROUTES = (DENSE, "0/100", "100/0", *MIXES)  # coreset / sliding, in percent of the heads that are not full
TIMESTEPS = (999.0, 800.0, 600.0, 400.0, 200.0)
BOUND = 2e-2  # relative difference to torch in float16, whose own error over 2 layers is some 1e-3
PROFILED_RUNS = 3
FP8_BOUND = 0.2  # the same with fp8 products and fp8 attention
ROUTED_TAU = 0.3  # heads may take any route
ROUTING = ("timestep", "tau", "route_override")  # inputs that change from call to call


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the ONNX file and the bundle; kept")
    parser.add_argument("--layers", type=int, default=2, help="1 to 40 [default: 2]")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--model", default="wan-14b", help="a model of `bench step` [default: wan-14b]")
    parser.add_argument("--fp8", action="store_true", help="fp8 products of linear layers, and of routed attention")
    parser.add_argument("--block-ops", choices=("plugin", "native"), help="[default: the flavour's]")
    parser.add_argument("--routes", action="append", choices=ROUTES, help="may be repeated [default: all]")
    parser.add_argument("--compiled", action="store_true", help="time torch.compile beside eager")
    parser.add_argument("--optimization-level", type=int, help="[default: the flavour's]")
    parser.add_argument("--no-torch", action="store_true", help="neither compare with torch nor time it")
    parser.add_argument("--no-profile", action="store_true", help="no times per layer")
    arguments = parser.parse_args()
    stages = STAGES if arguments.stage == "all" else (arguments.stage,)
    case = select_case(arguments.model, arguments.layers)
    name = f"{arguments.model}-{arguments.layers}{'-fp8' if arguments.fp8 else ''}"
    onnx = arguments.work / f"{name}.onnx"
    bundle = onnx.with_suffix(".bundle")
    arguments.work.mkdir(parents=True, exist_ok=True)
    if "export" in stages:
        export(onnx, case, arguments.fp8)
    if "build" in stages:
        build(onnx, bundle, arguments.optimization_level, arguments.block_ops)
    if "run" not in stages:
        return 0
    routes = tuple(arguments.routes or ROUTES)
    peers = () if arguments.no_torch else (EAGER, COMPILED) if arguments.compiled else (EAGER,)
    figures = run(bundle, case, routes, peers, not arguments.no_profile, FP8_BOUND if arguments.fp8 else BOUND)
    level = figures["engine"]["optimization_level"]
    print(f"written: {write_result(RESULTS, f'tensorrt8-chain-{name}-level-{level}', figures)}")
    return 0 if all(row["state"] == "ok" for row in figures["rows"]) else 1


def make(case: StepCase) -> Subject:
    """The model on the GPU; the same weights every time."""
    import torch

    from vorta_trt.benchmarks.step.models import Subject

    return Subject.make(case, "cuda", torch.float16)


def export(path: Path, case: StepCase, fp8: bool, ulysses: int = 1) -> None:
    from vorta_trt.benchmarks.step.models import Variant
    from vorta_trt.export import export_onnx
    from vorta_trt.model.linear_choice import choose_linears

    def report(stage: str, done: int, total: int) -> None:
        if stage != "write" or done == total:
            print(f"export: {stage}", flush=True)

    subject = make(case)
    routed = subject.routed
    choice = choose_linears(routed, routed.facts(), None) if fp8 else None
    precision = "fp8" if fp8 else "same"
    with subject.computed_by(Variant(precision, linear_precision=precision)):
        routed.linears = choice
        export_onnx(routed, path, "fp16", opset=17, external_data=True, ulysses=ulysses, progress=report)
    del subject, routed
    release()


def build(onnx: Path, bundle: Path, level: int | None, block_ops: BlockOps | None) -> None:
    from vorta_trt.engines import build_engine

    options: dict[str, Any] = {"optimization_level": level, "block_ops": block_ops, "overwrite": True}
    built = build_engine(onnx, bundle, "tensorrt8", batch=(1, 1, 1), **options)
    engine = built.manifest.engine
    size = gib(built.plan_path.stat().st_size)
    print(f"built {bundle}: {size} GiB, level {engine.optimization_level}, {engine.build_seconds:.0f} s", flush=True)
    print(f"memory: {engine.memory}; operators: {built.manifest.block_operators}", flush=True)


def run(
    bundle: Path, case: StepCase, routes: Sequence[str], peers: Sequence[str], with_profile: bool, bound: float
) -> dict[str, Any]:
    """Figures of all routes, the engine's and torch's."""
    import torch

    from vorta_trt.engines import Bundle
    from vorta_trt.runtime import Engine

    manifest = Bundle.open(bundle, verify=False, runtime=False).manifest
    metadata = manifest.model_metadata(str(bundle))
    layers, heads = metadata.num_layers, metadata.num_heads
    rows: list[dict[str, Any]] = []
    samples: dict[str, Tensor] = {}
    profiles: dict[str, Any] = {}
    inputs: dict[str, Tensor] = {}
    chosen_routes: list[Tensor] = []  # by the routers in torch
    if peers:
        subject = make(case)
        inputs = {name: value for name, value in subject.inputs.items() if name not in ROUTING}
        for peer in peers:
            with subject.compiled(OURS) if peer == COMPILED else nullcontext():
                for chosen in routes:
                    step = subject.runs(OURS, mixed_routes(chosen, layers, heads).cuda())
                    row, samples[chosen] = _row(f"torch, {peer}", chosen, step, samples.get(chosen), bound)
                    rows.append(row)
        with torch.no_grad():
            chosen_routes = [
                _routes(subject.routed(**_routing(inputs, layers, heads, timestep))[1]) for timestep in TIMESTEPS
            ]
        del subject, step
        release()
    engine: Any = Engine(bundle)
    with engine:
        inputs = inputs or _random_inputs(engine.inputs)
        for chosen in routes:
            given = _given(inputs, chosen, layers, heads)

            def run_engine(timestep: float, given: dict[str, Tensor] = given) -> Tensor:
                sample: Tensor = engine(**given, timestep=_timestep(timestep))["sample"]
                return sample

            row, _ = _row("TensorRT 8.6", chosen, run_engine, samples.get(chosen), bound)
            rows.append(row)
            if with_profile and chosen in (DENSE, MIXES[1]):
                times = engine.profile(repeats=PROFILED_RUNS, **given, timestep=_timestep(TIMESTEPS[0]))
                profiles[chosen] = times.model_dump(mode="json")
                print(f"{chosen}:", *times.lines(), sep="\n  ", flush=True)
        differing = None
        if chosen_routes:
            found = [_routes(engine(**_routing(inputs, layers, heads, timestep))["routes"]) for timestep in TIMESTEPS]
            differing = sum(int((mine != theirs).sum()) for mine, theirs in zip(found, chosen_routes, strict=True))
            print(f"routers: {differing} of {len(TIMESTEPS) * layers * heads} heads take another route", flush=True)
    first = next(row for row in rows if (row["implementation"], row["routes"]) == ("TensorRT 8.6", routes[0]))
    for row in rows:
        row["times_dense"] = round(first["median"] / row["median"], 3) if routes[0] == DENSE else None
    show(rows)
    return {
        "case": str(case),
        "layers": layers,
        "weights": "random, float16",
        "linear_precision": metadata.linear_precision,
        "attention_precision": metadata.attention_precision,
        "engine": manifest.engine.model_dump(mode="json"),
        "plugin_layers": None if manifest.plugin is None else manifest.plugin.layers,
        "block_operators": None if manifest.block_operators is None else manifest.block_operators.model_dump(),
        "plan_gib": gib((bundle / "transformer.plan").stat().st_size),
        "rows": rows,
        "heads_on_another_route_than_in_torch": differing,
        "profiles": profiles,
    }


def _random_inputs(specs: Sequence[Any]) -> dict[str, Tensor]:
    """Conditions and latents for an engine, batch 1, on the GPU; masks let everything pass."""
    import torch

    made = {}
    for spec in specs:
        if spec.name not in ROUTING:
            shape = [1 if isinstance(size, str) or size < 0 else size for size in spec.shape]
            dtype = getattr(torch, spec.dtype)
            made[spec.name] = (
                torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
            )
    return {name: value.cuda() for name, value in made.items()}


def _given(inputs: dict[str, Tensor], routes: str, layers: int, heads: int) -> dict[str, Tensor]:
    """Dense by tau, as users ask for it, routed by route_override."""
    import torch

    if routes == DENSE:
        tau, override = 1.1, torch.full((layers, heads), -1, dtype=torch.int32)
    else:
        tau, override = ROUTED_TAU, mixed_routes(routes, layers, heads)
    return {**inputs, "tau": torch.tensor([tau]).cuda(), "route_override": override.cuda()}


def _routing(inputs: dict[str, Tensor], layers: int, heads: int, timestep: float) -> dict[str, Tensor]:
    """A call whose routes the routers choose."""
    import torch

    given = _given(inputs, DENSE, layers, heads)  # no route is overridden
    return {**given, "tau": torch.tensor([ROUTED_TAU]).cuda(), "timestep": _timestep(timestep)}


def _routes(routes: Tensor) -> Tensor:
    return routes.reshape(-1).cpu()  # [L * N], batch 1


def _timestep(value: float) -> Tensor:
    import torch

    return torch.full((1,), value, device="cuda")  # [B]


def _row(
    implementation: str, routes: str, step: Callable[[float], Tensor], reference: Tensor | None, bound: float
) -> tuple[dict[str, Any], Tensor]:
    """A measured row, and the sample at the first timestep (on the CPU)."""
    import torch

    kept: list[Tensor] = []

    def counted(timestep: float) -> Tensor:
        sample = step(timestep)
        if not kept:
            kept.append(sample.cpu())
        return sample

    with torch.no_grad():
        timing = time_step(counted, TIMESTEPS, torch.device("cuda"))
    found = None if reference is None else difference(kept[0], reference)
    finite = bool(torch.isfinite(kept[0]).all())
    free, total = torch.cuda.mem_get_info()
    row = {
        "implementation": implementation,
        "routes": routes,
        "state": "ok" if finite and (found is None or found <= bound) else "wrong",
        "difference": found,
        "cold": round(timing.cold, 4),
        "median": round(timing.median, 5),
        "minimum": round(timing.minimum, 5),
        "runs": timing.runs,
        "kernel_shares": timing.kernel_shares,
        "memory_in_use_gib": gib(total - free),
    }
    print(f"{implementation}, {routes}: {1e3 * timing.median:.1f} ms, {row['state']}", flush=True)
    return row, kept[0]


def release() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':<14}{'routes':<8}{'ms':>9}{'min':>9}{'x dense':>9}{'difference':>12}{'GiB':>7}  share of kernels")
    for row in rows:
        apart = "" if row["difference"] is None else f"{row['difference']:.1e}"
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in row["kernel_shares"].items())
        times = f"{1e3 * row['median']:>9.1f}{1e3 * row['minimum']:>9.1f}{row['times_dense'] or math.nan:>9.2f}"
        tail = f"{apart:>12}{row['memory_in_use_gib']:>7.1f}  {shares}"
        print(f"{row['implementation']:<14}{row['routes']:<8}{times}{tail}{'' if row['state'] == 'ok' else '  WRONG'}")


if __name__ == "__main__":
    sys.exit(main())
