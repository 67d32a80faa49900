# SPDX-License-Identifier: Apache-2.0
"""A whole tiny pipeline of each family, with a router and an exported fp32 file; see the fixtures of that name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.engines.flavours import get_flavour
from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.families.hunyuan_video.random import make_checkpoint as make_hunyuan_video_checkpoint
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_checkpoint import make_router
from vorta_trt.model.random_pipeline import complete_pipeline
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.runtime.from_checkpoint import Source, build_checkpoint, export_checkpoint

SIZE = FRAMES, HEIGHT, WIDTH = 9, 64, 96  # token grid (3, 4, 6)
CHANNELS = 4
TEXT_DIM = 32


@dataclass(frozen=True)
class Tiny:
    """Nothing writes to its folder, in which the exported file lies beside the checkpoint that it names."""

    folder: Path
    family: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def router(self) -> Path:
        return self.folder / "router"

    @property
    def onnx(self) -> Path:
        return self.folder / "fp32.onnx"

    def model(self, **options: Any) -> RoutedTransformer:
        return RoutedTransformer.from_pretrained(self.checkpoint, self.router, **options)

    def pipeline(self, transformer: Any) -> Any:
        """diffusers' own, with `transformer` in the place of its transformer."""
        import diffusers

        kind = diffusers.WanPipeline if self.family == "wan" else diffusers.HunyuanVideoPipeline
        pipeline = kind.from_pretrained(self.checkpoint, transformer=None)
        pipeline.transformer = transformer
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def latents(pipeline: Any, steps: int = 3, seed: int = 0, **arguments: Any) -> torch.Tensor:
    """What the pipeline samples: [1, C, F, H, W]."""
    arguments = {"prompt": "a red wall", "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, **arguments}
    generator = torch.Generator().manual_seed(seed)
    sampled: torch.Tensor = pipeline(
        num_inference_steps=steps, generator=generator, output_type="latent", **arguments
    ).frames
    return sampled


def _finish(tiny: Tiny, **sizes: int) -> Tiny:
    """Adds the other parts of the pipeline, a router, and the exported file."""
    complete_pipeline(tiny.checkpoint)
    geometry = AttentionGeometry.for_video(*SIZE, tiny.family)
    make_router(tiny.router, geometry, tiny.family, video=SIZE, **sizes)
    export_checkpoint(Source(tiny.checkpoint, tiny.router, precision="fp32"), tiny.onnx, lambda *what: None)
    return tiny


def make_wan(folder: Path) -> Tiny:
    tiny = Tiny(folder, "wan")
    sizes = {"layers": 2, "heads": 3, "head_dim": 32}
    make_wan_checkpoint(tiny.checkpoint, ffn_dim=64, text_dim=TEXT_DIM, channels=CHANNELS, freq_dim=32, **sizes)
    return _finish(tiny, **sizes)


def make_hunyuan_video(folder: Path) -> Tiny:
    tiny = Tiny(folder, "hunyuan_video")
    sizes = {"layers": 1, "single_layers": 1, "heads": 3, "head_dim": 32}
    make_hunyuan_video_checkpoint(
        tiny.checkpoint, text_dim=TEXT_DIM, pooled_dim=24, refiner_layers=1, channels=CHANNELS, **sizes
    )
    return _finish(tiny, **sizes)


def save_calibration(path: Path, geometry: AttentionGeometry, *buckets: tuple[float, float]) -> Path:
    """Calibrated routes of the tiny Wan: sliding in the first bucket of timesteps, coreset in the second."""
    RouteCalibration(
        family="wan",
        geometry=geometry,
        buckets=buckets,
        routes=torch.tensor([2, 1], dtype=torch.int8).view(2, 1, 1).expand(2, 2, 3).contiguous(),  # [K, L, N]
        errors=torch.zeros(2, 2, 3, 3),
        budget=0.1,
    ).save(path)
    return path


def build_here(source: Source, path: Path) -> Path:
    """A bundle of the first flavour that builds one here; skips the test if no engine of it runs here."""
    flavour = next(name for name in ("tensorrt", "tensorrt8", "rtx") if get_flavour(name).can_build())
    if not (ability := get_flavour(flavour).can_run()):
        pytest.skip(f"no engine runs here: {ability.reason}")
    return build_checkpoint(source, path, lambda *what: None, tensorrt=flavour).path
