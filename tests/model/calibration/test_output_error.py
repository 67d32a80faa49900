# SPDX-License-Identifier: Apache-2.0
"""Errors behind the output projection, against the projection itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vorta_trt.model.calibration import measure
from vorta_trt.model.calibration.measure import heads_at_once, squares_by_head, squares_of_layer

ROWS, VIDEO, HEADS, HEAD_DIM, DIM = 50, 41, 3, 8, 24


def projected(rows: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """[R, N * D] -> [R, E]"""
    return torch.cat([rows[:VIDEO] @ weights[0].T, rows[VIDEO:] @ weights[1].T])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heads_and_layers(dtype: torch.dtype, normal: Callable[..., Tensor]) -> None:
    rows = normal(ROWS, HEADS, HEAD_DIM, dtype=dtype)
    weights = (normal(DIM, HEADS * HEAD_DIM, dtype=dtype), normal(DIM, HEADS * HEAD_DIM, dtype=dtype))
    tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": 0}
    found = squares_by_head(rows, weights, slice(0, HEADS), VIDEO)
    assert found.dtype == torch.float64
    for head in range(HEADS):
        alone = torch.zeros_like(rows)
        alone[:, head] = rows[:, head]
        expected = projected(alone.flatten(1), weights).double().square().sum()
        torch.testing.assert_close(found[head], expected, **tolerance)
    torch.testing.assert_close(squares_by_head(rows[:, 1:], weights, slice(1, HEADS), VIDEO), found[1:], **tolerance)
    expected = projected(rows.flatten(1), weights).double().square().sum()
    torch.testing.assert_close(squares_of_layer(rows, weights, VIDEO), expected, **tolerance)


def test_a_head_that_the_projection_drops_costs_nothing(normal: Callable[..., Tensor]) -> None:
    weight = normal(DIM, HEADS * HEAD_DIM)
    weight[:, HEAD_DIM : 2 * HEAD_DIM] = 0
    weight[:, 2 * HEAD_DIM :] *= 1e-3
    head = normal(ROWS, 1, HEAD_DIM).expand(-1, HEADS, -1)  # all heads are equally wrong
    first, second, third = squares_by_head(head, (weight, weight), slice(0, HEADS), ROWS).tolist()
    assert second == 0
    assert 0 < third < 1e-4 * first


def test_rows_in_parts(normal: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = normal(ROWS, HEADS, HEAD_DIM).bfloat16()
    weight = normal(DIM, HEADS * HEAD_DIM).bfloat16()
    whole = squares_of_layer(rows, (weight, weight), ROWS)
    monkeypatch.setattr(measure, "ROWS_BYTES", 4 * DIM * 7)
    torch.testing.assert_close(squares_of_layer(rows, (weight, weight), ROWS), whole, rtol=1e-5, atol=0)
    exact = (rows.double().flatten(1) @ weight.double().T).square().sum()
    torch.testing.assert_close(whole, exact, rtol=5e-3, atol=0)


def test_heads_at_once() -> None:
    assert heads_at_once(72_000, 128) == 7  # of Wan 14B at 720p
    assert heads_at_once(10**9, 128) == 1
