# SPDX-License-Identifier: Apache-2.0
"""VAE and text encoder as exported graphs, run by ONNX Runtime around diffusers' own classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from tests.kept import Kept
from tests.tiny import Tiny, make_tiny
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.export.part_metadata import PartMetadata
from vorta_trt.export.pipeline_parts import PipelineParts
from vorta_trt.model import CheckpointReader
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.families.parts import video_parts
from vorta_trt.model.video_size import VideoSize

CLOSE = 2e-5  # relative to the largest value; float32, and sums in another order


class Sessions:
    """Runs exported graphs; an input that is left out is zero."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, Any] = {}

    def __call__(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if name not in self._sessions:
            self._sessions[name] = onnxruntime.InferenceSession(self._folder / f"{name}.onnx")
        session = self._sessions[name]
        zeros = {spec.name: torch.zeros(spec.shape).numpy() for spec in session.get_inputs() if spec.name not in inputs}
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()} | zeros
        names = [spec.name for spec in session.get_outputs()]
        return dict(zip(names, map(torch.from_numpy, session.run(names, feeds)), strict=True))


def parts_of(tiny: Tiny, *names: str, **options: Any) -> PipelineParts:
    return PipelineParts(tiny.checkpoint, VideoSize(*tiny.size), names, "fp32", **options)


def export(parts: PipelineParts, folder: Path) -> list[str]:
    return [parts.export(folder / f"{graph.name}.onnx", graph, metadata).stem for graph, metadata in parts.graphs()]


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


def with_graphs(tiny: Tiny, parts: Mapping[str, Any], run: Sessions, size: tuple[int, int, int] | None = None) -> None:
    """Puts callers of the graphs into components."""
    with CheckpointReader(tiny.checkpoint) as reader:
        made = video_parts(get_family(tiny.family), reader.config, size or tiny.size)
    assert made is not None
    for part, component in parts.items():
        made.install(part, component, run)


