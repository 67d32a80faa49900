# SPDX-License-Identifier: Apache-2.0
"""What is measured: whole transformers at their published sizes with random weights, and the routes of their heads.

Letters: L layers, N heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.benchmarks.cases import FULL_SHARE
from vorta_trt.model import AttentionGeometry, Branch
from vorta_trt.model.configs import typed_config
from vorta_trt.model.families import get_family
from vorta_trt.model.transformer_flops import other_flops

DENSE = "dense"
MIXES = ("30/70", "50/50", "70/30")  # coreset / sliding, in percent of the heads that are not full


@dataclass(frozen=True)
class StepCase:
    """One model at one video size, batch 1.

    Attributes:
        name: Name of the model.
        family: Name of its family.
        config: The diffusers transformer's, where it differs from the defaults: those of Wan 2.1 14B, HunyuanVideo and
            HunyuanVideo 1.5 from image to video.
        video: Frames, height and width in pixels.
        passes: Passes of the transformer in a step of ordinary sampling: 2 with classifier-free guidance, 1 where
            guidance is an input of the model.
        shift: Shift of the schedule.
    """

    name: str
    family: str
    config: Mapping[str, Any]
    video: tuple[int, int, int]
    passes: int
    shift: float

    @cached_property
    def geometry(self) -> AttentionGeometry:
        """The geometry that the family has at this video size."""
        return AttentionGeometry.for_video(*self.video, self.family, config=self._whole_config)

    @property
    def heads(self) -> int:
        """N."""
        return int(self._whole_config["num_attention_heads"])

    @cached_property
    def _whole_config(self) -> dict[str, Any]:
        return typed_config(get_family(self.family).diffusers_transformer(), self.config, Path(self.name))

    def with_layers(self, layers: int) -> StepCase:
        """This model with fewer layers. A third of HunyuanVideo's layers are dual-stream, as published."""
        if layers < 1:
            raise ValueError(f"layers {layers}: must be at least 1; use 4")
        if len(get_family(self.family).router_stacks) == 1:
            return replace(self, config={**self.config, "num_layers": layers})
        dual = max(1, round(layers / 3))
        return replace(self, config={**self.config, "num_layers": dual, "num_single_layers": layers - dual})

    def flops(self, config: Mapping[str, Any], routes: Tensor) -> float:
        """Counts FLOPs of one pass with these routes, int32 [L, N]; `config` is the whole one, with the defaults."""
        other = other_flops(self.family, config, self.geometry, has_router=True)
        head_dim = int(config["attention_head_dim"])
        attention = sum(
            int((routes == int(branch)).sum()) * self.geometry.attention_flops(branch, head_dim) for branch in Branch
        )
        return float(sum(other.values()) + attention)

    def layers_and_heads(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Counts routed layers and heads; `config` is the whole one, with the defaults."""
        return sum(get_family(self.family).stacks(config).values()), int(config["num_attention_heads"])

    def __str__(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.video))}, {self.geometry.tokens:,} tokens"


CASES = {
    case.name: case
    for case in (
        StepCase(
            "wan-1.3b",
            "wan",
            {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
            (81, 480, 832),
            passes=2,
            shift=3.0,
        ),
        StepCase("wan-14b", "wan", {}, (77, 720, 1280), passes=2, shift=5.0),
        # A pass of either expert, at the size of MLPerf Inference v6.0.
        StepCase("wan2.2-a14b", "wan", {}, (81, 720, 1280), passes=2, shift=5.0),
        StepCase("wan2.2-i2v-a14b", "wan", {"in_channels": 36}, (81, 720, 1280), passes=2, shift=5.0),
        StepCase(
            "wan2.2-ti2v-5b",
            "wan",
            {
                **{"num_layers": 30, "num_attention_heads": 24, "ffn_dim": 14336},
                **{"in_channels": 48, "out_channels": 48},
            },
            (121, 704, 1280),
            passes=2,
            shift=5.0,
        ),
        StepCase("hunyuan-video", "hunyuan_video", {}, (117, 720, 1280), passes=1, shift=7.0),
        StepCase("hunyuan-video-1.5", "hunyuan_video_15", {"task_type": "t2v"}, (121, 720, 1280), passes=2, shift=9.0),
    )
}


def select_case(name: str, layers: int | None = None) -> StepCase:
    """Raises ValueError for an unknown name."""
    if name not in CASES:
        raise ValueError(f"model {name!r}: must be one of {', '.join(CASES)}")
    return CASES[name] if layers is None else CASES[name].with_layers(layers)


def mixed_routes(mix: str, layers: int, heads: int, seed: int = 0) -> Tensor:
    """A branch for every head, int32 [L, N], spread at random over all layers.

    Args:
        mix: "dense"; or the percentages of full, coreset and sliding heads, "10/45/45"; or those of coreset and sliding
            among the heads that are not full, "30/70", of which 0.2 % are full, at least one.
        layers: L.
        heads: N.
        seed: Seed of the order.

    Raises:
        ValueError: `mix` is none of them.
    """
    total = layers * heads
    if mix == DENSE:
        return torch.zeros(layers, heads, dtype=torch.int32)
    parts = mix.split("/")
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts) or sum(map(int, parts)) != 100:
        raise ValueError(
            f"mix {mix!r}: must be 'dense', percent of coreset and sliding heads, e.g. 50/50, or percent of full, "
            f"coreset and sliding heads, e.g. 10/45/45"
        )
    if len(parts) == 3:
        full, coreset = (round(total * int(part) / 100) for part in parts[:2])
    else:
        full = max(1, round(FULL_SHARE * total))
        coreset = round((total - full) * int(parts[0]) / 100)
    routes = torch.full((total,), int(Branch.SLIDING), dtype=torch.int32)  # [L N]
    routes[:full] = int(Branch.FULL)
    routes[full : full + coreset] = int(Branch.CORESET)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return routes[order].view(layers, heads)
