# SPDX-License-Identifier: Apache-2.0
"""Preparing data with a tiny HunyuanVideo pipeline: Llama, CLIP and its VAE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vorta_trt.model.families.hunyuan_video.random import make_checkpoint as make_hunyuan_video_checkpoint
from vorta_trt.model.random_pipeline import complete_pipeline
from vorta_trt.model.training import TrainingSettings, prepare_data, train_router
from vorta_trt.model.training.clips import read_video

from .samples import SIZE
from .videos import write_video

TEXT_DIM, POOLED_DIM, CHANNELS = 16, 12, 4
CAPTION = "a red wall, a blue wall"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_hunyuan_video_checkpoint(
        tmp_path_factory.mktemp("pipeline") / "hunyuan video",
        layers=1,
        single_layers=1,
        heads=2,
        head_dim=16,
        text_dim=TEXT_DIM,
        pooled_dim=POOLED_DIM,
        refiner_layers=1,
        channels=CHANNELS,
    )
    return complete_pipeline(root)


def test_latents_and_embeddings_are_the_pipelines_own(checkpoint: Path, tmp_path: Path) -> None:
    from diffusers import HunyuanVideoPipeline

    videos, data = tmp_path / "videos", tmp_path / "data"
    videos.mkdir()
    file = write_video(videos / "wall.mp4", [10 * frame for frame in range(SIZE[0])], rate=24)
    (videos / "wall.txt").write_text(CAPTION)
    assert prepare_data(checkpoint, videos, data, SIZE, precision="fp32", device="cpu").samples == ("wall",)

    pipeline = HunyuanVideoPipeline.from_pretrained(checkpoint, transformer=None)
    pipeline.vae.enable_tiling()
    with torch.no_grad():
        embeds, pooled, mask = pipeline.encode_prompt(CAPTION)
        encoded = pipeline.vae.encode(read_video(file, SIZE, 24).unsqueeze(0)).latent_dist.mode()
    prompt = load_file(data / "prompts/wall.safetensors")
    assert torch.equal(prompt["prompt_embeds"], embeds[0])
    assert torch.equal(prompt["prompt_attention_mask"], mask[0])
    assert torch.equal(prompt["pooled_prompt_embeds"], pooled[0])
    assert 0 < int(mask.sum()) < mask.numel()
    latents = load_file(data / "latents/wall.safetensors")["latents"]
    torch.testing.assert_close(latents, encoded[0] * pipeline.vae.config.scaling_factor)

    settings = TrainingSettings(steps=1, batch_size=1, precision="fp32")
    report = train_router(checkpoint, data, tmp_path / "run", settings, device="cpu")
    assert report is not None and report.step == 1
