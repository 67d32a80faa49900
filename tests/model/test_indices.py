# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from vorta_trt.model import AttentionGeometry
from vorta_trt.model.indices import bucket_table, tile_order, tile_table, window_groups, window_start, window_table

GEOMETRY = AttentionGeometry((4, 6, 8), (2, 3, 2), (1, 3, 3), (2, 3, 2), 6)


def test_tiles_in_raster_order_inside_and_out() -> None:
    table = tile_table(GEOMETRY)
    assert table.shape == (2 * 2 * 4, 12)
    assert table[0].tolist() == [0, 1, 8, 9, 16, 17, 48, 49, 56, 57, 64, 65]
    assert table[1][0] == 2 and table[4][0] == 24 and table[8][0] == 96
    assert torch.equal(tile_order(GEOMETRY).sort().values, torch.arange(GEOMETRY.video_tokens))


def test_bucket_centre() -> None:
    table = bucket_table(GEOMETRY)
    frame, row, column = 1, 1, 1  # (t//2, h//2, w//2) of (2, 3, 2)
    assert table[0][GEOMETRY.centre] == (frame * 6 + row) * 8 + column


def test_window_is_clamped_to_the_grid() -> None:
    assert window_start(GEOMETRY, (0, 0, 0)) == (0, 0, 0)
    assert window_start(GEOMETRY, (1, 1, 2)) == (1, 0, 1)
    assert window_start(GEOMETRY, (1, 1, 3)) == (1, 0, 1)
    table = window_table(GEOMETRY)
    assert table.shape == (16, 1 * 2 * 3)  # two tiles of height, fewer than the window: the whole axis
    assert table[0].tolist() == [0, 1, 2, 4, 5, 6]


def test_groups_cover_every_query_once_and_agree_with_the_window_table() -> None:
    queries = torch.cat([group for group, _ in window_groups(GEOMETRY)])
    assert torch.equal(queries.sort().values, torch.arange(GEOMETRY.video_tokens))
    tiles, windows = tile_table(GEOMETRY), window_table(GEOMETRY)
    seen = {token: set(tiles[windows[tile]].flatten().tolist()) for tile in range(16) for token in tiles[tile].tolist()}
    for group, keys in window_groups(GEOMETRY):
        assert keys.numel() == GEOMETRY.window_tokens
        for token in group.tolist():
            assert seen[token] == set(keys.tolist())
