# SPDX-License-Identifier: Apache-2.0
"""Models that are exported for several GPUs: the one file gives every rank the whole sample, in ONNX Runtime.

It runs all of the graph but the exchanges, see `ranks_in_onnxruntime.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vorta_trt.export import export_onnx
from vorta_trt.export.names import OPSET_17
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.parallel.rank_input import InputShards
from vorta_trt.model.parallel.shards import TokenShards

from ..kept import Kept
from ..tiny import Tiny, make_tiny
from .ranks_in_onnxruntime import CutFile

RANKS = 3  # as many as a tiny model has heads


def model_on(tiny: Tiny, grid: tuple[int, int, int]) -> RoutedTransformer:
    geometry = AttentionGeometry.for_grid(grid, tiny.family, text_tokens=tiny.geometry.text_tokens)
    return tiny.model(geometry=geometry).eval()


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        # 70 tokens: shards of 24, the last with two rows of padding; rank 1 has tokens of both frames.
        ("wan ti2v", (2, 5, 7)),
        ("hunyuan_video", (2, 5, 7)),
        ("hunyuan_video token_replace", (4, 5, 3)),  # rank 0 has tokens of the first frame and of the second
    ],
)
def test_every_rank_gives_the_whole_sample(kept: Kept, tmp_path: Path, name: str, grid: tuple[int, int, int]) -> None:
    model = model_on(make_tiny(kept, name), grid)
    assert model.geometry is not None
    inputs = model.inputs(2, seed=4)
    orders = torch.tensor([[2, 0, 1], [1, 0, 2], [0, 2, 1]], dtype=torch.int32)[: model.num_layers]
    with torch.no_grad():
        sample, routes = model(**inputs)
    file = CutFile(export_onnx(model, tmp_path / "model.onnx", ulysses=RANKS), RANKS, model.geometry)
    for mine, my_routes in file.run(inputs, orders):
        assert my_routes.equal(routes)
        assert (mine - sample).abs().max() < 1e-4 * sample.abs().max()


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 7])
@pytest.mark.parametrize(("tokens", "first"), [(12, 3), (12, 4), (12, 6), (13, 5), (20, 20), (5, 1)])
def test_every_row_has_the_modulation_of_its_token(tokens: int, first: int, ranks: int) -> None:
    """As `TokenShards` has it, which knows its rank; rows of padding are nobody's."""
    for rank in range(ranks):
        known = TokenShards(tokens, ranks, rank)
        shards = InputShards(tokens, ranks, input=torch.tensor([rank], dtype=torch.int32))
        modulated = shards.of_first(first, torch.tensor([1]), torch.tensor([0]))
        rows = [int(modulated[row >= shards.first_tokens(first)]) for row in range(known.count)]
        assert rows == [int(row < known.first_tokens(first)) for row in range(known.count)]


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
    with pytest.raises(ValueError, match="2 GPUs for 3 heads: every GPU must have as many heads; use one of 1, 3"):
        export_onnx(tiny_wan.model(materialize=False), tmp_path / "model.onnx", ulysses=2)
    assert not [*tmp_path.iterdir()]


def test_more_gpus_than_frames_are_refused_where_text_follows_a_first_frame_with_a_timestep(
    kept: Kept, tmp_path: Path
) -> None:
    """Rank 0 would have nothing but the first frame, and text of the other timestep."""
    model = model_on(make_tiny(kept, "hunyuan_video token_replace"), (2, 3, 3))
    with pytest.raises(ValueError, match="the first 9 of 18 tokens, .* would fill 1 of 3 GPUs.*for at most 2 GPUs"):
        export_onnx(model, tmp_path / "model.onnx", ulysses=RANKS)
    assert not [*tmp_path.iterdir()]
