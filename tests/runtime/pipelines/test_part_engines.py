# SPDX-License-Identifier: Apache-2.0
"""The whole video from a bundle: transformer, text encoder and VAE by exported graphs, without a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kept import Kept
from tests.tiny import Tiny, make_tiny
from vorta_trt.engines import Bundle, bundle_writer
from vorta_trt.engines.bundle_writer import BundleWriter
from vorta_trt.engines.errors import BuildError, BundleError
from vorta_trt.engines.plan import build_plan
from vorta_trt.export.pipeline_parts import PipelineParts
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.from_checkpoint import Source, build_checkpoint
from vorta_trt.runtime.inspection import inspect_target
from vorta_trt.runtime.memory_parts import pipeline_parts
from vorta_trt.runtime.memory_plan import plan_memory
from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
from vorta_trt.runtime.target import read_target

SAMPLING = {"num_inference_steps": 2, "seed": 1}
ROUNDING = 3  # of 255; the engines are in float16


@pytest.fixture(scope="module")
def bundle(tiny_wan: Tiny) -> Path:
    def make(path: Path) -> None:
        source = Source(tiny_wan.checkpoint, tiny_wan.router, precision="fp16")
        build_checkpoint(source, path, lambda *_: None, parts=["all"], keep_pipeline=True, include_onnx=True)

    folder = tiny_wan.kept.folder("plugins", "model", "export", "engines", "runtime") / tiny_wan.name
    return tiny_wan.kept.make(folder / "whole video.bundle", make)


def test_a_bundle_alone_makes_the_video_of_diffusers(bundle: Path, tiny_wan: Tiny, tmp_path: Path) -> None:
    alone = tmp_path / "alone.bundle"
    shutil.copytree(bundle, alone)
    with VortaPipeline.from_pretrained(alone, executor="onnxruntime", strict=True) as pipeline:
        assert pipeline.planner.checkpoint == alone / "pipeline"
        assert pipeline.parts.engines.parts == {"text_encoder", "vae_decoder"}
        frames = pipeline("a red wall", **SAMPLING).frames
    assert not list(alone.rglob("*.safetensors"))[1:]  # the timestep path alone
    with VortaPipeline.from_pretrained(tiny_wan.onnx, tiny_wan.checkpoint) as pipeline:
        assert not pipeline.parts.engines.parts
        expected = pipeline("a red wall", **SAMPLING).frames
    assert expected.std() > 1
    assert np.abs(frames.astype(int) - expected).max() <= ROUNDING


@pytest.mark.parametrize("name", ["hunyuan_video_15 i2v", "wan first and last"])
def test_an_exported_image_encoder_makes_the_same_video(kept: Kept, tmp_path: Path, name: str) -> None:
    """The latter encodes two images in one call."""
    tiny = make_tiny(kept, name)
    for entry in tiny.onnx.parent.glob(f"{tiny.onnx.stem}.*"):
        (tmp_path / entry.name).symlink_to(entry)
    onnx = tmp_path / tiny.onnx.name
    parts = PipelineParts(tiny.checkpoint, VideoSize(*tiny.size), ["image_encoder"], "fp32")
    for graph, metadata in parts.graphs():
        parts.export(onnx.with_suffix(f".{graph.name}.onnx"), graph, metadata)
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8) for seed in (1, 2)]
    given = {"image": Image.fromarray(images[0])}
    if name == "wan first and last":
        given["last_image"] = Image.fromarray(images[1])
    videos = []
    for source in (onnx, tiny.onnx):
        with VortaPipeline.from_pretrained(source, tiny.checkpoint) as pipeline:
            assert pipeline.parts.engines.parts == ({"image_encoder"} if source == onnx else set())
            videos.append(pipeline("a red wall", **given, **SAMPLING).frames)
    assert videos[1].std() > 1
    assert np.abs(videos[0].astype(int) - videos[1]).max() <= 1


def test_a_part_that_tensorrt_cannot_build(tiny_wan: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorRT 8.6 on the second graph of Wan's decoder: the error says how to go on, and nothing half is left."""

    def refused(flavour: Any, onnx: Any, *rest: Any) -> Any:
        if "vae_decoder_next" in onnx.path.name:
            raise BuildError(f"{onnx.path}: {flavour.title_and_version} could not build the engine", ["unequal rank"])
        return build_plan(flavour, onnx, *rest)

    monkeypatch.setattr(bundle_writer, "build_plan", refused)
    source = Source(tiny_wan.checkpoint, tiny_wan.router, precision="fp16")
    said = "vae_decoder_next.*TensorRT-RTX 1.* leave vae_decoder out of --with, and it runs in torch\n.*unequal rank"
    with pytest.raises(BuildError, match=said):
        build_checkpoint(source, tmp_path / "wan.bundle", lambda *_: None, parts=["vae_decoder"])
    assert not list(tmp_path.iterdir())


