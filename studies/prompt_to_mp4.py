# SPDX-License-Identifier: Apache-2.0
"""How long does a video take from its prompt to the mp4, everything included? Wan 14B from a bundle of engines.

    python studies/prompt_to_mp4.py --work /big/disk --bundle wan-14b-40-fp8.bundle    # of tensorrt8_chain_14b.py
    python studies/prompt_to_mp4.py --work /big/disk --bundle B --compile-vae --vae-precision fp16
    python studies/prompt_to_mp4.py --work /tmp/tiny --tiny                            # the same way, tiny, on a CPU

The transformer is the bundle's. Beside it the study makes a pipeline folder without a transformer's weights: UMT5-XXL
and Wan's VAE at their real sizes with random weights, so the video is noise, and a tokenizer of a few words. The
file is written as `generate` writes it, frames while later ones are decoded; "rest of mp4" is what is left after the
last one. The first video pays for everything that is compiled or allocated once; the last is the figure.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from vorta_trt.benchmarks.harness import write_result

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PROMPT = "a red wall, a blue wall"
TINY = {"layers": 2, "heads": 2, "head_dim": 32, "ffn_dim": 64}
TINY_VIDEO = (9, 64, 96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the pipeline's files and the video")
    parser.add_argument("--bundle", type=Path, help="a bundle or an exported file of the transformer")
    parser.add_argument("--tiny", action="store_true", help="make a tiny model and run its exported file on the CPU")
    parser.add_argument("--steps", type=int, default=6, help="steps without guidance, as distilled models take [6]")
    parser.add_argument("--videos", type=int, default=2, help="one after the other; the last is the figure [2]")
    parser.add_argument("--mix", default="50/50", help="coreset and sliding heads in percent, as of `bench step`")
    parser.add_argument("--compile-vae", action="store_true", help="decode with torch.compile")
    parser.add_argument("--vae-precision", choices=("fp32", "fp16", "bf16"), help="of the VAE [the family's]")
    arguments = parser.parse_args()
    if (arguments.bundle is None) != arguments.tiny:
        parser.error("give --bundle, or --tiny without it")
    arguments.work.mkdir(parents=True, exist_ok=True)
    source = tiny_file(arguments.work) if arguments.tiny else arguments.bundle
    checkpoint = arguments.work / ("tiny" if arguments.tiny else "pipeline")
    if not (checkpoint / "model_index.json").is_file():
        make_pipeline(checkpoint)
    figures = run(source, checkpoint, arguments)
    print(f"written: {write_result(RESULTS if not arguments.tiny else arguments.work, 'prompt-to-mp4', figures)}")


def tiny_file(work: Path) -> Path:
    """A tiny pipeline in `work`/tiny, and its transformer as an exported file."""
    from vorta_trt.export import export_onnx
    from vorta_trt.model import AttentionGeometry, RoutedTransformer
    from vorta_trt.model.random_checkpoint import make_checkpoint
    from vorta_trt.model.random_pipeline import complete_pipeline

    folder = work / "tiny"
    if not (folder / "model_index.json").is_file():
        complete_pipeline(make_checkpoint(folder, "wan", **TINY))
    model = RoutedTransformer.from_pretrained(folder, geometry=AttentionGeometry.for_video(*TINY_VIDEO, "wan"))
    onnx = work / "tiny.onnx"
    return onnx if onnx.exists() else export_onnx(model, onnx, "fp32")


def make_pipeline(folder: Path) -> None:
    """Everything beside Wan 14B's transformer, of which only the config is written."""
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from vorta_trt.model.random_pipeline import TOKENIZER, WORDS, write_tokenizer

    started = time.perf_counter()
    with torch.device("meta"):
        transformer: Any = WanTransformer3DModel()  # type: ignore[no-untyped-call]
    transformer.save_config(folder / "transformer")
    scheduler: Any = UniPCMultistepScheduler(  # type: ignore[no-untyped-call]
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer", WORDS)
    vae: Any = AutoencoderKLWan()  # type: ignore[no-untyped-call]
    vae.save_pretrained(folder / "vae")
    config = UMT5Config(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        encoder: Any = UMT5EncoderModel(config)
    torch.set_default_dtype(torch.float32)
    encoder.save_pretrained(folder / "text_encoder")
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": TOKENIZER,
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "boundary_ratio": None,
        "expand_timesteps": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    print(f"pipeline folder: {time.perf_counter() - started:.0f} s", flush=True)


def write_routes(path: Path, model: Any, mix: str) -> Path:
    """Writes a file as `vorta-trt calibrate` does, with the same routes at every step.

    Args:
        path: Path of the file.
        model: A routed transformer.
        mix: Coreset and sliding heads in percent, as of `bench step`.
    """
    import torch

    from vorta_trt.benchmarks.step.cases import mixed_routes
    from vorta_trt.model.route_calibration import RouteCalibration

    layers, heads = model.num_layers, model.num_heads
    routes = mixed_routes(mix, layers, heads).to(torch.int8).unsqueeze(0)  # [1, L, N]
    errors, everything = torch.zeros(1, layers, heads, 3), ((1000.0, 0.0),)
    geometry = getattr(model, "attention_geometry", None) or model.geometry  # of metadata, or of a model
    RouteCalibration(model.family, geometry, everything, routes, errors, budget=0.0).save(path)
    return path


def run(source: Path, checkpoint: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads once, makes the videos, and says where the time goes."""
    import torch

    from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
    from vorta_trt.runtime.target import read_target
    from vorta_trt.runtime.video_file import BackgroundWriter

    started = time.perf_counter()
    metadata = read_target(source).metadata
    assert metadata is not None
    routes = write_routes(arguments.work / "routes.json", metadata, arguments.mix)
    rows: list[dict[str, Any]] = []
    on_gpu = torch.cuda.is_available() and not arguments.tiny
    with VortaPipeline.from_pretrained(
        source,
        checkpoint,
        compile_vae=arguments.compile_vae,
        vae_precision=arguments.vae_precision,
        route_override=routes,
        executor=None if on_gpu else "onnxruntime",
    ) as pipeline:
        for number in range(arguments.videos):
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter()
            path = arguments.work / f"{number}.mp4"
            with BackgroundWriter(path, pipeline.planner.frames_per_second) as writer:
                video = pipeline(
                    PROMPT,
                    num_inference_steps=arguments.steps,
                    guidance_scale=1.0,
                    seed=number,
                    on_frames=lambda _, frames, writer=writer: writer(frames),
                )
                made = time.perf_counter()
            ended = time.perf_counter()  # the file is closed
            free, total = torch.cuda.mem_get_info() if on_gpu else (0, 0)
            stages = {**video.stage_seconds, "rest of mp4": ended - made}
            rows.append(
                {
                    "video": number,
                    "seconds": round(ended - begun, 3),
                    "stages": {name: round(seconds, 3) for name, seconds in stages.items()},
                    "launches": video.launches,
                    "fallbacks": list(video.fallbacks),
                    "frames": list(video.frames.shape),
                    "mp4_bytes": path.stat().st_size,
                    "torch_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
                    "gpu_in_use_gib": round((total - free) / 2**30, 2),
                }
            )
            print(rows[-1], flush=True)
        residency = str(pipeline.residency)
    return {
        "steps": arguments.steps,
        "guidance_scale": 1.0,
        "routes": arguments.mix,
        "compile_vae": arguments.compile_vae,
        "vae_precision": arguments.vae_precision,
        "weights": "random",
        "from_start_to_last_mp4": round(time.perf_counter() - started, 2),
        "residency": residency,
        "videos": rows,
    }


if __name__ == "__main__":
    main()
