# SPDX-License-Identifier: Apache-2.0
"""How long does a video take from its prompt to the mp4 on several GPUs, everything included? Wan 14B in torch.

    python studies/prompt_to_mp4_gpus.py --work /big/disk --gpus 4                      # fp8, 4 distilled steps
    python studies/prompt_to_mp4_gpus.py --work /big/disk --gpus 2 --precision bf16 --guidance-scale 5 --steps 10
    python studies/prompt_to_mp4_gpus.py --work /tmp/tiny --gpus 2 --tiny               # the same way, tiny, on a CPU

A process a GPU; each makes the 14 billion weights on its own GPU, at random, so the video is noise. Beside them rank 0
makes a pipeline folder with UMT5-XXL and Wan's VAE at their real sizes (`prompt_to_mp4.py`). The first video pays for
everything that is compiled or allocated once; the last is the figure.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_to_mp4 import PROMPT, RESULTS, TINY, TINY_VIDEO, make_pipeline, write_routes

from vorta_trt.benchmarks.harness import write_result
from vorta_trt.runtime.parallel.launch import launch
from vorta_trt.runtime.parallel.layout import choose_layout
from vorta_trt.runtime.parallel.ranks import Ranks
from vorta_trt.runtime.parallel.world import CPU, CUDA, World


@dataclass(frozen=True)
class Options:
    """The options that every rank gets.

    Attributes:
        work: Folder for the pipeline's files and the videos.
        tiny: Whether a tiny model runs on the CPU.
        precision: Precision of linear layers and attention, "fp8" or "bf16".
        steps: Number of sampling steps.
        guidance_scale: Guidance scale; 1 computes one pass a step.
        videos: Number of videos, made one after the other.
        mix: Percentages of coreset and sliding heads.
        strict: Whether ranks compare their latents.
        vae_tiling: Whether every rank decodes the whole video, in tiles.
        compile_vae: Whether every rank decodes the whole video with torch.compile.
        vae_precision: Precision of the VAE; None for the family's.
    """

    work: Path
    tiny: bool
    precision: str
    steps: int
    guidance_scale: float
    videos: int
    mix: str
    strict: bool
    vae_tiling: bool
    compile_vae: bool
    vae_precision: str | None

    @property
    def checkpoint(self) -> Path:
        """The pipeline folder."""
        return self.work / ("tiny" if self.tiny else "pipeline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the pipeline's files and the videos")
    parser.add_argument("--results", type=Path, help="folder for the figures [benchmarks/results]")
    parser.add_argument("--gpus", type=int, default=4, help="how many make a video together [4]")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--precision", choices=("fp8", "bf16"), default="fp8", help="of linear layers and attention")
    parser.add_argument("--steps", type=int, default=4, help="how many are sampled [4]")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1 for one pass a step [1]")
    parser.add_argument("--videos", type=int, default=3, help="one after the other; the last is the figure [3]")
    parser.add_argument("--mix", default="50/50", help="coreset and sliding heads in percent, as of `bench step`")
    parser.add_argument("--strict", action="store_true", help="ranks compare their latents before every step")
    parser.add_argument("--whole-vae", action="store_true", help="every rank decodes all of the video, in tiles")
    parser.add_argument("--compile-vae", action="store_true", help="every rank decodes all of it with torch.compile")
    parser.add_argument("--vae-precision", choices=("fp32", "fp16", "bf16"), help="of the VAE [the family's]")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    options = Options(
        arguments.work,
        arguments.tiny,
        arguments.precision,
        arguments.steps,
        arguments.guidance_scale,
        arguments.videos,
        arguments.mix,
        arguments.strict,
        arguments.whole_vae,
        arguments.compile_vae,
        arguments.vae_precision,
    )
    if options.tiny:
        make_tiny(options.checkpoint)
    started = time.perf_counter()
    kind = CPU if options.tiny else CUDA
    ranks = launch(make_videos, options, gpus=arguments.gpus, kind=kind, on_message=say)
    figures = {
        "gpus": arguments.gpus,
        "model": "tiny" if options.tiny else "Wan 14B, 77x720x1280",
        "precision": "fp32" if options.tiny else options.precision,
        "steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "routes": options.mix,
        "vae": {"whole": options.vae_tiling, "compile": options.compile_vae, "precision": options.vae_precision},
        "weights": "random",
        "from_start_to_last_mp4": round(time.perf_counter() - started, 2),
        **ranks[0],
        "peak_gib_of_ranks": [rank["videos"][-1]["torch_peak_gib"] for rank in ranks],
    }
    folder = arguments.results or (options.work if options.tiny else RESULTS)
    print("\n".join(table(figures["videos"][-1])))
    print(f"written: {write_result(folder, 'prompt-to-mp4-gpus', figures)}")


def say(rank: int, text: str) -> None:
    """Shows a message of a rank."""
    print(f"rank {rank}: {text}", flush=True)


def make_tiny(folder: Path) -> None:
    """A tiny pipeline with all of its weights."""
    from vorta_trt.model.random_checkpoint import make_checkpoint
    from vorta_trt.model.random_pipeline import complete_pipeline

    if not (folder / "model_index.json").is_file():
        complete_pipeline(make_checkpoint(folder, "wan", **TINY))


def make_model(world: World, options: Options) -> Any:
    """The routed transformer, on the rank's device; the same on every rank."""
    from vorta_trt.model import AttentionGeometry, RoutedTransformer

    if options.tiny:
        geometry = AttentionGeometry.for_video(*TINY_VIDEO, "wan")
        return RoutedTransformer.from_pretrained(options.checkpoint, geometry=geometry)
    import torch

    from vorta_trt.benchmarks.step.cases import select_case
    from vorta_trt.benchmarks.step.models import Subject, fp8_layers_of, replaced
    from vorta_trt.model.transformer import PLUGIN_OPS

    model = Subject.make(select_case("wan-14b"), str(world.device), torch.bfloat16).routed
    model.block_ops = PLUGIN_OPS
    if options.precision == "fp8":
        replaced(model, fp8_layers_of(model))
        model.attention_precision = "fp8"
    torch.cuda.empty_cache()
    return model


