# SPDX-License-Identifier: Apache-2.0
"""What an engine for several GPUs is given besides its caller's inputs."""

from __future__ import annotations

import pytest
import torch

from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.model.parallel.placement import BranchCosts, head_order
from vorta_trt.plugins import load_library
from vorta_trt.runtime.parallel import engine_ranks
from vorta_trt.runtime.parallel.engine_ranks import EngineRank

from ...tiny import Tiny

RANKS = 3


@pytest.fixture
def metadata(tiny_wan: Tiny) -> ModelMetadata:
    from vorta_trt.export import read_metadata

    return read_metadata(tiny_wan.onnx).model_copy(update={"ulysses": RANKS})


def test_heads_are_placed_by_the_routes_of_the_call_before(
    metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_ranks, "rank_of", lambda library, ranks: ranks - 1)
    rank = EngineRank(load_library(), metadata, "several.bundle", "cuda:0")
    assert rank.inputs()["rank"].equal(torch.tensor([2], dtype=torch.int32))
    assert rank.inputs()["head_orders"].equal(torch.arange(3, dtype=torch.int32).expand(2, 3))
    routes = torch.tensor([[[0, 1, 2]], [[2, 1, 0]]], dtype=torch.int32)  # [L, B, N]
    rank.place(routes)
    orders = rank.inputs()["head_orders"]
    assert orders.dtype == torch.int32
    assert orders.equal(head_order(routes, BranchCosts.of(metadata.attention_geometry), RANKS).int())
