# SPDX-License-Identifier: Apache-2.0
"""Grids that tile and bucket need not divide: every form of the attention in torch against a dense float64 mask."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, Branch, routed_attention, routed_attention_reference
from vorta_trt.model.branch_attention import branch_attention, mixed_attention
from vorta_trt.model.indices import tile_of_token

from ..mask_oracle import Inputs, Problem, choose, corner_problems, random_inputs, random_problem, sliding_mask

RANDOM_PROBLEMS = 40
#: Half a unit in the last place, or what float32 sums lose.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def drawn(problem: Problem, seed: int, dtype: torch.dtype) -> Inputs:
    return random_inputs(problem, seed, lambda numbers: torch.from_numpy(numbers).to(dtype).double().numpy())


def tensors(inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.from_numpy(part).to(dtype) for part in (inputs.query, inputs.key, inputs.value))
    return query, key, value


def text_length(inputs: Inputs, geometry: AttentionGeometry) -> Tensor | None:
    return torch.tensor(inputs.lengths, dtype=torch.int32) if geometry.text_tokens else None


def check_routed(attend: Callable[..., Tensor], problem: Problem, seed: int, dtype: torch.dtype) -> None:
    geometry = AttentionGeometry(**asdict(problem))
    inputs = drawn(problem, seed, dtype)
    routes = torch.from_numpy(inputs.routes)
    out = attend(*tensors(inputs, dtype), routes, geometry, text_length(inputs, geometry), inputs.scale)
    assert out.dtype == dtype
    np.testing.assert_allclose(
        out.double().numpy(), inputs.expected, rtol=TOLERANCE[dtype], atol=min(1e-5, TOLERANCE[dtype])
    )


@pytest.mark.parametrize("problem", corner_problems(), ids=str)
@pytest.mark.parametrize("attend", [routed_attention_reference, routed_attention], ids=["reference", "operator"])
def test_corners(attend: Callable[..., Tensor], problem: Problem, seed: int) -> None:
    for dtype in TOLERANCE:
        check_routed(attend, problem, seed, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_random_problems(dtype: torch.dtype, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(RANDOM_PROBLEMS):
        problem = random_problem(rng)
        print(problem)
        check_routed(rng.choice([routed_attention_reference, routed_attention]), problem, rng.randrange(1 << 30), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_branches_that_are_trained(dtype: torch.dtype, seed: int) -> None:
    rng = random.Random(seed)
    problems = [*corner_problems(), *(random_problem(rng) for _ in range(RANDOM_PROBLEMS // 2))]
    for problem in problems:
        print(problem)
        geometry = AttentionGeometry(**asdict(problem))
        inputs = drawn(problem, rng.randrange(1 << 30), dtype)
        for branch in Branch:
            out = branch_attention(
                *tensors(inputs, dtype), branch, geometry, text_length(inputs, geometry), inputs.scale
            )
            heads = inputs.routes == int(branch)  # [B, N]
            got, wanted = (part.swapaxes(1, 2)[heads] for part in (out.double().numpy(), inputs.expected))
            error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
            assert error < 2 * TOLERANCE[dtype], branch


def test_the_mixture_is_differentiable_on_a_ragged_grid(normal: Callable[..., Tensor]) -> None:
    geometry = AttentionGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1), (2, 2, 2), 4, "key", 2)
    length = torch.tensor([1], dtype=torch.int32)
    query, key, value = (normal(1, geometry.tokens, 1, 2, dtype=torch.float64).requires_grad_() for _ in range(3))
    scores = normal(1, 1, 3, dtype=torch.float64).softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *inputs: mixed_attention(*inputs, geometry, length), (query, key, value, scores)
    )


def test_counts_are_those_of_the_masks(seed: int) -> None:
    rng = random.Random(seed)
    for problem in [*corner_problems(), *(random_problem(rng) for _ in range(RANDOM_PROBLEMS))]:
        print(problem)
        geometry = AttentionGeometry(**asdict(problem))
        mask, video, text = sliding_mask(problem), geometry.video_tokens, geometry.text_tokens
        assert geometry.sliding_pairs == mask.sum()
        assert geometry.least_window_tokens == mask.sum(1).min()
        assert geometry.density("sliding") == mask.mean()
        assert geometry.attention_flops("sliding", 8) == 32 * (mask.sum() + 2 * video * text + text**2)
        kept, _, _ = choose(problem, np.random.default_rng(seed).normal(size=(video, 4)))
        assert geometry.coreset_tokens == len(kept)
        assert geometry.density("coreset") == (len(kept) / video) ** 2
        assert geometry.attention_flops("coreset", 8, text_length=0) == 32 * len(kept) ** 2
        assert torch.equal(tile_of_token(geometry).unique(), torch.arange(np.prod(geometry.tiles)))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=["no samples", "no heads"])
@pytest.mark.parametrize("text", [0, 2])
def test_nothing_to_do(shape: tuple[int, int], text: int) -> None:
    geometry = AttentionGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1), (2, 2, 2), 4, text_tokens=text)
    batch, heads = shape
    query = torch.empty(batch, geometry.tokens, heads, 8, requires_grad=True)
    length = torch.zeros(batch, dtype=torch.int32) if text else None
    out = routed_attention(query, query, query, torch.zeros(batch, heads, dtype=torch.int32), geometry, length)
    mixed = mixed_attention(query, query, query, torch.zeros(batch, heads, 3), geometry, length)
    assert out.shape == mixed.shape == query.shape
    (out.sum() + mixed.sum()).backward()
