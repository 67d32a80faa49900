# SPDX-License-Identifier: Apache-2.0
"""How fast, and how right, is Wan's VAE in 16 bits, compiled, or an engine? Against float32 eager.

    python studies/vae_decoding.py                                             # 77x720x1280, all rows, on a GPU
    python studies/vae_decoding.py --only fp16-compiled,fp16-compiled-measured
    python studies/vae_decoding.py --only fp16-engine --work /big/disk --flavour tensorrt8
    python studies/vae_decoding.py --tiny --output /tmp/tiny                   # tiny, on a CPU, without a compiler

The VAE has its real size and random weights, and decodes latents of random numbers, so errors say what the type does to
sums of such numbers and little about videos. Rows are "fp32", "fp16" or "bf16", then "-compiled" for the decoder of
`--compile-vae`, then "-measured" where cuDNN chooses its algorithms by measuring; or "-engine" for the decoder of a
bundle, which is built in `--work`, on a CPU for exported files in ONNX Runtime. The first call of each pays for the
compiler and for measuring. The result is written anew after every row, so that a limit of time leaves what was done.
"""

from __future__ import annotations

import argparse
import gc
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vorta_trt.benchmarks.harness import write_result

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
CALLS = 3
KINDS = ("", "-measured", "-compiled", "-compiled-measured")
ENGINE = "-engine"
ROWS = tuple(f"{precision}{kind}" for precision in ("fp16", "fp32", "bf16") for kind in (*KINDS, ENGINE))
REFERENCE = "fp32"  # made first, in any case
TINY = {"base_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
TRANSFORMER = {"layers": 1, "heads": 2, "head_dim": 32, "ffn_dim": 64}  # of the bundle, which has to have one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny VAE and video on the CPU, without a compiler")
    parser.add_argument("--size", default="77x720x1280", help="of the video [77x720x1280]")
    parser.add_argument("--only", help="names of rows, separated by commas [all but engines]; fp32 is always made")
    parser.add_argument("--work", type=Path, help="folder for the bundle of an engine's row")
    parser.add_argument("--flavour", default="tensorrt8", help="the TensorRT that builds it [tensorrt8]")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the figures [benchmarks/results]")
    arguments = parser.parse_args()
    names = tuple(name for name in ROWS if not name.endswith(ENGINE))
    if arguments.only is not None:
        names = tuple(arguments.only.split(","))
    if arguments.work is None and any(name.endswith(ENGINE) for name in names):
        parser.error("--only with an engine needs --work, a folder for its bundle")
    if unknown := sorted(set(names) - set(ROWS)):
        parser.error(f"--only {unknown[0]}: must be among {', '.join(ROWS)}")
    figures = measure((REFERENCE, *(name for name in names if name != REFERENCE)), arguments)
    print(f"written: {write_result(arguments.output, 'vae-decoding', figures)}")


def measure(names: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all rows; the result is written after each of them."""
    import torch

    from vorta_trt.model.families import get_family
    from vorta_trt.model.video_size import VideoSize

    device = torch.device("cpu" if arguments.tiny else "cuda")
    size = VideoSize.parse("5x32x32" if arguments.tiny else arguments.size)
    temporal, spatial = get_family("wan").compression(None)
    shape = 1, 16, 1 + (size.frames - 1) // temporal, size.height // spatial, size.width // spatial
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {"size": str(size), "latents": list(shape), "weights": "random", "rows": rows}
    expected = None  # of the reference, on the host
    for name in names:
        row, video = one_row(name, latents, size, arguments)
        expected = video if expected is None else expected
        error = (video - expected).norm() / expected.norm()
        level = (video - expected).square().mean().clamp(min=1e-20)
        row |= {"relative_error": float(error), "psnr_db": round(float(10 * torch.log10(4 / level)), 2)}  # from -1 to 1
        row["finite"] = bool(video.isfinite().all())
        rows.append(row)
        print(row, flush=True)
        write_result(arguments.output, "vae-decoding", figures)
    return figures


def one_row(name: str, latents: Any, size: Any, arguments: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Seconds of every call, the peak of memory, and the video in float32 on the host."""
    import torch

    from vorta_trt.model.precision import torch_dtype

    precision, *how = name.split("-")
    on_gpu, dtype, measured = latents.device.type == "cuda", torch_dtype(precision), "measured" in how
    vae: Any = make_vae(arguments.tiny)
    about: dict[str, Any] = {"row": name}
    if name.endswith(ENGINE):
        vae, about["built_in"] = engine(vae, precision, latents, size, arguments)
    else:
        # diffusers' own `to` warns of modules to keep, even if there are none
        torch.nn.Module.to(vae.eval(), latents.device, dtype)
    if "compiled" in how:
        vae = compiled(vae, latents, size, measured, arguments.tiny)
    torch.backends.cudnn.benchmark = measured
    seconds, given = [], latents.to(dtype)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(CALLS):
        begun = time.perf_counter()
        with torch.no_grad():
            video = vae.decode(given, return_dict=False)[0]
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(round(time.perf_counter() - begun, 3))
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None
    free, total = torch.cuda.mem_get_info() if on_gpu else (0, 0)
    in_use = round((total - free) / 2**30, 2)  # with TensorRT's own
    found = video.float().cpu()
    del vae, video, given
    gc.collect()
    if on_gpu:
        torch.compiler.reset()
        torch.cuda.empty_cache()
    return {**about, "seconds": seconds, "torch_peak_gib": peak, "gpu_in_use_gib": in_use}, found


def make_vae(tiny: bool) -> Any:
    """Wan's VAE, with the same random weights every time."""
    import torch
    from diffusers import AutoencoderKLWan

    torch.manual_seed(1)
    return AutoencoderKLWan(**(TINY if tiny else {}))  # type: ignore[no-untyped-call]


def compiled(vae: Any, latents: Any, size: Any, measured: bool, tiny: bool) -> Any:
    """The decoder of `--compile-vae`; a tiny one is not compiled."""
    import torch

    from vorta_trt.runtime.pipelines.compiled_vae import compiled_decoder

    config = {"in_channels": latents.shape[1], "out_channels": latents.shape[1]}
    where = (size.frames, size.height, size.width), latents.device
    with patch.object(torch, "compile", lambda module, **_: module) if tiny else nullcontext():
        return compiled_decoder(vae, "wan", config, *where, measures=measured)


def engine(vae: Any, precision: str, latents: Any, size: Any, arguments: argparse.Namespace) -> tuple[Any, float]:
    """The decoder of a bundle that is built of `vae`, and the seconds that export and build took."""
    from vorta_trt.model.families.parts import VAE_DECODER
    from vorta_trt.model.random_checkpoint import make_checkpoint
    from vorta_trt.model.random_pipeline import complete_pipeline
    from vorta_trt.runtime.from_checkpoint import Source, build_checkpoint, export_checkpoint
    from vorta_trt.runtime.pipelines.part_engines import PartEngines

    folder = arguments.work / "pipeline"
    if not folder.exists():
        complete_pipeline(make_checkpoint(folder, "wan", **TRANSFORMER))
    vae.save_pretrained(folder / "vae")
    begun, source = time.perf_counter(), Source(folder, size=size, precision=precision)

    def report(stage: str, done: int, total: int) -> None:
        if done == 0:
            print(f"{time.perf_counter() - begun:6.0f} s  {stage}", flush=True)

    options: dict[str, Any] = {"executor": "onnxruntime"} if arguments.tiny else {}
    made = arguments.work / f"{precision}.{'onnx' if arguments.tiny else 'bundle'}"
    if arguments.tiny:
        export_checkpoint(source, made, report, parts=[VAE_DECODER])
    else:
        how: dict[str, Any] = {"tensorrt": arguments.flavour, "batch": (1, 1, 1), "overwrite": True}
        build_checkpoint(source, made, report, parts=[VAE_DECODER], **how)
    seconds = round(time.perf_counter() - begun, 1)
    video, config = (size.frames, size.height, size.width), {"in_channels": latents.shape[1]}
    return PartEngines(made, "wan", config, options).component(VAE_DECODER, vae, video, latents.device), seconds


if __name__ == "__main__":
    main()
