# SPDX-License-Identifier: Apache-2.0
"""How fast is the chain checkpoint -> ONNX -> engine -> GPU at real size? Blocks of Wan 14B in TensorRT 8.6.

    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2                   # everything
    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2 --stage export    # or only with diffusers,
    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2 --stage build     # with TensorRT 8.6,
    python studies/tensorrt8_chain_14b.py --work /big/disk --layers 2 --stage run       # with both

The architecture, the video (77x720x1280, 72,000 tokens) and every file are real, the weights are random and made on the
GPU; all 40 layers take 28 GB of weights on the GPU, in the ONNX file and in the plan, and twice that in host memory
while the engine is built. One engine runs dense (tau above 1) and routed (route_override); torch runs the same weights
on the same inputs, first to compare, then to time.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.benchmarks.harness import gib, write_result
from vorta_trt.benchmarks.step.cases import DENSE, MIXES, mixed_routes, select_case
from vorta_trt.benchmarks.step.measure import difference, time_step

if TYPE_CHECKING:
    from torch import Tensor

    from vorta_trt.benchmarks.step.models import Subject

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
STAGES = ("export", "build", "run")
ROUTES = (DENSE, "0/100", "100/0", *MIXES)  # coreset / sliding, in percent of the heads that are not full
TIMESTEPS = (999.0, 800.0, 600.0, 400.0, 200.0)
BOUND = 2e-2  # relative difference to torch in float16, whose own error over 2 layers is some 1e-3
PROFILED_RUNS = 3
INPUTS = ("hidden_states", "encoder_hidden_states")  # beside timestep and routing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the ONNX file and the bundle; kept")
    parser.add_argument("--layers", type=int, default=2, help="1 to 40 [default: 2]")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--optimization-level", type=int, help="[default: the flavour's]")
    parser.add_argument("--no-torch", action="store_true", help="neither compare with torch nor time it")
    parser.add_argument("--no-profile", action="store_true", help="no times per layer")
    arguments = parser.parse_args()
    stages = STAGES if arguments.stage == "all" else (arguments.stage,)
    onnx = arguments.work / f"wan-14b-{arguments.layers}.onnx"
    bundle = onnx.with_suffix(".bundle")
    arguments.work.mkdir(parents=True, exist_ok=True)
    if "export" in stages:
        export(onnx, arguments.layers)
    if "build" in stages:
        build(onnx, bundle, arguments.optimization_level)
    if "run" not in stages:
        return 0
    figures = run(bundle, arguments.layers, not arguments.no_torch, not arguments.no_profile)
    level = figures["engine"]["optimization_level"]
    print(f"written: {write_result(RESULTS, f'tensorrt8-chain-14b-{arguments.layers}-level-{level}', figures)}")
    return 0 if all(row["state"] == "ok" for row in figures["rows"]) else 1


def make(layers: int) -> Subject:
    """The model on the GPU; the same weights every time."""
    import torch

    from vorta_trt.benchmarks.step.models import Subject

    return Subject.make(select_case("wan-14b", layers), "cuda", torch.float16)


def export(path: Path, layers: int) -> None:
    from vorta_trt.export import export_onnx

    def report(stage: str, done: int, total: int) -> None:
        if stage != "write" or done == total:
            print(f"export: {stage}", flush=True)

    subject = make(layers)
    export_onnx(subject.routed, path, "fp16", opset=17, external_data=True, progress=report)
    del subject
    release()


def build(onnx: Path, bundle: Path, level: int | None) -> None:
    from vorta_trt.engines import build_engine

    built = build_engine(onnx, bundle, "tensorrt8", batch=(1, 1, 1), optimization_level=level, overwrite=True)
    engine = built.manifest.engine
    size = gib(built.plan_path.stat().st_size)
    print(f"built {bundle}: {size} GiB, level {engine.optimization_level}, {engine.build_seconds:.0f} s", flush=True)


def run(bundle: Path, layers: int, with_torch: bool, with_profile: bool) -> dict[str, Any]:
    """Figures of all routes, the engine's and torch's."""
    from vorta_trt.engines import Bundle
    from vorta_trt.runtime import Engine

    heads = 40
    rows: list[dict[str, Any]] = []
    samples: dict[str, Tensor] = {}
    profiles: dict[str, Any] = {}
    inputs: dict[str, Tensor] = {}
    if with_torch:
        subject = make(layers)
        inputs = {name: subject.inputs[name] for name in INPUTS}
        for routes in ROUTES:
            chosen = mixed_routes(routes, layers, heads).cuda()  # [L, N]
            row, samples[routes] = _row("torch, eager", routes, subject.runs("vorta-trt", chosen), None)
            rows.append(row)
        del subject
        release()
    engine: Any = Engine(bundle)
    with engine:
        inputs = inputs or _random_inputs(engine.inputs)
        for routes in ROUTES:
            given = _given(inputs, routes, layers, heads)

            def step(timestep: float, given: dict[str, Tensor] = given) -> Tensor:
                sample: Tensor = engine(**given, timestep=_timestep(timestep))["sample"]
                return sample

            row, _ = _row("TensorRT 8.6", routes, step, samples.get(routes))
            rows.append(row)
            if with_profile and routes in (DENSE, MIXES[1]):
                times = engine.profile(repeats=PROFILED_RUNS, **given, timestep=_timestep(TIMESTEPS[0]))
                profiles[routes] = times.model_dump(mode="json")
                print(f"{routes}:", *times.lines(), sep="\n  ", flush=True)
    dense = next(row for row in rows if (row["implementation"], row["routes"]) == ("TensorRT 8.6", DENSE))
    for row in rows:
        row["times_dense"] = round(dense["median"] / row["median"], 3)
    show(rows)
    manifest = Bundle.open(bundle, verify=False, runtime=False).manifest
    return {
        "case": str(select_case("wan-14b", layers)),
        "layers": layers,
        "weights": "random, float16",
        "engine": manifest.engine.model_dump(mode="json"),
        "plugin_layers": None if manifest.plugin is None else manifest.plugin.layers,
        "plan_gib": gib((bundle / "transformer.plan").stat().st_size),
        "rows": rows,
        "profiles": profiles,
    }


def _random_inputs(specs: Sequence[Any]) -> dict[str, Tensor]:
    """Latents and prompt for an engine, batch 1, on the GPU."""
    import torch

    shapes = {spec.name: [1 if isinstance(size, str) else size for size in spec.shape] for spec in specs}
    return {name: torch.randn(shapes[name], dtype=torch.float16, device="cuda") for name in INPUTS}


def _given(inputs: dict[str, Tensor], routes: str, layers: int, heads: int) -> dict[str, Tensor]:
    """Dense by tau, as users ask for it, routed by route_override."""
    import torch

    if routes == DENSE:
        tau, override = 1.1, torch.full((layers, heads), -1, dtype=torch.int32)
    else:
        tau, override = 0.3, mixed_routes(routes, layers, heads)
    return {**inputs, "tau": torch.tensor([tau]).cuda(), "route_override": override.cuda()}


def _timestep(value: float) -> Tensor:
    import torch

    return torch.full((1,), value, device="cuda")  # [B]


def _row(
    implementation: str, routes: str, step: Callable[[float], Tensor], reference: Tensor | None
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
        "state": "ok" if finite and (found is None or found <= BOUND) else "wrong",
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
        times = f"{1e3 * row['median']:>9.1f}{1e3 * row['minimum']:>9.1f}{row['times_dense']:>9.2f}"
        tail = f"{apart:>12}{row['memory_in_use_gib']:>7.1f}  {shares}"
        print(f"{row['implementation']:<14}{row['routes']:<8}{times}{tail}{'' if row['state'] == 'ok' else '  WRONG'}")


if __name__ == "__main__":
    sys.exit(main())
