# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo 1.5: what a sample must hold, and from a video to a trained router with a tiny pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vorta_trt.model.families.hunyuan_video_15.random import make_checkpoint
from vorta_trt.model.families.training import training_family
from vorta_trt.model.random_pipeline import complete_pipeline
from vorta_trt.model.training import TrainingSettings, prepare_data, train_router
from vorta_trt.model.training.clips import read_video

from .samples import SIZE
from .videos import write_video

CAPTION = 'a red wall, "blue"'
CONFIG = {
    "text_embed_dim": 16,
    "text_embed_2_dim": 8,
    "task_type": "t2v",
    "use_meanflow": False,
    "out_channels": 4,
    "image_embed_dim": 12,
}


def sample(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = {
        "prompt_embeds": torch.randn(10, 16),
        "prompt_embeds_mask": (torch.arange(10) < 7).float(),
        "prompt_embeds_2": torch.randn(5, 8),
        "prompt_embeds_mask_2": torch.zeros(5),
    }
    return tensors | changes


def test_conditions_are_padded() -> None:
    family = training_family("hunyuan_video_15", CONFIG)
    tensors = sample()
    conditions = family.conditions(tensors)
    assert torch.equal(conditions["prompt_embeds"][:10], tensors["prompt_embeds"])
    assert [tuple(conditions[name].shape) for name in family.condition_names] == [(1000, 16), (1000,), (256, 8), (256,)]
    assert int(conditions["prompt_embeds_mask"].sum()) == 7 and not conditions["prompt_embeds_mask_2"].any()
    batch = {name: tensor.unsqueeze(0) for name, tensor in conditions.items()}
    inputs = family.model_inputs(torch.ones(1, 4, 3, 4, 6), torch.tensor([500.0]), batch, torch.bfloat16)
    assert inputs["hidden_states"].shape == (1, 9, 3, 4, 6) and not inputs["hidden_states"][:, 4:].any()
    assert inputs["encoder_hidden_states_2"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt_embeds": torch.zeros(1001, 16)},
            r"prompt_embeds has shape \(1001, 16\), must be \[1 to 1000 tokens, 16\]",
        ),
        ({"prompt_embeds_2": torch.zeros(5, 9)}, r"prompt_embeds_2 has shape \(5, 9\), must be \[1 to 256 tokens, 8\]"),
        ({"prompt_embeds_mask_2": torch.zeros(4)}, r"prompt_embeds_mask_2 has shape \(4,\), must be \(5,\)"),
        ({"prompt_embeds_mask": torch.arange(10)}, "prompt_embeds_mask has gaps, its valid tokens must come first"),
        ({"prompt_embeds_mask_2": torch.arange(5)}, "prompt_embeds_mask_2 has gaps"),
    ],
)
def test_wrong_samples(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_family("hunyuan_video_15", CONFIG).conditions(sample(**changes))


def test_an_empty_prompt_may_have_no_valid_token() -> None:
    empty = sample(prompt_embeds_mask=torch.zeros(10))
    mask = training_family("hunyuan_video_15", CONFIG).conditions(empty)["prompt_embeds_mask"]
    assert mask.shape == (1000,) and not mask.any()


def test_what_there_is_no_data_of() -> None:
    of_images = training_family("hunyuan_video_15", {**CONFIG, "task_type": "i2v"})
    images = {"image_condition": torch.zeros(5, 3, 4, 6), "image_embeds": torch.zeros(729, 12)}
    assert of_images.conditions(sample(**images)).keys() == {*of_images.condition_names, *of_images.image_names}
    with pytest.raises(ValueError, match=r"image_condition has shape \(4, 3, 4, 6\), must have 5 channels"):
        of_images.conditions(sample(**images | {"image_condition": torch.zeros(4, 3, 4, 6)}))
    with pytest.raises(ValueError, match="who have none for this model; prepare the data with vorta-trt"):
        training_family("hunyuan_video_15", CONFIG).reference_conditions(torch.zeros(3, 16), None)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_router_is_trained_on_the_pipelines_own_latents_and_embeddings(task: str, tmp_path: Path) -> None:
    """Of image to video, step-distilled, the image is the video's first frame."""
    import diffusers

    sizes = {
        "layers": 1,
        "heads": 2,
        "head_dim": 16,
        "text_dim": 16,
        "glyph_dim": 8,
        "refiner_layers": 1,
        "channels": 4,
    }
    of_image = task == "i2v"
    model = make_checkpoint(tmp_path / "model", **sizes, image_dim=8, task=task, meanflow=of_image)
    checkpoint = complete_pipeline(model)
    videos, data = tmp_path / "videos", tmp_path / "data"
    videos.mkdir()
    file = write_video(videos / "wall.mp4", [10 * frame for frame in range(SIZE[0])], rate=24)
    (videos / "wall.txt").write_text(CAPTION)
    assert prepare_data(checkpoint, videos, data, SIZE, precision="fp32", device="cpu").samples == ("wall",)

    kind = "HunyuanVideo15ImageToVideoPipeline" if of_image else "HunyuanVideo15Pipeline"
    pipeline = getattr(diffusers, kind).from_pretrained(checkpoint, transformer=None)
    pipeline.vae.enable_tiling()
    with torch.no_grad():
        expected = pipeline.encode_prompt(CAPTION, device="cpu")
        encoded = pipeline.vae.encode(read_video(file, SIZE, 24).unsqueeze(0)).latent_dist.mode()
    prompt = load_file(data / "prompts/wall.safetensors")
    names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
    assert all(torch.equal(prompt[name], value[0]) for name, value in zip(names, expected, strict=True))
    assert 0 < int(prompt["prompt_embeds_mask_2"].sum()) < 256
    stored = load_file(data / "latents/wall.safetensors")
    latents = stored["latents"]  # [C, F, H, W]
    torch.testing.assert_close(latents, encoded[0] * pipeline.vae.config.scaling_factor)
    if of_image:
        condition = stored["image_condition"]  # [C + 1, F, H, W]; the picture was rounded to 8 bits
        torch.testing.assert_close(condition[:4, 0], latents[:, 0], rtol=0, atol=0.1 * float(latents[:, 0].abs().max()))
        assert (condition[4, 0] == 1).all() and not condition[:, 1:].any()
        assert stored["image_embeds"].shape == (729, 8)
    else:
        assert set(stored) == {"latents"}

    settings = TrainingSettings(steps=1, batch_size=1, precision="fp32")
    report = train_router(checkpoint, data, tmp_path / "run", settings, device="cpu")
    assert report is not None and report.step == 1
