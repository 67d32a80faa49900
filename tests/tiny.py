# SPDX-License-Identifier: Apache-2.0
"""A whole tiny pipeline of each family with a router, and the files exported from it; see the fixtures `tiny_...`.

Tests export no other models, except tests of the export itself, which change them; `kept.py` keeps the files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.engines import build_engine
from vorta_trt.engines.flavours import get_flavour
from vorta_trt.export import export_onnx
from vorta_trt.export.names import OPSET
from vorta_trt.model import AttentionGeometry, CheckpointReader, RoutedTransformer
from vorta_trt.model.constants import COMPONENTS
from vorta_trt.model.random_checkpoint import make_checkpoint, make_router
from vorta_trt.model.random_pipeline import complete_pipeline
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.runtime.from_checkpoint import Source, build_checkpoint, export_checkpoint

from .kept import Kept

SIZE = FRAMES, HEIGHT, WIDTH = 9, 64, 96  # token grid (3, 4, 6)
SMALL = 5, 32, 64  # of a second engine
CHANNELS = 4
TEXT_DIM = 32
ROUTER_SEED = 12  # with this one all three branches occur at every timestep; see test_tiny.py
ROUTER_SIZES = ("layers", "single_layers", "heads", "head_dim")
COMMON = {"layers": 2, "heads": 3, "head_dim": 32, "text_dim": TEXT_DIM, "channels": CHANNELS}
WAN = {**COMMON, "ffn_dim": 64, "freq_dim": 32}
HUNYUAN_VIDEO = {**COMMON, "single_layers": 1, "pooled_dim": 24, "refiner_layers": 1}
IMAGE = {**HUNYUAN_VIDEO, "layers": 1}
HUNYUAN_VIDEO_15 = {**COMMON, "glyph_dim": 16, "image_dim": 8, "refiner_layers": 1, "target_size": 80}
# Family, and behind a space which of its models.
MODELS: dict[str, dict[str, Any]] = {
    "wan": WAN,
    "wan ti2v": {**WAN, "channels": 48},
    "wan experts": {**WAN, "boundary_ratio": 0.875},
    "hunyuan_video": HUNYUAN_VIDEO,
    "wan channels": {**WAN, "image": "channels"},  # as one expert of Wan 2.2 I2V A14B
    "wan embedding": {**WAN, "image": "embedding"},  # as Wan 2.1 I2V 14B
    "wan experts channels": {**WAN, "boundary_ratio": 0.9, "image": "channels"},  # Wan 2.2 I2V A14B, both
    "wan first and last": {**WAN, "image": "first and last"},  # as Wan 2.1 FLF2V 14B
    "hunyuan_video latent_concat": {**IMAGE, "image": "latent_concat"},
    "hunyuan_video token_replace": {**IMAGE, "image": "token_replace"},
    "hunyuan_video_15": HUNYUAN_VIDEO_15,
    "hunyuan_video_15 i2v": {**HUNYUAN_VIDEO_15, "task": "i2v", "meanflow": True},
}
SIZES = {"wan ti2v": (9, 96, 160)}  # token grid (3, 3, 5); the VAE of the others takes SIZE


@dataclass(frozen=True)
class Tiny:
    """A tiny pipeline. No test writes to its folder, where exported files lie beside the checkpoint that they name."""

    kept: Kept
    name: str  # of MODELS

    @property
    def family(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def folder(self) -> Path:
        return self.kept.folder("plugins", "model", "export") / self.name

    @property
    def geometry(self) -> AttentionGeometry:
        with CheckpointReader(self.checkpoint) as reader:
            return AttentionGeometry.for_video(*self.size, self.family, config=reader.config)

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of its videos; the latter two are in pixels."""
        return SIZES.get(self.name, SIZE)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def router(self) -> Path:
        return self.folder / "router"

    @property
    def onnx(self) -> Path:
        return self.export("fp32")

    def export(self, precision: str, attention_precision: str = "same", opset: int = OPSET) -> Path:
        def make(path: Path) -> None:
            model = self.model(attention_precision=attention_precision, materialize=False)
            export_onnx(model, path, precision, opset=opset)

        name = precision + ("" if attention_precision == "same" else f" attention {attention_precision}")
        return self.kept.make(self.folder / f"{name}{'' if opset == OPSET else f' opset {opset}'}.onnx", make)

    @property
    def bundle(self) -> Path:
        """A bundle of TensorRT-RTX in fp16, with its ONNX file; batch 1 to 2."""
        folder = self.kept.folder("plugins", "model", "export", "engines") / self.name
        return self.kept.make(
            folder / "with onnx.bundle", lambda path: build_engine(self.export("fp16"), path, include_onnx=True)
        )

    @property
    def several(self) -> Path:
        """A bundle like `bundle`, but with two video sizes: SIZE and SMALL."""
        folder = self.kept.folder("plugins", "model", "export", "engines") / self.name
        small = self.folder / "fp16 small.onnx"

        def export(path: Path) -> None:
            with CheckpointReader(self.checkpoint) as reader:
                geometry = AttentionGeometry.for_video(*SMALL, self.family, config=reader.config)
            export_onnx(self.model(geometry=geometry, materialize=False), path, "fp16")

        files = [self.export("fp16"), self.kept.make(small, export)]
        return self.kept.make(
            folder / "several sizes.bundle", lambda path: build_engine(files, path, include_onnx=True)
        )

    def model(self, **options: Any) -> RoutedTransformer:
        return RoutedTransformer.from_pretrained(self.checkpoint, self.router, **options)

    def pipeline(self, transformer: Any) -> Any:
        """diffusers' own pipeline, with `transformer` in place of its transformer."""
        import diffusers

        kind = json.loads((self.checkpoint / "model_index.json").read_text())["_class_name"]
        without = dict.fromkeys(name for name in COMPONENTS if (self.checkpoint / name).is_dir())
        pipeline = getattr(diffusers, kind).from_pretrained(self.checkpoint, **without)
        pipeline.transformer = transformer
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


