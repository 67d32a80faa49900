# SPDX-License-Identifier: Apache-2.0
"""Models that are exported for several GPUs: the graph that is traced once gives every rank the whole sample.

Threads stand in for ranks: they run the traced program at once, each with its own `rank`, and meet in the operators.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.export import export_onnx
from vorta_trt.export.names import OPSET_17
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.export.tracing import rank_inputs
from vorta_trt.model import AttentionGeometry, RoutedTransformer, routed_attention
from vorta_trt.model.constants import RANK_INPUTS
from vorta_trt.model.parallel import exchange
from vorta_trt.model.parallel import ulysses_attention as operators
from vorta_trt.model.parallel.rank_input import RankInput
from vorta_trt.model.parallel.shards import TokenShards

from ..tiny import Tiny

RANKS = 3  # as many as a tiny model has heads
GRID = (2, 5, 7)  # 70 tokens: shards of 24, the last with two rows of padding


class Meeting:
    """Threads that stand in for the ranks of a group: what each gives, all see."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(RANKS, timeout=60)
        self.rank = threading.local()
        self.given: list[Any] = [None] * RANKS

    def share(self, mine: Any) -> list[Any]:
        self.given[self.rank.value] = mine
        self.barrier.wait()
        everyone = list(self.given)
        self.barrier.wait()
        return everyone

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        routes: Tensor,
        head_order: Tensor,
        geometry: AttentionGeometry,
        group: None,
        text_length: Tensor | None,
        scale: float,
    ) -> Tensor:
        """`sharded_attention` of whole tokens."""
        assert sorted(head_order.tolist()) == [0, 1, 2]
        video = geometry.video_tokens
        shards = [TokenShards(video, RANKS, rank) for rank in range(RANKS)]
        everyone = self.share((query, key, value))
        whole = [
            torch.cat([*(parts[i][:, : s.count] for parts, s in zip(everyone, shards, strict=True)),
                       everyone[0][i][:, shards[0].rows :]], dim=1)
            for i in range(3)
        ]  # fmt: skip
        out = routed_attention(whole[0], whole[1], whole[2], routes, geometry, text_length, scale)
        return shards[self.rank.value].own(out).clone()

    def gather(self, rows: Tensor, group: Any) -> Tensor:
        return torch.stack(self.share(rows))

    def run(self, call: Callable[[int], Any]) -> list[Any]:
        """The results of `call(rank)` in a thread for each rank."""
        found: list[Any] = [None] * RANKS

        def body(rank: int) -> None:
            self.rank.value = rank
            try:
                found[rank] = call(rank)
            except BaseException as error:
                found[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=body, args=(rank,)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in found:
            if isinstance(result, BaseException):
                raise result
        return found


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Meeting:
    made = Meeting()
    monkeypatch.setattr(operators, "_group", lambda ranks: None)
    monkeypatch.setattr(operators, "sharded_attention", made.attention)
    monkeypatch.setattr(exchange, "gather", made.gather)
    return made


def model_of(tiny: Tiny) -> RoutedTransformer:
    geometry = AttentionGeometry.for_grid(GRID, tiny.family, text_tokens=tiny.geometry.text_tokens)
    return tiny.model(geometry=geometry, block_ops="plugin").eval()


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_every_rank_of_the_traced_graph_gives_the_whole_sample(
    name: str, request: pytest.FixtureRequest, meeting: Meeting
) -> None:
    model = model_of(request.getfixturevalue(f"tiny_{name}"))
    inputs = model.inputs(2)
    with torch.no_grad():
        sample, routes = model(**inputs)
        RankInput.install(model, RANKS)
        program = torch.export.export(model, (), inputs, strict=False)
    assert set(rank_inputs(model)) == set(RANK_INPUTS)

    def call(rank: int) -> Any:
        module: Any = program.module()
        module.rank = torch.tensor([rank], dtype=torch.int32)
        orders = [[2, 0, 1], [1, 0, 2], [0, 2, 1]][: model.num_layers]
        module.head_orders = torch.tensor(orders, dtype=torch.int32)
        with torch.no_grad():
            return module(**inputs)

    for mine, my_routes in meeting.run(call):
        assert my_routes.equal(routes)
        assert (mine - sample).abs().max() < 1e-4 * sample.abs().max()


def test_the_file_says_for_how_many_gpus_it_is(tiny_wan: Tiny, tmp_path: Path) -> None:
    """In opset 17, for TensorRT 8.6; the build with TensorRT-RTX reads one of opset 23."""
    model = tiny_wan.model(materialize=False)
    exported = read_onnx(export_onnx(model, tmp_path / "model.onnx", "fp16", opset=OPSET_17, ulysses=RANKS))
    assert exported.metadata is not None and exported.metadata.ulysses == RANKS
    assert [str(info) for info in exported.metadata.inputs[-2:]] == ["rank int32[1]", "head_orders int32[2, 3]"]
    assert [node.operator for node in exported.routed_nodes] == ["UlyssesAttention"] * 2
    assert [node.operator for node in exported.operator_nodes].count("GatherTokens") == 1
    assert "GatherTokens" not in exported.block_operators


def test_gpus_that_do_not_divide_the_heads_are_refused(tiny_wan: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 ranks for 3 heads: every rank must have as many heads; use one of 1, 3"):
        export_onnx(tiny_wan.model(materialize=False), tmp_path / "model.onnx", ulysses=2)
    assert not [*tmp_path.iterdir()]


def test_a_model_with_a_timestep_for_its_first_frame_is_refused(tiny_ti2v: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokens have a timestep of their own"):
        export_onnx(tiny_ti2v.model(materialize=False), tmp_path / "model.onnx", ulysses=RANKS)
    assert not [*tmp_path.iterdir()]
