# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vorta_trt.model import Router, hard_routes


def test_router_is_a_softmax_of_a_linear_of_silu(normal: Callable[..., Tensor]) -> None:
    router = Router(8, 5)
    assert {name: tuple(value.shape) for name, value in router.state_dict().items()} == {
        "linear.weight": (15, 8),
        "linear.bias": (15,),
    }
    temb = normal(2, 8)
    scores = router(temb)
    logits = (temb * torch.sigmoid(temb)) @ router.linear.weight.T + router.linear.bias
    torch.testing.assert_close(scores, logits.view(2, 5, 3).softmax(-1))
    assert scores.dtype == torch.float32


def test_router_computes_in_float32_whatever_it_is_given(normal: Callable[..., Tensor]) -> None:
    router = Router(8, 5)
    temb = normal(2, 8, dtype=torch.bfloat16)
    assert torch.equal(router(temb), router(temb.float()))
    assert router.to(torch.bfloat16)(temb).dtype == torch.float32


def test_best_score_wins() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.3, 0.2, 0.5]])
    assert hard_routes(scores, 0.0).tolist() == [0, 1, 2]
    assert hard_routes(scores, 0.0).dtype == torch.int32


def test_ties_go_to_the_lower_id() -> None:
    scores = torch.tensor([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4], [0.4, 0.2, 0.4], [1 / 3] * 3])
    assert hard_routes(scores, 0.0).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("tau", "routes"), [(0.0, [1, 2]), (0.5, [1, 2]), (0.5001, [0, 2]), (0.75, [0, 2]), (1.1, [0, 0])]
)
def test_below_the_threshold_is_full(tau: float, routes: list[int]) -> None:
    scores = torch.tensor([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]])
    assert hard_routes(scores, tau).tolist() == routes
    assert hard_routes(scores, torch.tensor([tau])).tolist() == routes


def test_scores_that_are_no_numbers_are_full() -> None:
    assert hard_routes(torch.full((2, 3), torch.nan), 0.0).tolist() == [0, 0]


def test_override() -> None:
    scores = torch.tensor([[[0.1, 0.8, 0.1]] * 4] * 2)  # [B, N, 3]
    override = torch.tensor([-1, 0, 2, 1], dtype=torch.int32)
    assert hard_routes(scores, 0.3, override).tolist() == [[1, 0, 2, 1]] * 2
    assert hard_routes(scores, 1.1, override).tolist() == [[0, 0, 2, 1]] * 2


def test_equals_the_argmax(normal: Callable[..., Tensor]) -> None:
    scores = normal(100, 7, 3).softmax(-1)
    best, expected = scores.max(-1)
    assert torch.equal(hard_routes(scores, 0.5).long(), torch.where(best < 0.5, 0, expected))
