# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from vorta_trt.model import AttentionGeometry
from vorta_trt.model.boxes import box_centre
from vorta_trt.model.indices import bucket_tables, tile_of_token, tile_order, window_groups, window_start, window_table

GEOMETRY = AttentionGeometry((4, 6, 8), (2, 3, 2), (1, 3, 3), (2, 3, 2), 6)


def test_tiles_in_raster_order_inside_and_out() -> None:
    order = tile_order(GEOMETRY).view(2 * 2 * 4, 12)
    assert order[0].tolist() == [0, 1, 8, 9, 16, 17, 48, 49, 56, 57, 64, 65]
    assert order[1][0] == 2 and order[4][0] == 24 and order[8][0] == 96
    assert torch.equal(order.flatten().sort().values, torch.arange(GEOMETRY.video_tokens))


def test_shorter_tiles_at_the_end_of_an_axis() -> None:
    geometry = AttentionGeometry((1, 3, 5), (1, 2, 3), (1, 1, 1), (1, 2, 3), 3)
    assert geometry.tiles == (1, 2, 2)
    assert tile_order(geometry).tolist() == [0, 1, 2, 5, 6, 7, 3, 4, 8, 9, 10, 11, 12, 13, 14]
    assert tile_of_token(geometry).bincount().tolist() == [6, 4, 3, 2]


def test_bucket_centre() -> None:
    ((kind, table),) = bucket_tables(GEOMETRY)
    assert table.shape == (2 * 2 * 4, 12) and (kind.shape, kind.boxes) == ((2, 3, 2), 16)
    frame, row, column = 1, 1, 1  # (t//2, h//2, w//2) of (2, 3, 2)
    assert table[0][box_centre(kind.shape)] == (frame * 6 + row) * 8 + column


def test_buckets_of_every_shape() -> None:
    geometry = AttentionGeometry((1, 3, 5), (1, 1, 1), (1, 1, 1), (1, 2, 3), 3)
    tables = {kind.shape: table.tolist() for kind, table in bucket_tables(geometry)}
    assert tables == {
        (1, 2, 3): [[0, 1, 2, 5, 6, 7]],
        (1, 2, 2): [[3, 4, 8, 9]],
        (1, 1, 3): [[10, 11, 12]],
        (1, 1, 2): [[13, 14]],
    }
    assert [geometry.keep_of(size) for size in (6, 4, 3, 2, 1)] == [3, 2, 1, 1, 1]


def test_window_is_clamped_to_the_grid() -> None:
    assert window_start(GEOMETRY, (0, 0, 0)) == (0, 0, 0)
    assert window_start(GEOMETRY, (1, 1, 2)) == (1, 0, 1)
    assert window_start(GEOMETRY, (1, 1, 3)) == (1, 0, 1)
    table = window_table(GEOMETRY)
    assert table.shape == (16, 1 * 2 * 3)  # two tiles of height, fewer than the window: the whole axis
    assert table[0].tolist() == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("geometry", [GEOMETRY, AttentionGeometry((5, 9, 7), (2, 2, 2), (1, 3, 3), (1, 1, 1), 1)])
def test_groups_cover_every_query_once_and_agree_with_the_window_table(geometry: AttentionGeometry) -> None:
    queries = torch.cat([group for group, _ in window_groups(geometry)])
    assert torch.equal(queries.sort().values, torch.arange(geometry.video_tokens))
    tile_of, windows = tile_of_token(geometry), window_table(geometry)
    for group, keys in window_groups(geometry):
        for tile in tile_of[group].unique().tolist():
            assert torch.equal(torch.isin(tile_of, windows[tile]).nonzero().flatten(), keys)