def test_the_manifest_says_what_the_parts_are(bundle: Path) -> None:
    opened = Bundle.open(bundle, runtime=False)
    parts = opened.whole.parts
    assert [record.component for record in parts] == ["text_encoder", "vae_decoder_first", "vae_decoder_next"]
    assert [record.size for record in parts] == [None, "9x64x96", "9x64x96"]
    assert opened.engines == (opened.key,)  # of the transformer alone
    view = opened.select("vae_decoder_next")
    assert view.plan_path.name == "vae_decoder_next.plan"
    assert [spec.name for spec in view.manifest.outputs][:2] == ["frames", "new_cache_0"]


def test_inspect_lists_the_parts(bundle: Path) -> None:
    report = inspect_target(bundle)
    assert [part.graph for part in report.parts] == ["text_encoder", "vae_decoder_first", "vae_decoder_next"]
    text = "\n".join(report.lines())
    for words in (
        "part       text_encoder: text_encoder transformers.UMT5EncoderModel, fp16, any size; text_encoder.plan ",
        "part       vae_decoder_next: vae diffusers.AutoencoderKLWan, fp16, 9x64x96; vae_decoder_next.plan ",
        "takes latents float16 [1, 4, 1, 8, 12], cache_0 float16 [1, 4, 2, 8, 12] and 23 more; gives frames float16",
    ):
        assert words in text
    assert all(part.bytes_on_disk and part.activation_bytes and part.build_seconds for part in report.parts)
    first, then = report.parts[1:]
    assert (first.shared_with, then.shared_with) == (None, first.file) and (then.plan_bytes or 0) > then.bytes_on_disk
    assert f"and bytes of {first.file}, a plan of " in text
    alone = inspect_target(bundle, component="vae_decoder_first")
    assert alone.is_part and alone.memory_plan is None
    beside = inspect_target(bundle / "model.onnx")
    assert [part.file for part in beside.parts][1:] == ["model.vae_decoder_first.onnx", "model.vae_decoder_next.onnx"]
    assert not beside.is_part and beside.memory_plan is not None
    file = inspect_target(bundle / "model.vae_decoder_next.onnx")
    (part,) = file.parts
    assert part == beside.parts[2] and part.weight_bytes and part.build_seconds is None
    assert file.memory_plan is None and len(part.inputs) == len(part.outputs) == 25


def test_the_memory_plan_counts_the_engines(bundle: Path) -> None:
    target = read_target(bundle)
    parts = pipeline_parts(bundle / "pipeline", target.metadata, target.bundle)
    assert parts.text_encoder and parts.vae and parts.decoding
    assert pipeline_parts(bundle / "pipeline", target.metadata, target.bundle, compile_vae=True) == parts
    assert plan_memory(target, bundle / "pipeline", [80.0]).cards[0].fits


def test_a_changed_file_of_the_carried_pipeline_is_noticed(bundle: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.bundle"
    shutil.copytree(bundle, changed)
    file = changed / "pipeline" / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace("red", "rad"))
    with pytest.raises(BundleError, match=r"pipeline/tokenizer/tokenizer.json was changed"):
        Bundle.open(changed, runtime=False)


