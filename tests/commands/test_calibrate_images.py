# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt calibrate` of models whose videos begin with an image, and `generate` with the routes that it finds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.model.calibration import CalibrationSettings, calibrate_routes
from vorta_trt.model.calibration import samples as module
from vorta_trt.model.constants import COMPONENTS
from vorta_trt.model.families import get_family
from vorta_trt.model.images import choose_kind
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.runtime.frames import read_frames
from vorta_trt.runtime.schedules import schedule_timesteps

from ..kept import Kept
from ..model.training.conftest import one_thread as one_thread
from ..tiny import FRAMES, HEIGHT, WIDTH, Tiny, make_experts, make_tiny

QUICK = ("--dtype", "fp32", "--device", "cpu", "--buckets", 1, "--samples", 1, "--run-steps", 2, "--steps", 4)
SIZE = f"{FRAMES}x{HEIGHT}x{WIDTH}"


def vorta(*arguments: object, code: int = 0) -> str:
    """What the command printed on stdout, or for another `code` on stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def picture(seed: int, height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A prompt, and two images."""
    (tmp_path / "prompts.txt").write_text("a red wall\n")
    for number, name in enumerate(("first", "last")):
        picture(number, HEIGHT, WIDTH).save(tmp_path / f"{name}.png")
    return tmp_path


def given(files: Path, *names: str) -> tuple[object, ...]:
    images = {"image": files / "first.png", "last_image": files / "last.png"}
    return tuple(part for name in names for part in (f"--{name.replace('_', '-')}", images[name]))


def test_generate_takes_the_routes_of_two_experts(kept: Kept, files: Path) -> None:
    """Wan 2.2 I2V A14B, each expert calibrated by itself."""
    tiny = make_experts(kept, "wan experts channels")
    overrides: list[str] = []
    for name, component in zip(("high", "low"), COMPONENTS, strict=True):
        output = files / f"{name}.json"
        common = ("--prompts", files / "prompts.txt", *given(files, "image"), "--size", SIZE, "-o", output)
        vorta("calibrate", tiny.checkpoint, "--expert", name, *common, *QUICK, "--target-share", 0.9)
        assert RouteCalibration.load(output).component == component
        overrides += ["--route-override", f"{name}={output}"]
    video = files / "wall.mp4"
    options = ("--checkpoint", tiny.checkpoint, "--prompt", "a red wall", *given(files, "image"), "--steps", 4)
    vorta("generate", tiny.onnx, *overrides, *options, "-o", video)
    assert len(list(read_frames(video))) == FRAMES
    swapped = [part.replace("high=", "x=").replace("low=", "high=").replace("x=", "low=") for part in overrides]
    assert "are for transformer_2" in vorta("generate", tiny.onnx, *swapped, *options, "-o", video, code=1)


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("wan first and last", ("image", "last_image")),
        ("wan ti2v", ("image",)),  # which makes videos of text, too
        ("hunyuan_video latent_concat", ("image",)),
        ("hunyuan_video token_replace", ("image",)),
        ("hunyuan_video_15 i2v", ("image",)),
    ],
)
def test_a_run_is_the_stock_pipelines(
    kept: Kept, files: Path, monkeypatch: pytest.MonkeyPatch, name: str, images: tuple[str, ...]
) -> None:
    """The inputs of each step are those of diffusers' pipeline with its own transformer."""
    tiny = make_tiny(kept, name)
    _, height, width = tiny.size
    opened = {which: picture(number, height, width) for number, which in enumerate(images)}
    seen: list[dict[str, Any]] = []
    noise: list[torch.Tensor] = []
    make, draw = module.InputMaker.__call__, module.draw_noise

    def watch(*arguments: Any) -> dict[str, Any]:
        seen.append(make(*arguments))
        return seen[-1]

    def note(*arguments: Any) -> torch.Tensor:
        noise.append(draw(*arguments))
        return noise[-1]

    monkeypatch.setattr(module.InputMaker, "__call__", watch)
    monkeypatch.setattr(module, "draw_noise", note)
    settings = CalibrationSettings(dtype="fp32", buckets=1, run_steps=2, samples=1, guidance_scale=1.0)
    calibrate_routes(
        tiny.checkpoint,
        files / "routes.json",
        lambda steps: schedule_timesteps(tiny.checkpoint, steps).instance,
        settings,
        prompts=["a red wall"],
        images=opened,
        video_size=tiny.size,
        steps=4,
        device="cpu",
    )
    for number, calls in enumerate(stock_calls(tiny, opened, noise[0])):
        compared = set(calls) & set(seen[number]) & {"hidden_states", "timestep", "timestep_r", "image_embeds"}
        assert {"hidden_states", "timestep"} <= compared
        for which in compared:
            wanted = calls[which].float()
            if wanted.shape[1:] == (45,):  # a timestep of every token, of which those of the first frame come first
                wanted = wanted[:, [0, -1]]
            torch.testing.assert_close(seen[number][which], wanted, rtol=1e-4, atol=1e-4)
    RouteCalibration.load(files / "routes.json").check(tiny.family, tiny.model().num_layers, 3, tiny.geometry)


def stock_calls(tiny: Tiny, images: dict[str, Image.Image], noise: torch.Tensor) -> list[dict[str, Any]]:
    """What diffusers' pipeline gives its transformer in two steps, as the routed transformer takes it."""
    import diffusers

    facts = get_family(tiny.family)
    model = facts.diffusers_transformer().from_pretrained(tiny.checkpoint, subfolder="transformer").eval()
    kind = choose_kind(facts.pipeline_kinds(model.config), images)
    pipeline = getattr(diffusers, kind.pipeline)(**tiny.pipeline(model).components, **kind.settings)
    if facts.tiled_vae:
        pipeline.vae.enable_tiling()
    calls: list[dict[str, Any]] = []
    model.register_forward_hook(
        lambda _, args, given, made: calls.append(dict(facts.model_arguments(given))), with_kwargs=True
    )
    frames, height, width = tiny.size
    facts.sample(
        pipeline, prompt="a red wall", **images, num_frames=frames, height=height, width=width,
        num_inference_steps=2, guidance_scale=1.0, latents=noise,
    )  # fmt: skip
    assert len(calls) == 2
    return calls


def test_images_that_are_missing_or_have_no_place(kept: Kept, files: Path) -> None:
    tiny = make_tiny(kept, "wan embedding")
    prompts = ("--prompts", files / "prompts.txt", "--size", SIZE)
    Image.new("RGB", (WIDTH, WIDTH)).save(files / "square.png")
    data = (*given(files, "image"), "--data", files)
    cases: list[tuple[tuple[object, ...], int, str]] = [
        (prompts, 1, "error: --image: this model begins a video with one; give it, e.g. --image"),
        ((*prompts, *given(files, "image", "last_image")), 1, "last_image: this model takes image alone; leave it out"),
        ((*prompts, "--image", files / "square.png"), 1, "image of 96x96 pixels .*: has another aspect than the video"),
        ((*prompts, "--image", files / "absent.png"), 1, "image .*absent.png: no such file"),
        (data, 1, "image: belongs to prompts; data have images of their own"),
    ]
    for options, code, message in cases:
        said = vorta("calibrate", tiny.checkpoint, *options, "-o", files / "routes.json", *QUICK, code=code)
        assert re.search(message, " ".join(said.split())), said
    assert not (files / "routes.json").exists()
