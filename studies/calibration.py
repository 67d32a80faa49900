# SPDX-License-Identifier: Apache-2.0
"""What does choosing routes without a router cost? Time of every kind of pass, and peak GPU memory, at real size.

    python studies/calibration.py wan-1.3b --work /big/disk
    python studies/calibration.py wan-14b --work /big/disk --layers 8

Random weights in the real architecture, random latents and text embeddings, the settings of `vorta-trt calibrate` but
for a target in place of the budget. Random weights have no structure that a branch could follow: the errors say nothing
of real ones, the costs do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from router_training import VIDEO, make_checkpoint, make_data, make_parser

from vorta_trt.benchmarks.harness import gib, write_result
from vorta_trt.model.precision import torch_dtype

DENSE_PASSES = 3


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--buckets", type=int, default=5)
    parser.add_argument("--target-share", type=float, default=0.3, help="of dense attention's FLOPs")
    parser.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16")
    arguments = parser.parse_args()
    figures = measure(arguments)
    print(json.dumps(figures, indent=2))
    print(f"written: {write_result(arguments.output, f'calibration-{arguments.architecture}', figures)}")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Calibrates, and times the stages of it."""
    from vorta_trt.model import AttentionGeometry
    from vorta_trt.model.calibration import CalibrationSettings, calibrate_routes
    from vorta_trt.runtime.schedules import schedule_timesteps

    video = arguments.size or VIDEO[arguments.architecture]
    checkpoint, layers = make_checkpoint(arguments.work, arguments.architecture, arguments.layers)
    data = make_data(arguments.work, video, arguments.samples)
    settings = CalibrationSettings(
        target_share=arguments.target_share,
        buckets=arguments.buckets,
        samples=arguments.samples,
        dtype=arguments.dtype,
    )
    events: list[tuple[str, float]] = []

    def note(what: str, done: int, total: int) -> None:
        events.append((what, time.perf_counter()))
        print(what, done, total, flush=True)

    report = calibrate_routes(
        checkpoint,
        arguments.work / "calibration.json",
        lambda steps: schedule_timesteps(checkpoint, steps).instance,
        settings,
        data=data,
        video_size=video,
        progress=note,
    )
    events.append(("end", time.perf_counter()))
    geometry = AttentionGeometry.for_video(*video)
    weights = sum(file.stat().st_size for file in (checkpoint / "transformer").glob("*.safetensors"))
    return {
        "architecture": arguments.architecture,
        "layers": layers,
        "video": video,
        "geometry": geometry.to_dict(),
        "tokens": geometry.tokens,
        "weights": f"random, {arguments.dtype}",
        "weights_gib": gib(weights),
        "settings": report.calibration.settings,
        "seconds": round(report.seconds, 3),
        "loading_seconds": _seconds(events, "loading the model"),
        "dense_pass_seconds": dense_pass_seconds(checkpoint, geometry, arguments.dtype),
        "measured_pass_seconds": _seconds(events, "measuring the branches"),
        "checked_pass_seconds": _seconds(events, "checking the routes"),  # a dense pass, one branch more, a routed pass
        "peak_memory_gib": report.peak_memory_gib,
        "attention_flops_saved": report.table.saved,
        "buckets": report.buckets(),
    }


def _seconds(events: list[tuple[str, float]], what: str) -> float:
    """Median of how long a stage took, until the next one began."""
    took = [after - before for (name, before), (_, after) in zip(events, events[1:], strict=False) if name == what]
    return round(statistics.median(took), 4)


def dense_pass_seconds(checkpoint: Path, geometry: Any, dtype: str) -> float:
    """A pass of the same model without any measurement."""
    import torch

    from vorta_trt.model import RoutedTransformer
    from vorta_trt.model.calibration.measure import routed

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = RoutedTransformer.from_pretrained(checkpoint, geometry=geometry, dtype=torch_dtype(dtype)).to(device)
    inputs = {name: tensor for name, tensor in model.inputs().items() if name not in ("tau", "route_override")}
    took = []
    for _ in range(1 + DENSE_PASSES):
        began = time.perf_counter()
        routed(model, inputs).cpu()
        took.append(time.perf_counter() - began)
    return round(statistics.median(took[1:]), 4)


if __name__ == "__main__":
    main()
