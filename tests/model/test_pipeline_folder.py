# SPDX-License-Identifier: Apache-2.0
"""Components of a pipeline folder whose files do not fit together are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.pipeline_folder import load_pipeline

if TYPE_CHECKING:
    from ..tiny import Tiny


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vae", {"num_res_blocks": 3}, "weights in vae/ are not those of its config.json: .* differ, first .*resnets"),
        (
            "vae",
            {"dim_mult": [1, 1], "temperal_downsample": [True]},
            "weights in vae/ are not those of its config.json",
        ),
        ("vae", {"num_res_blocks": 2**31}, "num_res_blocks 2147483648 is nothing that AutoencoderKLWan takes"),
        ("vae", {"num_res_blocks": "2"}, "num_res_blocks '2' is nothing that AutoencoderKLWan takes"),
        (
            "vae",
            {"temperal_downsample": [10**30, True]},
            "temperal_downsample .* is nothing that Auto",
        ),
        ("text_encoder", {"num_layers": 3}, "weights in text_encoder/ are not those of its config.json: .* differ"),
        ("text_encoder", {"num_layers": 2**31}, "num_layers 2147483648: must be at most 1000"),
    ],
)
def test_configs_that_are_not_of_the_weights(
    tiny_wan: Tiny, tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    checkpoint = Path(shutil.copytree(tiny_wan.checkpoint, tmp_path / "checkpoint"))
    file = checkpoint / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        config = json.loads((checkpoint / "transformer" / "config.json").read_text())
        load_pipeline(checkpoint, get_family("wan"), config, torch.float32, purpose="a test")


def test_a_variant_of_the_parts_that_have_one(tiny_wan: Tiny, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_wan.checkpoint, tmp_path / "models--Owner--Tiny" / "snapshots" / "1"))
    encoder = checkpoint / "text_encoder"
    (encoder / "model.safetensors").rename(encoder / "model.fp16.safetensors")
    config = json.loads((checkpoint / "transformer" / "config.json").read_text())
    family = get_family("wan")
    with pytest.raises(FileNotFoundError, match="text_encoder lacks text_encoder/model.safetensors"):
        load_pipeline(checkpoint, family, config, torch.float32, purpose="a test")
    pipeline = load_pipeline(
        tmp_path / "models--Owner--Tiny", family, config, torch.float32, purpose="a test", variant="fp16"
    )
    whole = load_pipeline(tiny_wan.checkpoint, family, config, torch.float32, purpose="a test")
    states = pipeline.text_encoder.state_dict(), whole.text_encoder.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
