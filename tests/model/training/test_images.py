# SPDX-License-Identifier: Apache-2.0
"""Data, training and calibration of models whose videos begin, or begin and end, with an image: Wan's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from vorta_trt.model.calibration import CalibrationReport, CalibrationSettings, calibrate_routes
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_pipeline import complete_pipeline
from vorta_trt.model.training import DataError, TrainingSettings, prepare_data, train_router

from ..calibration.schedulers import scheduler_of
from .samples import CHANNELS, HEAD_DIM, HEADS, LAYERS, SIZE, TEXT_DIM, write_data
from .videos import write_video

SIZES = {"layers": LAYERS, "heads": HEADS, "head_dim": HEAD_DIM, "channels": CHANNELS, "text_dim": TEXT_DIM}


@pytest.fixture(scope="module", params=["channels", "first and last"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipeline") / "wan"
    return complete_pipeline(make_wan_checkpoint(root, ffn_dim=32, freq_dim=32, seed=3, image=request.param, **SIZES))


def ends_with_one(checkpoint: Path) -> bool:
    return (checkpoint / "image_encoder").is_dir()


def picture(grey: int) -> Image.Image:
    return Image.fromarray(np.full((*SIZE[1:], 3), grey, np.uint8))


def calibrate(checkpoint: Path, output: Path, **source: Any) -> CalibrationReport:
    settings = CalibrationSettings(dtype="fp32", buckets=1, run_steps=2, budget=0.2, samples=2)
    return calibrate_routes(checkpoint, output, scheduler_of(checkpoint), settings, steps=4, device="cpu", **source)


def test_a_video_is_trained_on_with_its_own_ends(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The condition of a sample is what the stock pipeline makes of the video's first, or first and last frame."""
    import diffusers

    (tmp_path / "videos").mkdir()
    for name, first in (("dawn", 60), ("dusk", 180)):
        write_video(tmp_path / "videos" / f"{name}.mp4", [first, *[120] * (SIZE[0] - 2), 240 - first])
        (tmp_path / "videos" / f"{name}.txt").write_text("a red wall\n")
    prepare_data(checkpoint, tmp_path / "videos", tmp_path / "data", SIZE, precision="fp32", device="cpu")
    stored = load_file(tmp_path / "data/latents/dawn.safetensors")
    both = ends_with_one(checkpoint)
    assert stored.keys() == {"latents", "image_condition", *(["image_embeds"] if both else [])}
    assert stored["latents"].shape == (4, 3, 8, 12) and stored["image_condition"].shape == (8, 3, 8, 12)
    mask = stored["image_condition"][:4].amax(dim=(2, 3))  # [4 frames of a latent frame, F]
    # The four of the first latent frame are the video's first frame; of the last one, the last is the last.
    assert mask.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1 if both else 0]]

    pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(checkpoint, transformer=None)
    from vorta_trt.model.training.clips import read_video

    video = read_video(tmp_path / "videos/dawn.mp4", SIZE, 16.0)
    shown = [(video[:, index] * 127.5 + 127.5).round().permute(1, 2, 0).to(torch.uint8).numpy() for index in (0, -1)]
    images = [Image.fromarray(frame) for frame in shown[: 2 if both else 1]]
    with torch.no_grad():
        pixels = [pipeline.video_processor.preprocess(image, height=SIZE[1], width=SIZE[2]) for image in images]
        _, expected = pipeline.prepare_latents(
            pixels[0], 1, 4, SIZE[1], SIZE[2], SIZE[0], torch.float32, torch.device("cpu"), latents=torch.zeros(()),
            last_image=pixels[1] if both else None,
        )  # fmt: skip
        if both:
            embeds = pipeline.encode_image(images, torch.device("cpu"))
            torch.testing.assert_close(stored["image_embeds"], embeds.flatten(0, 1))
    torch.testing.assert_close(stored["image_condition"], expected[0])

    settings = TrainingSettings(steps=2, batch_size=2, seed=1, precision="fp32")
    report = train_router(checkpoint, tmp_path / "data", tmp_path / "run", settings, device="cpu")
    assert report is not None and (tmp_path / "run/ckpt/step-000002/router.pt").is_file()
    data = calibrate(checkpoint, tmp_path / "routes.json", data=tmp_path / "data")
    assert data.calibration.routes.shape == (1, LAYERS, HEADS)
    with pytest.raises(ValueError, match="image: belongs to prompts; data have images of their own"):
        calibrate(checkpoint, tmp_path / "b.json", data=tmp_path / "data", images={"image": picture(9)})


def test_prompts_are_calibrated_with_an_image(checkpoint: Path, tmp_path: Path) -> None:
    images = {"image": picture(60), **({"last_image": picture(180)} if ends_with_one(checkpoint) else {})}
    errors: list[Tensor] = []
    for shown in (images, images, images | {"image": picture(240)}):
        report = calibrate(
            checkpoint, tmp_path / "routes.json", prompts=["a red wall", "a blue wall"], video_size=SIZE, images=shown
        )
        errors.append(report.calibration.errors)
    assert torch.equal(errors[0], errors[1]) and not torch.equal(errors[0], errors[2])
    with pytest.raises(ValueError, match="image None: this model begins a video with one"):
        calibrate(checkpoint, tmp_path / "b.json", prompts=["a red wall"], video_size=SIZE)
    with pytest.raises(ValueError, match="image of 96x96 pixels .* another aspect"):
        square = Image.new("RGB", (96, 96))
        calibrate(checkpoint, tmp_path / "b.json", prompts=["a"], video_size=SIZE, images=images | {"image": square})
    assert [entry.name for entry in tmp_path.iterdir()] == ["routes.json"]


def test_data_without_images(checkpoint: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", ["cat"])
    settings = TrainingSettings(steps=1, batch_size=1, precision="fp32")
    with pytest.raises(DataError, match="has no tensor 'image_condition'"):
        train_router(checkpoint, tmp_path / "data", tmp_path / "run", settings, device="cpu")
    reference = tmp_path / "videos2caption.json"
    reference.write_text('[{"latent_path": "cat.pt", "caption": "a cat"}]')
    with pytest.raises(DataError, match="layout has no image_condition, which this model takes; prepare the videos"):
        train_router(checkpoint, reference, tmp_path / "run", settings, device="cpu")
