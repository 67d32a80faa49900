# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo: what a sample must hold, and a whole training run on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, RoutedTransformer, load_router
from vorta_trt.model.families.hunyuan_video.training import HunyuanVideoTraining
from vorta_trt.model.families.training import training_family
from vorta_trt.model.training import LossWeights, TrainingSettings, train_router
from vorta_trt.model.training.data import LatentDataset

from .samples import hunyuan_video_sample, make_hunyuan_video_setup

CONFIG: dict[str, Any] = {
    "text_embed_dim": 16,
    "pooled_projection_dim": 12,
    "guidance_embeds": True,
    "patch_size": 2,
    "patch_size_t": 1,
    "in_channels": 4,
}
SIZE = (9, 64, 96)


@pytest.fixture
def family() -> HunyuanVideoTraining:
    made = training_family("hunyuan_video", CONFIG)
    assert isinstance(made, HunyuanVideoTraining)
    return made


def test_conditions_are_padded(family: HunyuanVideoTraining) -> None:
    tensors = hunyuan_video_sample()
    conditions = family.conditions(tensors)
    assert torch.equal(conditions["prompt_embeds"][:10], tensors["prompt_embeds"])
    assert conditions["prompt_embeds"].shape == (256, 16)
    assert conditions["prompt_attention_mask"].tolist() == [1] * 7 + [0] * 249
    batch = {name: tensor.unsqueeze(0) for name, tensor in conditions.items()}
    inputs = family.model_inputs(torch.zeros(1, 4, 3, 8, 12), torch.tensor([500.0]), batch, torch.bfloat16)
    assert inputs["guidance"].tolist() == [1000.0]
    assert inputs["pooled_projections"].dtype == torch.bfloat16
    grid = AttentionGeometry.for_video(*SIZE, family="hunyuan_video").grid
    assert family.facts.latent_shape(CONFIG, grid) == (4, 3, 8, 12)


def test_the_reference_layout_has_the_pooled_embedding_in_front(family: HunyuanVideoTraining) -> None:
    prompt, mask = torch.randn(1, 257, 16), torch.ones(1, 256)
    conditions = family.conditions(family.reference_conditions(prompt, mask))
    assert torch.equal(conditions["pooled_prompt_embeds"], prompt[0, 0, :12])
    assert torch.equal(conditions["prompt_embeds"], prompt[0, 1:])
    with pytest.raises(ValueError, match="has no prompt_attention_mask"):
        family.reference_conditions(prompt, None)


def test_a_text_mask_that_is_read_must_be_there(family: HunyuanVideoTraining, tmp_path: Path) -> None:
    for kind, tensor in (("latent", torch.zeros(4, 3, 8, 12)), ("prompt_embed", torch.randn(257, 16))):
        (tmp_path / kind).mkdir()
        torch.save(tensor, tmp_path / kind / "cat.pt")
    entry = {"latent_path": "cat.pt", "prompt_embed_path": "cat.pt", "prompt_attention_mask": "cat.pt", "caption": "c"}
    (tmp_path / "videos2caption.json").write_text(json.dumps([entry]))
    dataset = LatentDataset(tmp_path, family, (4, 3, 8, 12))
    bad = dataset.find_bad(lambda what, done, total: None)
    assert "its text mask" in bad[0] and "prompt_attention_mask/cat.pt does not exist" in bad[0]
    (tmp_path / "prompt_attention_mask").mkdir()
    torch.save(torch.ones(256), tmp_path / "prompt_attention_mask/cat.pt")
    assert not dataset.find_bad(lambda what, done, total: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_embeds": torch.zeros(10, 15)}, r"prompt_embeds has shape \(10, 15\)"),
        ({"prompt_attention_mask": torch.ones(9)}, r"prompt_attention_mask has shape \(9,\), must be \(10,\)"),
        ({"prompt_attention_mask": torch.tensor([1, 0, 1, 0, 0, 0, 0, 0, 0, 0])}, "must come first"),
        ({"prompt_attention_mask": torch.zeros(10)}, "must come first"),
        ({"pooled_prompt_embeds": torch.zeros(11)}, r"pooled_prompt_embeds has shape \(11,\), must be \(12,\)"),
    ],
)
def test_conditions_that_do_not_fit(family: HunyuanVideoTraining, changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family.conditions(hunyuan_video_sample(**changes))


def test_training(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    setup = make_hunyuan_video_setup(tmp_path, ["cat"])
    weights = LossWeights(diffusion=0, distillation=20, regularisation=0)
    settings = TrainingSettings(steps=30, batch_size=1, precision="fp32", learning_rate=2e-2, weights=weights)
    report = train_router(setup.checkpoint, setup.data, tmp_path / "run", settings, device="cpu")
    assert report is not None
    assert report.last["distillation"] < 0.5 * report.first["distillation"]
    assert report.last["score_full"] > report.first["score_full"] + 0.1
    loaded = load_router(tmp_path / "run")
    assert (loaded.family, loaded.layers) == ("hunyuan_video", 3)
    assert {name.split(".router.")[0] for name in loaded.state_dict} == {
        "transformer_blocks.0",
        "single_transformer_blocks.0",
        "single_transformer_blocks.1",
    }
    model = RoutedTransformer.from_pretrained(setup.checkpoint, router=tmp_path / "run")
    _, routes = model(**model.inputs())
    assert routes.shape == (3, 1, 2)
