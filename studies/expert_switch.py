# SPDX-License-Identifier: Apache-2.0
"""What does the switch between two experts cost, in seconds and in memory? Wan 2.2 A14B, both loaded and in turn.

    python studies/expert_switch.py --work /big/disk --layers 8               # TensorRT on this GPU
    python studies/expert_switch.py --work /big/disk --layers 8 --stage make  # or checkpoint and exported files only,
    python studies/expert_switch.py --work /big/disk --layers 8 --stage build
    python studies/expert_switch.py --work /big/disk --layers 8 --stage run
    python studies/expert_switch.py --work /tmp/tiny --tiny                   # the same way, exported files on the CPU

The experts have A14B's width and as many of its 40 layers as are asked for, at 81x720x1280; text encoder and VAE are
tiny, the weights are random. For both ways, one video warms up and the next one is measured: the seconds from step to
step, the seconds that the switch adds to a step of the second expert, and the peak of the memory in use, which a thread
samples. The videos of both ways must be the same, bit for bit.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vorta_trt.benchmarks.harness import gib, write_result
from vorta_trt.model.constants import COMPONENTS

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
STAGES = ("make", "build", "run")
WIDTH: dict[str, Any] = {"heads": 40, "head_dim": 128, "ffn_dim": 13824, "text_dim": 4096, "dtype": torch.bfloat16}
TINY: dict[str, Any] = {"heads": 2, "head_dim": 32, "ffn_dim": 64}
VIDEO, TINY_VIDEO = (81, 720, 1280), (9, 64, 96)  # frames, height, width
BOUNDARY = 0.875
LOOK_SECONDS = 0.01  # between two samples of the memory in use
GUIDANCE = {"guidance_scale": 4.0, "guidance_scale_2": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoint, exported files and bundle")
    parser.add_argument("--layers", type=int, default=8, help="of each expert [8]")
    parser.add_argument("--steps", type=int, default=6, help="of a video [6]")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--tiny", action="store_true", help="tiny experts, exported files on the CPU")
    arguments = parser.parse_args()
    stages = STAGES if arguments.stage == "all" else (arguments.stage,)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, onnx, bundle = work / "experts", work / "experts.onnx", work / "experts.bundle"
    if "make" in stages:
        make(checkpoint, onnx, arguments.layers, arguments.tiny)
    if "build" in stages and not arguments.tiny:
        build(onnx, bundle)
    if "run" in stages:
        source, executor = (onnx, "onnxruntime") if arguments.tiny else (bundle, None)
        figures = run(source, checkpoint, executor, arguments.steps)
        figures = {"layers": arguments.layers, "weights": "random", **figures}
        print(f"written: {write_result(work if arguments.tiny else RESULTS, 'expert-switch', figures)}")


def make(checkpoint: Path, onnx: Path, layers: int, tiny: bool) -> None:
    """The checkpoint of both experts, a router for each, and the exported files."""
    from vorta_trt.model import AttentionGeometry
    from vorta_trt.model.random_checkpoint import make_checkpoint, make_router
    from vorta_trt.model.random_pipeline import complete_pipeline
    from vorta_trt.runtime.from_checkpoint import Source, export_checkpoint

    width, video = (TINY, TINY_VIDEO) if tiny else (WIDTH, VIDEO)
    sizes = {name: width[name] for name in ("heads", "head_dim")}
    geometry = AttentionGeometry.for_video(*video, "wan")
    complete_pipeline(make_checkpoint(checkpoint, "wan", layers=layers, boundary_ratio=BOUNDARY, **width))
    sources = []
    for seed, component in enumerate(COMPONENTS):
        router = make_router(
            checkpoint.with_name(f"router-{component}"), geometry, "wan", layers=layers, video=video, seed=seed, **sizes
        )
        # TensorRT 8.6 reads opset 17.
        form: dict[str, Any] = {"precision": "fp32"} if tiny else {"precision": "fp16", "opset": 17}
        sources.append(Source(checkpoint, router, component=component, **form))
    export_checkpoint(sources, onnx, lambda *what: None)
    print(f"made {onnx}", flush=True)


def build(onnx: Path, bundle: Path) -> None:
    """One bundle with an engine of each expert."""
    from vorta_trt.engines import build_engine

    built = build_engine(onnx, bundle, "tensorrt8", batch=(1, 1, 1), overwrite=True)
    print(f"built {bundle}: {built.manifest.engine}", flush=True)


def run(source: Path, checkpoint: Path, executor: str | None, steps: int) -> dict[str, Any]:
    """A row for both experts loaded, and one for one at a time."""
    from vorta_trt.runtime import SamplingParams, VortaPipeline

    rows, videos = {}, []
    for name, in_turn in (("both loaded", False), ("in turn", True)):
        with VortaPipeline.from_pretrained(
            source, checkpoint, residency="sequential" if executor is None else "auto", executor=executor, strict=True
        ) as pipeline:
            pipeline.transformers.in_turn = in_turn
            begun: list[float] = []
            params = SamplingParams(num_inference_steps=steps, seed=0, **GUIDANCE)
            first = len(pipeline.plan(params).experts[0].steps.timesteps)
            pipeline("a wall", params)
            with memory_in_use() as looks:
                video = pipeline("a wall", params, on_step=partial(note, begun))
        each = [later - earlier for earlier, later in zip(begun, begun[1:], strict=False)]
        second = median(each[first:])
        rows[name] = {
            "steps_of_the_first": first,
            "seconds_from_step_to_step": [round(seconds, 4) for seconds in each],
            "seconds_at_the_switch": round(each[first - 1] - second, 4),
            "stages": {stage: round(seconds, 3) for stage, seconds in video.stage_seconds.items()},
            "most_in_use_gib": gib(max(looks, default=0)),
        }
        videos.append(video.frames)
        print(name, rows[name], flush=True)
    assert (videos[0] == videos[1]).all(), "both ways must make the same video"
    return {"source": source.name, "steps": steps, **GUIDANCE, "rows": rows}


def note(begun: list[float], *step: Any) -> None:
    """Notes when a step begins, after the GPU has computed all that came before it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun.append(time.perf_counter())


@contextmanager
def memory_in_use() -> Iterator[list[int]]:
    """Samples of the bytes of GPU memory in use by all processes, taken by a thread; empty without a GPU."""
    looks: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            free, total = torch.cuda.mem_get_info()
            looks.append(total - free)

    thread = threading.Thread(target=look)
    if torch.cuda.is_available():
        thread.start()
    try:
        yield looks
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()


if __name__ == "__main__":
    main()
