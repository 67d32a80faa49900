# SPDX-License-Identifier: Apache-2.0
"""What an engine for several GPUs is given besides its caller's inputs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.export import read_metadata
from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.model.parallel.placement import BranchCosts, head_order
from vorta_trt.plugins import load_library
from vorta_trt.runtime import Engine
from vorta_trt.runtime import engine as engine_module
from vorta_trt.runtime.parallel import engine_ranks
from vorta_trt.runtime.parallel.engine_ranks import EngineRank
from vorta_trt.runtime.target import read_target
from vorta_trt.runtime.tensors import TensorSpec

from ...tiny import Tiny

RANKS = 3
GROUP: Any = object()


@pytest.fixture
def metadata(tiny_wan: Tiny) -> ModelMetadata:
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


@dataclass
class Recorded:
    """An executor that keeps what it is fed, and gives the same routes in every call."""

    routes: torch.Tensor
    inputs: tuple[TensorSpec, ...]
    feeds: list[dict[str, Any]] = field(default_factory=list)
    name = "tensorrt"
    device = "cpu"
    array_kind = "torch"
    outputs = ()

    def run(self, feeds: dict[str, Any], on_gpu: bool) -> dict[str, Any]:
        self.feeds.append(feeds)
        return {"sample": torch.zeros(1), "routes": self.routes}

    def close(self) -> None: ...


def test_an_engine_gives_the_rank_and_the_heads_itself(
    tiny_wan: Tiny, metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = torch.tensor([[[0, 1, 2]], [[2, 1, 0]]], dtype=torch.int32)  # [L, B, N]
    specs = (
        TensorSpec("timestep", "float32", ("batch",)),
        TensorSpec("rank", "int32", (1,)),
        TensorSpec("head_orders", "int32", (2, 3)),
    )
    executor = Recorded(routes, specs)
    monkeypatch.setattr(engine_ranks, "rank_of", lambda library, ranks: 1)
    rank = EngineRank(load_library(), metadata, "several.bundle", "cuda:0")
    target = replace(read_target(tiny_wan.onnx), metadata=metadata)
    monkeypatch.setattr(engine_module, "read_target", lambda path, **options: target)
    monkeypatch.setattr(engine_module, "_rank", lambda *arguments: rank)
    monkeypatch.setattr(engine_module, "_load", lambda *arguments: executor)
    given = torch.tensor([[2, 1, 0], [1, 0, 2]], dtype=torch.int32)
    with Engine("several.bundle") as engine:
        engine(timestep=np.ones(1, np.float32))
        engine(timestep=torch.ones(1))
        engine(timestep=torch.ones(1), head_orders=given)
    placed = head_order(routes, BranchCosts.of(metadata.attention_geometry), RANKS).int()
    assert not placed.equal(torch.arange(3, dtype=torch.int32).expand(2, 3))
    assert [feeds["rank"].tolist() for feeds in executor.feeds] == [[1]] * 3
    orders = [feeds["head_orders"].tolist() for feeds in executor.feeds]
    assert orders == [[[0, 1, 2]] * 2, placed.tolist(), given.tolist()]


class Joined:
    """A communicator that counts."""

    def __init__(self) -> None:
        self.watched_runs = self.aborted = 0

    def watched(self) -> nullcontext[None]:
        self.watched_runs += 1
        return nullcontext()

    def abort(self) -> None:
        self.aborted += 1


def test_runs_are_watched_and_an_error_leaves_at_once(
    tiny_wan: Tiny, metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks may wait for ever for one that has failed, and it for them."""
    joined = Joined()
    monkeypatch.setattr(engine_ranks, "joined", lambda group: group)
    monkeypatch.setattr(engine_ranks.GroupCommunicator, "of", lambda *arguments: joined)
    monkeypatch.setattr(engine_ranks.GroupCommunicator, "find", lambda *arguments: joined)
    monkeypatch.setattr(engine_ranks, "rank_of", lambda library, ranks: 1)
    rank = EngineRank(load_library(), metadata, "several.bundle", "cuda:0")
    target = replace(read_target(tiny_wan.onnx), metadata=metadata)
    executor = Recorded(torch.zeros(2, 1, 3, dtype=torch.int32), (TensorSpec("timestep", "float32", ("batch",)),))
    monkeypatch.setattr(engine_module, "read_target", lambda path, **options: target)
    monkeypatch.setattr(engine_module, "_rank", lambda *arguments: rank)
    monkeypatch.setattr(engine_module, "_load", lambda *arguments: executor)
    with engine_ranks.engine_ranks(load_library(), GROUP, torch.device("cpu"), 9.0), Engine("several.bundle") as engine:
        engine(timestep=np.ones(1, np.float32))
        engine(timestep=np.ones(1, np.float32))
    assert (joined.watched_runs, joined.aborted) == (2, 0)
    with pytest.raises(KeyError), engine_ranks.engine_ranks(load_library(), GROUP, torch.device("cpu")):
        raise KeyError
    assert joined.aborted == 1
