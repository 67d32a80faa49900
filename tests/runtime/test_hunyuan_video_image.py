# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo that begins with an image, both kinds, in diffusers' pipeline, in generation and as an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.engines import build_engine
from vorta_trt.runtime import SamplingParams, VortaPipeline, VortaTransformer
from vorta_trt.runtime.frames import frame_rate, read_frames

from ..kept import Kept
from ..tiny import FRAMES, HEIGHT, WIDTH, Tiny, latents, make_tiny

GUIDED = SamplingParams(num_inference_steps=2, true_cfg_scale=3.0, negative_prompt="blue")


@pytest.fixture(scope="module", params=["latent_concat", "token_replace"])
def tiny(request: pytest.FixtureRequest, kept: Kept) -> Tiny:
    return make_tiny(kept, f"hunyuan_video {request.param}")


@pytest.fixture
def image(seed: int) -> Image.Image:
    """Noise, of a little more than the video's size."""
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT + 2, WIDTH + 4, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_dense_latents_are_those_of_diffusers_transformer(tiny: Tiny, image: Image.Image, seed: int) -> None:
    """Of guidance as well, whose negative prompt has more image tokens than the prompt with token_replace."""
    own = diffusers.HunyuanVideoTransformer3DModel.from_pretrained(tiny.checkpoint, subfolder="transformer").eval()
    pipeline = tiny.pipeline(own)
    routed = VortaTransformer.from_pretrained(tiny.model(tau=1.1))  # no score reaches it
    guidance: dict[str, Any] = {"true_cfg_scale": 3.0, "negative_prompt": "blue"}
    for arguments in ({}, guidance):
        pipeline.transformer = own
        expected = latents(pipeline, 2, seed, image=image, **arguments)
        pipeline.transformer = routed
        sampled = latents(pipeline, 2, seed, image=image, **arguments)
        assert (sampled - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(ValueError, match=r"rows: this model takes at most 540; .*max_sequence_length=256"):
        latents(pipeline, 2, seed, image=image, max_sequence_length=512)


def test_a_video_is_the_stock_pipelines_bit_for_bit(tiny: Tiny, image: Image.Image, seed: int) -> None:
    model = tiny.model()
    with VortaPipeline.from_pretrained(model, strict=True) as pipe:
        video = pipe("a red wall", seed=seed, params=GUIDED, image=image)
        other = pipe("a red wall", seed=seed, params=GUIDED, image=image.transpose(Image.Transpose.ROTATE_180))
        embedded, size = pipe.planner.guidance(GUIDED).arguments["guidance_scale"], pipe.planner.size
    concat = tiny.name.endswith("latent_concat")
    assert (embedded, size) == (1.0 if concat else 6.0, (FRAMES, HEIGHT, WIDTH))
    stock = tiny.pipeline(VortaTransformer.from_pretrained(model))
    noise = torch.Generator().manual_seed(seed)
    arguments: dict[str, Any] = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "num_inference_steps": 2}
    arguments |= {"true_cfg_scale": 3.0, "negative_prompt": "blue", "guidance_scale": embedded}
    (expected,) = stock(image, "a red wall", generator=noise, output_type="pt", **arguments).frames
    # The frames of the first latent are the image's and are left out.
    assert video.frames.shape == (FRAMES - 4 if concat else FRAMES, HEIGHT, WIDTH, 3)
    assert np.array_equal(video.frames, (expected * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    assert video.frames.std() > 1 and not np.array_equal(video.frames, other.frames)
    assert video.launches == 4 and video.fallbacks == ()


def test_guidance_in_one_launch_of_a_pipeline_that_does_not_say_what_a_call_is_for(
    tiny: Tiny, image: Image.Image, seed: int
) -> None:
    params = GUIDED.updated(num_inference_steps=3, guidance_batching="batched")
    with VortaPipeline.from_pretrained(tiny.onnx, strict=True, residency="sequential") as pipe:
        batched = pipe("a red wall", seed=seed, params=params, image=image)
        alone = pipe("a red wall", seed=seed, params=params.updated(guidance_batching="sequential"), image=image)
    assert (batched.launches, alone.launches) == (4, 6) and batched.fallbacks == ()
    assert np.abs(batched.frames.astype(int) - alone.frames.astype(int)).max() <= 1


def test_generate_writes_a_video_and_needs_an_image(tiny: Tiny, image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "first.png")
    arguments = ["generate", tiny.onnx, "--prompt", "a red wall", "--steps", 2, "-o", tmp_path / "wall.mp4"]
    refused = CliRunner().invoke(app, [*map(str, arguments)])
    assert refused.exit_code == 1 and "--image: this model begins a video with one; give it" in refused.stderr
    refused = CliRunner().invoke(app, [*map(str, arguments), "--guidance-scale", "4", "--image", "absent.png"])
    assert refused.exit_code == 1 and not (tmp_path / "wall.mp4").exists()
    concat = tiny.name.endswith("latent_concat")
    assert ("this model has no guidance embedding" if concat else "no such file") in refused.stderr
    made = CliRunner().invoke(app, [*map(str, arguments), "--image", str(tmp_path / "first.png")])
    assert made.exit_code == 0, made.stderr
    frames = np.stack(list(read_frames(tmp_path / "wall.mp4")))
    assert frames.shape == (FRAMES - 4 if concat else FRAMES, HEIGHT, WIDTH, 3)
    assert frame_rate(tmp_path / "wall.mp4") == 24


def test_an_engine_is_built(tiny: Tiny, tmp_path: Path) -> None:
    bundle = build_engine(tiny.export("fp16"), tmp_path / "image.bundle")
    assert bundle.manifest.geometry is not None and bundle.manifest.geometry["text_tokens"] == 540
    shapes = {spec.name: spec.shape for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs)}
    assert shapes["hidden_states"] == [-1, 9 if tiny.name.endswith("latent_concat") else 4, 3, 8, 12]
    assert shapes["encoder_hidden_states"] == [-1, 540, 32] and shapes["sample"] == [-1, 4, 3, 8, 12]