class TinyExperts(Tiny):
    """A tiny pipeline with two experts, each with its own router."""

    @property
    def routers(self) -> dict[str, Path]:
        return dict(zip(COMPONENTS, (self.router, self.folder / "router low"), strict=True))

    def sources(self, precision: str = "fp32") -> list[Source]:
        return [
            Source(self.checkpoint, self.routers[component], precision=precision, component=component)
            for component in COMPONENTS
        ]

    def export(self, precision: str, attention_precision: str = "same", opset: int = OPSET) -> Path:
        """The exported file of the first expert; that of the second lies beside it."""

        def make(folder: Path) -> None:
            folder.mkdir()
            export_checkpoint(self.sources(precision), folder / "model.onnx", lambda *what: None)

        return self.kept.make(self.folder / precision, make) / "model.onnx"

    def models(self, **options: Any) -> tuple[RoutedTransformer, RoutedTransformer]:
        high, low = (
            RoutedTransformer.from_pretrained(self.checkpoint, router, component=component, **options)
            for component, router in self.routers.items()
        )
        return high, low

    def pipeline(self, transformer: Any, transformer_2: Any = None) -> Any:
        pipeline = super().pipeline(transformer)
        pipeline.transformer_2 = transformer_2
        return pipeline


def make_experts(kept: Kept, name: str = "wan experts") -> TinyExperts:
    tiny = TinyExperts(kept, make_tiny(kept, name).name)
    sizes = {name: size for name, size in WAN.items() if name in ROUTER_SIZES}
    low = tiny.routers[COMPONENTS[1]]
    kept.make(low, lambda path: make_router(path, tiny.geometry, "wan", video=SIZE, seed=ROUTER_SEED + 1, **sizes))
    return tiny


def latents(pipeline: Any, steps: int = 3, seed: int = 0, **arguments: Any) -> torch.Tensor:
    """The latents that a pipeline samples: [1, C, F, H, W]."""
    arguments = {"prompt": "a red wall", "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, **arguments}
    generator = torch.Generator().manual_seed(seed)
    sampled: torch.Tensor = pipeline(
        num_inference_steps=steps, generator=generator, output_type="latent", **arguments
    ).frames
    return sampled


def make_tiny(kept: Kept, name: str) -> Tiny:
    tiny = Tiny(kept, name)
    family = tiny.family
    kept.make(tiny.checkpoint, lambda path: complete_pipeline(make_checkpoint(path, family, **MODELS[name])))
    sizes = {name: size for name, size in MODELS[name].items() if name in ROUTER_SIZES}
    kept.make(
        tiny.router, lambda path: make_router(path, tiny.geometry, family, video=tiny.size, seed=ROUTER_SEED, **sizes)
    )
    return tiny


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


def build_here(source: Source | Sequence[Source], path: Path) -> Path:
    """Builds a bundle with the first flavour that can build here; skips the test if its engines do not run here."""
    flavour = next(name for name in ("tensorrt", "tensorrt8", "rtx") if get_flavour(name).can_build())
    if not (ability := get_flavour(flavour).can_run()):
        pytest.skip(f"no engine runs here: {ability.reason}")
    return build_checkpoint(source, path, lambda *what: None, tensorrt=flavour).path
