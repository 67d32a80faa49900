# SPDX-License-Identifier: Apache-2.0
"""FLOPs counted from the config, against torch's own counter on the real modules, and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vorta_trt.model import AttentionGeometry, CheckpointReader, RoutedTransformer, RouteTable
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_checkpoint import make_checkpoint, make_router
from vorta_trt.model.transformer_flops import other_flops

# Family, and behind a space which of its models -> sizes of the model and its router, and sizes of the model alone.
SIZES = {
    "wan": ({"layers": 2, "heads": 3, "head_dim": 32}, {"ffn_dim": 160, "text_dim": 48}),
    "wan embedding": ({"layers": 2, "heads": 3, "head_dim": 32}, {"ffn_dim": 160, "image": "embedding"}),
    "hunyuan_video": (
        {"layers": 2, "single_layers": 3, "heads": 3, "head_dim": 32},
        {"text_dim": 48, "pooled_dim": 24},
    ),
    "hunyuan_video_15": (
        {"layers": 2, "heads": 3, "head_dim": 32},
        {"text_dim": 48, "glyph_dim": 24, "image_dim": 16, "channels": 4, "task": "i2v", "meanflow": True},
    ),
}


@pytest.mark.parametrize("has_router", [True, False])
@pytest.mark.parametrize("name", SIZES)
def test_equals_what_torch_counts(name: str, has_router: bool, tmp_path: Path) -> None:
    """torch does not know the custom operator, so what it counts is everything but the routed attention."""
    family = name.partition(" ")[0]
    sizes, others = SIZES[name]
    with CheckpointReader(make_checkpoint(tmp_path / "model", family, **sizes, **others)) as reader:
        geometry = AttentionGeometry.for_video(29, 96, 128, family, config=reader.config)
    router = make_router(tmp_path / "router", geometry, family, **sizes) if has_router else None
    model = RoutedTransformer.from_pretrained(tmp_path / "model", router, geometry=geometry)
    inputs = model.inputs(1, 0)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        model(**inputs)
    counted = other_flops(family, model.config, geometry, has_router=has_router)
    assert sum(counted.values()) == counter.get_total_flops()


def test_wan_14b_by_hand() -> None:
    geometry = AttentionGeometry.for_video(77, 720, 1280, "wan")
    config = {
        "num_attention_heads": 40, "attention_head_dim": 128, "num_layers": 40, "ffn_dim": 13824, "freq_dim": 256,
        "text_dim": 4096, "in_channels": 16, "out_channels": 16, "patch_size": (1, 2, 2), "image_dim": None,
        "pos_embed_seq_len": None,
    }  # fmt: skip
    parts = other_flops("wan", config, geometry)
    assert parts["projections"] == 40 * 8 * 72000 * 5120**2
    assert parts["feed_forward"] == 40 * 4 * 72000 * 5120 * 13824
    assert parts["cross_attention"] == 40 * (4 * 72000 * 5120**2 + 4 * 512 * 5120**2 + 4 * 72000 * 512 * 5120)
    assert sum(parts.values()) < 1.01 * (parts["projections"] + parts["feed_forward"] + parts["cross_attention"])


def test_unknown_family() -> None:
    with pytest.raises(ValueError, match="family 'sora': must be one of 'wan', 'hunyuan_video'"):
        other_flops("sora", {}, AttentionGeometry.for_video(77, 720, 1280, "wan"))


def test_the_route_table_adds_it_to_its_attention(tmp_path: Path) -> None:
    geometry = AttentionGeometry.for_video(29, 96, 128, "wan")
    sizes = {"layers": 2, "heads": 3, "head_dim": 32}
    make_wan_checkpoint(tmp_path / "model", **sizes)
    router = make_router(tmp_path / "router", geometry, **sizes)
    model = RoutedTransformer.from_pretrained(tmp_path / "model", router)
    table = RouteTable.from_model(model, [1000.0, 500.0, 1.0])
    other = sum(other_flops("wan", model.config, geometry).values())
    assert table.total_dense_flops == 3 * (table.dense_flops + other)
    assert table.total_routed_flops == pytest.approx(float(table.flops_per_step().sum()) + 3 * other)
    assert table.total_saved == pytest.approx(1 - table.total_routed_flops / table.total_dense_flops)
    assert table.total_saved < table.saved