def make_videos(world: World, options: Options) -> dict[str, Any]:
    """Work of every rank: loads once and makes the videos; rank 0 also writes them and says where the time goes."""
    import torch

    from vorta_trt.runtime.pipelines.pipeline import VortaPipeline

    begun = time.perf_counter()

    def tell(what: str) -> None:
        world.send(f"{time.perf_counter() - begun:6.1f} s: {what}")

    if world.is_first and not options.tiny and not (options.checkpoint / "model_index.json").is_file():
        make_pipeline(options.checkpoint)
        torch.cuda.empty_cache()
        tell("pipeline folder is made")
    model = make_model(world, options)
    tell("model is made")
    routes = write_routes(options.work / f"routes-{world.rank}.json", model, options.mix)
    layout = choose_layout(world.size, guided=options.guidance_scale > 1, heads=model.num_heads)
    world.gather(None)  # the folder is there
    pipeline = VortaPipeline.from_pretrained(
        model,
        options.checkpoint,
        route_override=routes,
        ranks=Ranks(world, layout, check_every=int(options.strict)),
        vae_tiling=options.vae_tiling or None,
        compile_vae=options.compile_vae,
        vae_precision=options.vae_precision,
    )
    tell("pipeline is loaded")
    rows = []
    with pipeline:
        for number in range(options.videos):
            rows.append(one_video(world, pipeline, options, number))
            tell(f"video {number}: {rows[-1]}")
    return {"layout": str(layout), "videos": rows}


def one_video(world: World, pipeline: Any, options: Options, number: int) -> dict[str, Any]:
    """Makes a video, and on rank 0 writes it; all ranks begin together."""
    import torch

    from vorta_trt.runtime.video_file import BackgroundWriter

    on_gpu = world.device.type == CUDA
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    steps: list[float] = []
    world.gather(None)
    begun = time.perf_counter()
    path = options.work / f"{number}.mp4"
    with ExitStack() as files:
        writer = None
        if world.is_first:
            writer = files.enter_context(BackgroundWriter(path, pipeline.planner.frames_per_second))
        video = pipeline(
            PROMPT,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
            seed=number,
            on_step=lambda step, planned: steps.append(time.perf_counter() - begun),
            on_frames=None if writer is None else lambda _, frames: writer(frames),
        )
        made = time.perf_counter()
    ended = time.perf_counter()  # the file is closed
    size = path.stat().st_size if world.is_first else 0
    rest = {"rest of mp4": ended - made} if world.is_first else {}  # frames are written while later ones are decoded
    stages = {**video.stage_seconds, **rest}
    return {
        "video": number,
        "seconds": round(ended - begun, 3),
        "plays": round(len(video.frames) / video.frames_per_second, 3),
        "stages": {name: round(seconds, 3) for name, seconds in stages.items()},
        "steps_begin_at": [round(seconds, 3) for seconds in steps],  # on the host, which runs ahead of the GPU
        "launches": video.launches,
        "fallbacks": list(video.fallbacks),
        "frames": list(video.frames.shape),
        "mp4_bytes": size,
        "torch_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
    }


def table(video: dict[str, Any]) -> list[str]:
    """Where the time of a video goes, as text."""
    rows = [f"{name:12} {seconds:8.3f} s" for name, seconds in video["stages"].items()]
    return [*rows, f"{'all':12} {video['seconds']:8.3f} s, and it plays for {video['plays']:.2f} s"]


if __name__ == "__main__":
    main()