def test_without_vae_and_without_checkpoint(tiny_wan: Tiny, tmp_path: Path) -> None:
    alone = tmp_path / "alone.bundle"
    shutil.copytree(tiny_wan.bundle, alone)
    with pytest.raises(CheckpointError, match=r"does not hold the whole pipeline.*--with all --keep-pipeline"):
        VortaPipeline.from_pretrained(alone, executor="onnxruntime")


def test_the_vae_of_another_model(bundle: Path, tiny_wan: Tiny, tmp_path: Path) -> None:
    other = tmp_path / "checkpoint"
    shutil.copytree(tiny_wan.checkpoint, other)
    config = other / "vae" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"latents_mean": [0.5] * len(content["latents_mean"])}))
    with pytest.raises(CheckpointError, match="latents_mean.*but the engine vae_decoder was made of one with"):
        VortaPipeline.from_pretrained(bundle, other, executor="onnxruntime")
    with pytest.raises(ValueError, match="vae_precision: that of the VAE .* was fixed when it was exported; leave it"):
        VortaPipeline.from_pretrained(bundle, executor="onnxruntime", vae_precision="bf16")


def test_a_build_that_fails_at_the_vae_leaves_nothing(
    tiny_wan: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: BundleWriter, part: object) -> None:
        raise BuildError("the second component fails")

    monkeypatch.setattr(BundleWriter, "add_part", fail)
    source = Source(tiny_wan.checkpoint, tiny_wan.router, precision="fp16")
    with pytest.raises(BuildError, match="second component"):
        build_checkpoint(source, tmp_path / "half.bundle", lambda *_: None, parts=["text_encoder"])
    assert not list(tmp_path.iterdir())


def test_a_compiled_decoder_is_the_eager_one(
    tiny_wan: Tiny, tiny_hunyuan_video: Tiny, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_to: list[set[object]] = []  # each compiled graph: shapes and strides, for which it is compiled

    def compiled(module: Any, **_: object) -> Any:  # no compiler is needed here
        given_to.append(seen := set())

        def run(*tensors: torch.Tensor) -> Any:
            assert torch.backends.cudnn.benchmark
            seen.add(tuple((tensor.shape, tensor.stride()) for tensor in tensors))
            return module(*tensors)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    for tiny in (tiny_wan, tiny_hunyuan_video, make_tiny(kept, "hunyuan_video_15")):
        videos, parts = [], []
        for compile_vae in (False, True):
            with VortaPipeline.from_pretrained(tiny.model(), tiny.checkpoint, compile_vae=compile_vae) as pipeline:
                for _ in range(1 + compile_vae):
                    given: list[np.ndarray] = []
                    made = pipeline("a red wall", **SAMPLING, on_frames=lambda _, frames, to=given: to.append(frames))
                    videos.append(made.frames)
                    assert (np.concatenate(given) == made.frames).all()
                    parts.append(len(given))
        assert parts == [parts[0]] * 3 and (parts[0] > 1) == (tiny is tiny_wan)  # as they are decoded, chunk by chunk
        assert np.abs(videos[0].astype(int) - videos[1]).max() <= 1
        assert (videos[1] == videos[2]).all()  # nothing is left of the video before
    assert [len(seen) for seen in given_to] == [1] * 3
    assert not torch.backends.cudnn.benchmark  # for all else


def test_a_compiled_decoder_takes_no_other_way_to_decode(tiny_wan: Tiny, tiny_hunyuan_video: Tiny) -> None:
    for tiny, tiling, how in ((tiny_wan, True, "whole frames"), (tiny_hunyuan_video, False, "in tiles")):
        with pytest.raises(ValueError, match=f"vae_tiling {tiling}: a compiled VAE of .* decodes {how}; leave it out"):
            VortaPipeline.from_pretrained(tiny.model(), tiny.checkpoint, compile_vae=True, vae_tiling=tiling)
