# SPDX-License-Identifier: Apache-2.0
"""Whole videos of four processes against one: text of rank 0, passes and shares at once, the VAE in rows or tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vorta_trt.model.random_checkpoint import make_checkpoint
from vorta_trt.model.random_pipeline import complete_pipeline

from ...ranks import Pool
from ...tiny import HUNYUAN_VIDEO, SIZE, WAN

GUIDED = {"wan": {"guidance_scale": 5.0}, "hunyuan_video": {"true_cfg_scale": 3.0}}
SIZES = {"wan": WAN, "hunyuan_video": HUNYUAN_VIDEO}


@pytest.mark.parametrize(
    ("family", "guidance", "params"),
    [
        ("wan", 2, {**GUIDED["wan"], "negative_prompt": "blue"}),
        ("wan", 1, {"guidance_scale": 1.0, "dense_first": 1}),
        ("hunyuan_video", 2, {**GUIDED["hunyuan_video"], "cache": "broadcast"}),
    ],
)
def test_a_video_of_four_processes(
    pool: Pool, tmp_path: Path, family: str, guidance: int, params: dict[str, Any]
) -> None:
    folder = complete_pipeline(make_checkpoint(tmp_path / "checkpoint", family, **SIZES[family] | {"heads": 4}))
    options = {"family": family, "size": SIZE, "params": params}
    for distance, launches, alone in pool("videos", 4, folder=str(folder), guidance=guidance, options=options):
        assert distance <= 1  # of 255, where a sum is rounded otherwise
        assert launches * guidance == alone
