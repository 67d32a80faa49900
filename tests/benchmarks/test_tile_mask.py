# SPDX-License-Identifier: Apache-2.0
"""The sliding branch's mask in tile order, three ways: token by token, as arithmetic, and as block lists."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vorta_trt.benchmarks.cases import SUBJECTS, Case
from vorta_trt.benchmarks.tile_mask import block_lists, mask_function, token_order
from vorta_trt.model import AttentionGeometry


def token_by_token(case: Case) -> Tensor:
    """From the definition: bool [S+T, S+T] over tokens in tile order."""
    geometry = case.geometry
    tiles = [tuple(at // size for at, size in zip(place, geometry.tile, strict=True)) for place in _places(geometry)]

    def window(tile: tuple[int, ...]) -> list[range]:
        ranges = []
        for index, size, count in zip(tile, geometry.window, geometry.tiles, strict=True):
            size = min(size, count)
            centre = min(max(index, size // 2), count - 1 - size // 2)
            ranges.append(range(centre - size // 2, centre + size // 2 + 1))
        return ranges

    seen = torch.zeros(geometry.tokens, geometry.tokens, dtype=torch.bool)
    for query, tile in enumerate(tiles):
        ranges = window(tile)
        seen[query, : len(tiles)] = torch.tensor([
            all(index in axis for index, axis in zip(other, ranges, strict=True)) for other in tiles
        ])  # fmt: skip
    seen[: case.valid, geometry.video_tokens : case.valid] = True
    seen[geometry.video_tokens : case.valid, : case.valid] = True
    order = token_order(geometry)
    return seen[order][:, order]


def _places(geometry: AttentionGeometry) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, geometry.grid)))


def as_arithmetic(case: Case) -> Tensor:
    positions = torch.arange(case.geometry.tokens)
    zero = torch.tensor(0)
    return mask_function(case.geometry, case.text_length)(zero, zero, positions[:, None], positions)


def test_order_puts_a_tile_side_by_side(case: Case) -> None:
    order = token_order(case.geometry)
    assert torch.equal(order.sort().values, torch.arange(case.geometry.tokens))
    places = _places(case.geometry)
    tiles = [tuple(at // size for at, size in zip(places[token], case.geometry.tile, strict=True))
             for token in order[: case.geometry.video_tokens].tolist()]  # fmt: skip
    assert [tile for tile, _ in itertools.groupby(tiles)] == sorted(set(tiles))


def test_arithmetic_is_the_definition(case: Case) -> None:
    assert torch.equal(as_arithmetic(case), token_by_token(case))


@pytest.mark.parametrize("block", [7, 16, 128])
def test_block_lists_cover_the_mask(case: Case, block: int) -> None:
    mask = as_arithmetic(case)
    lists = block_lists(case.geometry, case.text_length, block)
    blocks = -(-case.geometry.tokens // block)
    assert lists.full_counts.shape == lists.partial_counts.shape == (blocks,)
    for row, column in itertools.product(range(blocks), repeat=2):
        part = mask[row * block : (row + 1) * block, column * block : (column + 1) * block]
        full = column in lists.full_indices[row, : lists.full_counts[row]].tolist()
        partial = column in lists.partial_indices[row, : lists.partial_counts[row]].tolist()
        whole = part.shape == (block, block) and bool(part.all())
        assert full == whole
        assert partial == bool(part.any() and not whole)
    for counts, indices in ((lists.full_counts, lists.full_indices), (lists.partial_counts, lists.partial_indices)):
        assert indices.dtype == counts.dtype == torch.int32 and int(indices.max()) < blocks
        for row in range(blocks):
            own = indices[row, : counts[row]].tolist()
            assert own == sorted(set(own))


def test_aligned_tiles_need_no_mask() -> None:
    geometry = SUBJECTS["aligned"].geometry
    lists = block_lists(geometry, 0)
    assert not lists.partial_counts.any()
    assert set(lists.full_counts.tolist()) == {27 * 384 // 128}