@torch.no_grad()
def test_the_vae_chunk_by_chunk_is_that_of_diffusers(tiny_ti2v: Tiny, tmp_path: Path) -> None:
    parts = parts_of(tiny_ti2v, "vae_encoder", "vae_decoder")
    assert export(parts, tmp_path) == parts.graph_names()
    pipeline = tiny_ti2v.pipeline(None)
    frames, height, width = tiny_ti2v.size
    video = torch.rand(1, 3, frames, height, width) * 2 - 1
    latents = torch.randn(1, 48, 3, height // 16, width // 16)
    encoded, decoded = pipeline.vae.encode(video).latent_dist.mode(), pipeline.vae.decode(latents).sample
    with_graphs(tiny_ti2v, {"vae_encoder": pipeline.vae, "vae_decoder": pipeline.vae}, Sessions(tmp_path))
    for _ in range(2):  # nothing of a video is left in the caches
        assert close(pipeline.vae.encode(video).latent_dist.mode(), encoded)
        assert close(pipeline.vae.decode(latents).sample, decoded)
    assert close(pipeline.vae.encode(video[:, :, :1]).latent_dist.mode(), encoded[:, :, :1])  # an image


@torch.no_grad()
def test_opset_17_says_the_same(tiny_wan: Tiny, tmp_path: Path) -> None:
    exported = export(parts_of(tiny_wan, "text_encoder", "vae_decoder", opset=17), tmp_path)
    assert exported == ["text_encoder", "vae_decoder_first", "vae_decoder_next"]
    pipeline = tiny_wan.pipeline(None)
    latents = torch.randn(1, 4, 3, 8, 12)
    ids, mask = (
        pipeline.tokenizer("a red wall", padding="max_length", max_length=512, return_tensors="pt")[name]
        for name in ("input_ids", "attention_mask")
    )
    embeddings, decoded = pipeline.text_encoder(ids, mask).last_hidden_state, pipeline.vae.decode(latents).sample
    with_graphs(tiny_wan, {"text_encoder": pipeline.text_encoder, "vae_decoder": pipeline.vae}, Sessions(tmp_path))
    found = pipeline.text_encoder(ids, mask).last_hidden_state
    assert close(found[0, : int(mask.sum())], embeddings[0, : int(mask.sum())])
    assert close(pipeline.vae.decode(latents).sample, decoded)
    later = read_onnx(tmp_path / "vae_decoder_next.onnx").model.graph
    kinds = Counter(node.op_type for node in later.node)
    assert not kinds.keys() & {"GatherND", "Expand", "Pad"} and kinds["Resize"] == 3  # no copies but those of caches
    assert {name for node in later.node for name in node.input} >= {constant.name for constant in later.initializer}
    properties = {entry.key: entry.value for entry in read_onnx(tmp_path / "text_encoder.onnx").model.metadata_props}
    metadata = PartMetadata.from_metadata_props(properties, "the file")
    assert (metadata.part, metadata.family, metadata.checkpoint) == ("text_encoder", "wan", "checkpoint")


@torch.no_grad()
def test_a_vae_by_tiles_is_that_of_diffusers(tiny_hunyuan_video: Tiny, tmp_path: Path) -> None:
    size = VideoSize(21, 32, 272)  # two tiles in time, and two of another width
    parts = PipelineParts(tiny_hunyuan_video.checkpoint, size, ["vae_decoder"], "fp32")
    exported = export(parts, tmp_path)
    assert len(exported) == len(set(exported)) == 4
    pipeline = tiny_hunyuan_video.pipeline(None)
    latents = torch.randn(1, 4, 6, 4, 34)
    pipeline.vae.enable_tiling()
    decoded = pipeline.vae.decode(latents).sample
    with_graphs(tiny_hunyuan_video, {"vae_decoder": pipeline.vae}, Sessions(tmp_path), (21, 32, 272))
    assert close(pipeline.vae.decode(latents).sample, decoded)


@torch.no_grad()
def test_encoders_of_text_and_image_are_those_of_transformers(kept: Kept, tmp_path: Path) -> None:
    """HunyuanVideo 1.5 of an image has one of each kind, and a VAE without convolutions around it."""
    tiny = make_tiny(kept, "hunyuan_video_15 i2v")
    exported = export(PipelineParts(tiny.checkpoint, VideoSize(5, 32, 64), ["all"], "fp32"), tmp_path)
    assert exported[:3] == ["text_encoder", "text_encoder_2", "image_encoder"]
    assert exported[3:] == ["vae_encoder_1x32x64", "vae_decoder_2x2x4"]
    pipeline = tiny.pipeline(None)
    ids = torch.randint(2, pipeline.text_encoder.config.vocab_size, (2, 1108))
    mask = (torch.arange(1108) < torch.tensor([[1108], [400]])).long()
    glyphs, glyph_mask = torch.randint(3, 200, (1, 256)), (torch.arange(256)[None] < 20).float()
    pixels, image = torch.rand(2, 3, 54, 54), torch.rand(1, 3, 1, 32, 64) * 2 - 1
    latents = torch.randn(1, pipeline.vae.config.latent_channels, 2, 2, 4)

    def results() -> dict[str, Tensor]:
        text = pipeline.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        glyph_text = pipeline.text_encoder_2(input_ids=glyphs, attention_mask=glyph_mask)[0]
        return {
            "text": text.hidden_states[-3][mask.bool()],
            "glyphs": glyph_text[0, :20],
            "image": pipeline.image_encoder(pixel_values=pixels).last_hidden_state,
            "latents": pipeline.vae.encode(image).latent_dist.mode(),
            "frames": pipeline.vae.decode(latents).sample,
        }

    expected = results()
    components = {
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
        "image_encoder": pipeline.image_encoder,
        "vae_encoder": pipeline.vae,
        "vae_decoder": pipeline.vae,
    }
    with_graphs(tiny, components, Sessions(tmp_path), (5, 32, 64))
    for name, found in results().items():
        assert close(found, expected[name]), name


@torch.no_grad()
def test_tiles_of_all_frames_are_those_of_diffusers(kept: Kept) -> None:
    """The graphs of HunyuanVideo 1.5's VAE, in torch."""
    tiny, size = make_tiny(kept, "hunyuan_video_15 i2v"), (5, 32, 272)
    vae = tiny.pipeline(None).vae
    vae.enable_tiling()
    latents = torch.randn(1, vae.config.latent_channels, 2, 2, 17)
    image = torch.rand(1, 3, 1, 32, 272) * 2 - 1
    encoded, decoded = vae.encode(image).latent_dist.mode(), vae.decode(latents).sample
    with CheckpointReader(tiny.checkpoint) as reader:
        made = video_parts(get_family(tiny.family), reader.config, size)
    assert made is not None
    parts = ("vae_encoder", "vae_decoder")
    graphs = {graph.name: graph for part in parts for graph in made.graphs(part, vae)}
    assert len(graphs) == 4  # of another width at the end

    def run(name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (output,) = graphs[name].outputs
        return {output: graphs[name].module(*inputs.values())}

    for part in parts:
        made.install(part, vae, run)
    assert close(vae.encode(image).latent_dist.mode(), encoded)
    assert close(vae.decode(latents).sample, decoded)


@torch.no_grad()
def test_the_image_encoder_of_wan_is_that_of_transformers(kept: Kept, tmp_path: Path) -> None:
    tiny = make_tiny(kept, "wan first and last")
    assert export(parts_of(tiny, "image_encoder"), tmp_path) == ["image_encoder"]
    encoder = tiny.pipeline(None).image_encoder
    side = encoder.config.image_size
    pixels = torch.rand(2, 3, side, side)  # a first and a last frame
    expected = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    with_graphs(tiny, {"image_encoder": encoder}, Sessions(tmp_path))
    assert close(encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2], expected)


def test_what_cannot_be_exported(tiny_wan: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part 'vae': cannot be exported: this model has text_encoder, vae_decoder"):
        parts_of(tiny_wan, "vae")
    with pytest.raises(ValueError, match="vae_encoder"):  # of a model of text alone
        parts_of(tiny_wan, "vae_encoder")
    for entry in tiny_wan.checkpoint.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "vae").unlink()
    with pytest.raises(FileNotFoundError, match="its vae lacks"):
        PipelineParts(tmp_path, VideoSize(*tiny_wan.size), ["all"], "fp32")
    bare = tmp_path / "bare"
    bare.mkdir()
    for entry in (tiny_wan.checkpoint / "transformer").iterdir():
        (bare / entry.name).symlink_to(entry)
    with pytest.raises(CheckpointError, match="transformer alone"):
        PipelineParts(next(bare.glob("*.safetensors")), VideoSize(*tiny_wan.size), ["all"], "fp32")


def test_the_vae_of_another_model_is_refused(tiny_wan: Tiny, tiny_ti2v: Tiny, tmp_path: Path) -> None:
    for entry in tiny_wan.checkpoint.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "vae").unlink()
    (tmp_path / "vae").symlink_to(tiny_ti2v.checkpoint / "vae")
    with pytest.raises(CheckpointError, match="one latent stands for"):
        PipelineParts(tmp_path, VideoSize(*tiny_wan.size), ["vae_decoder"], "fp32")
