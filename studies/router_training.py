# SPDX-License-Identifier: Apache-2.0
"""What does training a router cost? Time of a step, peak GPU memory, and the loss curve, at real size.

    python studies/router_training.py wan-1.3b --work /big/disk
    python studies/router_training.py wan-14b --work /big/disk --layers 8 --steps 20

Random weights in the real architecture, random latents and text embeddings; the settings are `vorta-trt train-router`'s
defaults but for the number of steps. Random weights route nothing of use: the curve shows that the loss falls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from vorta_trt.benchmarks.harness import gib, write_result

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
VIDEO = {"wan-1.3b": (77, 480, 832), "wan-14b": (77, 720, 1280)}
WARMUP = 2  # steps that are not timed
TEXT_TOKENS = 120


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--no-gradient-checkpointing", action="store_true")
    arguments = parser.parse_args()
    if arguments.steps <= WARMUP:
        parser.error(f"--steps {arguments.steps}: must be more than the {WARMUP} steps of warm-up")
    figures = measure(arguments)
    print(json.dumps({name: value for name, value in figures.items() if name != "curve"}, indent=2))
    print(f"written: {write_result(arguments.output, f'router-training-{arguments.architecture}', figures)}")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark that makes a checkpoint and data for it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=[*VIDEO])
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoint and data; kept")
    parser.add_argument(
        "--size", type=lambda text: tuple(map(int, text.split("x"))), help="FxHxW [default: the paper's]"
    )
    parser.add_argument("--layers", type=int, help="fewer than the architecture has")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON file")
    return parser


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains, and gathers the figures from the run's log."""
    from vorta_trt.model import AttentionGeometry
    from vorta_trt.model.training import TrainingSettings, train_router
    from vorta_trt.model.training.run_folder import RunFolder

    video = arguments.size or VIDEO[arguments.architecture]
    checkpoint, layers = make_checkpoint(arguments.work, arguments.architecture, arguments.layers)
    data = make_data(arguments.work, video)
    settings = TrainingSettings(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        gradient_checkpointing=not arguments.no_gradient_checkpointing,
        checkpoint_every=arguments.steps,
    )
    with tempfile.TemporaryDirectory(dir=arguments.work) as run:
        report = train_router(
            checkpoint,
            data,
            Path(run) / "run",
            settings,
            progress=lambda what, done, total: print(what, flush=True),
        )
        if report is None:
            raise SystemExit("one process at a time: start it without torchrun")
        curve = RunFolder(report.output).read_log()
    timed = [line["seconds"] for line in curve[WARMUP:]]
    geometry = AttentionGeometry.for_video(*video)
    weights = sum(file.stat().st_size for file in (checkpoint / "transformer").glob("*.safetensors"))
    return {
        "architecture": arguments.architecture,
        "layers": layers,
        "video": video,
        "geometry": geometry.to_dict(),
        "tokens": geometry.tokens,
        "weights": "random, bf16",
        "weights_gib": gib(weights),
        "settings": settings.model_dump(mode="json"),
        "step_seconds_median": round(statistics.median(timed), 3),
        "step_seconds_minimum": round(min(timed), 3),
        "peak_memory_gib": curve[-1].get("peak_memory_gib"),
        "first_turn": report.first,
        "last_turn": report.last,
        "curve": curve,
    }


def make_checkpoint(work: Path, architecture: str, layers: int | None) -> tuple[Path, int]:
    """The checkpoint's folder, made if it is not there, and its number of layers."""
    import torch

    from vorta_trt.model.families.wan.random import WAN_1_3B, WAN_14B
    from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint

    shape: dict[str, Any] = dict({"wan-1.3b": WAN_1_3B, "wan-14b": WAN_14B}[architecture])
    shape["layers"] = layers or shape["layers"]
    folder = work / f"{architecture}-{shape['layers']}-layers"
    if not (folder / "model_index.json").exists():
        make_wan_checkpoint(folder, **shape, dtype=torch.bfloat16)
    return folder, shape["layers"]


def make_data(work: Path, video: tuple[int, int, int], samples: int = 4) -> Path:
    """Random latents of a video size with random text embeddings, in the layout of `train-router prepare`."""
    import torch
    from safetensors.torch import save_file

    from vorta_trt.model.families.wan.random import WAN_1_3B

    folder = work / f"data-{'x'.join(map(str, video))}"
    generator = torch.Generator().manual_seed(0)
    latent = ((video[0] - 1) // 4 + 1, video[1] // 8, video[2] // 8)
    names = [f"random-{index}" for index in range(samples)]
    for kind in ("latents", "prompts"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name in names:
        save_file({"latents": torch.randn(16, *latent, generator=generator)}, folder / f"latents/{name}.safetensors")
        embeds = torch.randn(TEXT_TOKENS, WAN_1_3B["text_dim"], generator=generator).bfloat16()
        save_file({"prompt_embeds": embeds}, folder / f"prompts/{name}.safetensors")
    entries = [{"name": name, "caption": "random"} for name in names]
    content = {"version": 1, "family": "wan", "video_size": list(video), "samples": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


if __name__ == "__main__":
    main()
