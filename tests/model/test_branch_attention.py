# SPDX-License-Identifier: Apache-2.0
"""The branches in the form that routers are trained in: like the reference forward and backward, without its cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from vorta_trt.model import AttentionGeometry, Branch, routed_attention, routed_attention_reference
from vorta_trt.model.branch_attention import branch_attention, full_attention, mixed_attention

from .watching import LargestTensor

WAN = AttentionGeometry((4, 6, 4), (2, 3, 2), (1, 1, 1), (2, 3, 2), keep=6)
TEXT = AttentionGeometry((4, 4, 4), (2, 2, 2), (3, 1, 1), (2, 2, 2), keep=3, coreset_keys="key", text_tokens=6)
TINY = AttentionGeometry((2, 2, 4), (1, 2, 2), (1, 1, 1), (1, 2, 2), keep=2)
TINY_TEXT = AttentionGeometry((2, 2, 4), (1, 2, 2), (1, 1, 1), (1, 2, 2), keep=2, coreset_keys="key", text_tokens=2)


def lengths_of(geometry: AttentionGeometry, *lengths: int) -> Tensor | None:
    return torch.tensor(lengths, dtype=torch.int32) if geometry.text_tokens else None


def inputs(normal: Callable[..., Tensor], *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (normal(*shape, dtype=torch.float64).requires_grad_() for _ in range(3))
    return query, key, value


@pytest.mark.parametrize("geometry", [WAN, TEXT], ids=["video", "text"])
@pytest.mark.parametrize("branch", list(Branch))
def test_equals_the_reference_forward_and_backward(
    geometry: AttentionGeometry, branch: Branch, normal: Callable[..., Tensor]
) -> None:
    tensors = inputs(normal, 2, geometry.tokens, 3, 8)
    text_length = lengths_of(geometry, 4, 0)
    routes = torch.full((2, 3), int(branch), dtype=torch.int32)
    out = branch_attention(*tensors, branch, geometry, text_length, scale=0.7)
    expected = routed_attention_reference(*tensors, routes, geometry, text_length, scale=0.7)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    towards = normal(*out.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(out, tensors, towards)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, tensors, towards), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("geometry", [TINY, TINY_TEXT], ids=["video", "text"])
@pytest.mark.parametrize("branch", list(Branch))
def test_gradcheck(geometry: AttentionGeometry, branch: Branch, normal: Callable[..., Tensor]) -> None:
    text_length = lengths_of(geometry, 1)
    assert gradcheck(
        lambda *tensors: branch_attention(*tensors, branch, geometry, text_length),
        inputs(normal, 1, geometry.tokens, 1, 2),
    )


@pytest.mark.parametrize("geometry", [TINY, TINY_TEXT], ids=["video", "text"])
def test_gradcheck_of_the_mixture(geometry: AttentionGeometry, normal: Callable[..., Tensor]) -> None:
    text_length = lengths_of(geometry, 2)
    logits = normal(1, 1, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(
        lambda logits, *tensors: mixed_attention(*tensors, logits.softmax(-1), geometry, text_length),
        (logits, *inputs(normal, 1, geometry.tokens, 1, 2)),
    )


def test_the_operator_mixes_what_it_routes(normal: Callable[..., Tensor]) -> None:
    query, key, value = (normal(2, TEXT.tokens, 3, 8) for _ in range(3))
    text_length = lengths_of(TEXT, 6, 2)
    routes = torch.tensor([[0, 1, 2], [2, 0, 1]], dtype=torch.int32)
    certain = torch.nn.functional.one_hot(routes.long(), 3).float()  # [B, N, 3]
    routed = routed_attention(query, key, value, routes, TEXT, text_length)
    torch.testing.assert_close(mixed_attention(query, key, value, certain, TEXT, text_length), routed)
    full = routed_attention(query, key, value, torch.zeros_like(routes), TEXT, text_length)
    torch.testing.assert_close(full_attention(query, key, value, TEXT, text_length), full)

    scores = normal(2, 3, 3).softmax(-1)
    branches = [
        routed_attention(query, key, value, torch.full_like(routes, branch), TEXT, text_length) for branch in Branch
    ]
    expected = sum(scores[:, None, :, branch, None] * branches[branch] for branch in Branch)
    torch.testing.assert_close(mixed_attention(query, key, value, scores, TEXT, text_length), expected)
    with pytest.raises(ValueError, match=r"scores of shape \(2, 3, 2\): must be \(2, 3, 3\)"):
        mixed_attention(query, key, value, scores[..., :2], TEXT, text_length)


def test_padded_text_is_neither_read_nor_computed(normal: Callable[..., Tensor]) -> None:
    query, key, value = (normal(1, TEXT.tokens, 2, 8) for _ in range(3))
    for tensor in (query, key, value):
        tensor[:, TEXT.video_tokens + 4 :] = math.nan
        tensor.requires_grad_()
    out = mixed_attention(query, key, value, normal(1, 2, 3).softmax(-1), TEXT, lengths_of(TEXT, 4))
    assert bool(out.isfinite().all())
    assert bool((out[:, TEXT.video_tokens + 4 :] == 0).all())
    for gradient in torch.autograd.grad(out.square().sum(), (query, key, value)):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_score_matrix_forward_or_backward(dtype: torch.dtype, normal: Callable[..., Tensor]) -> None:
    geometry = AttentionGeometry((8, 12, 12), (2, 4, 4), (1, 1, 1), (2, 3, 2), keep=6)  # 1,152 tokens
    query, key, value = (normal(1, geometry.tokens, 1, 8, dtype=dtype).requires_grad_() for _ in range(3))
    scores = normal(1, 1, 3).softmax(-1).requires_grad_()
    with LargestTensor() as watch:
        out = mixed_attention(query, key, value, scores, geometry)
        out.sum().backward()
    assert out.dtype == dtype
    assert watch.elements >= geometry.tokens * 8  # it did watch
    assert watch.elements < geometry.coreset_tokens**2 / 4  # the smallest score matrix of a whole head


@pytest.mark.parametrize("attend", [mixed_attention, None], ids=["mixture", "reference"])
def test_training_after_inference_mode(attend: Any, normal: Callable[..., Tensor]) -> None:
    geometry = AttentionGeometry((4, 6, 2), (2, 3, 2), (1, 1, 1), (2, 3, 2), keep=3 if attend is None else 2)
    scores = normal(1, 1, 3).softmax(-1) if attend else torch.full((1, 1), int(Branch.SLIDING), dtype=torch.int32)
    attend = attend or routed_attention_reference
    query, key, value = (normal(1, geometry.tokens, 1, 8) for _ in range(3))
    with torch.inference_mode():
        expected = attend(query, key, value, scores, geometry)
    out = attend(query.requires_grad_(), key.requires_grad_(), value, scores, geometry)  # same tables of tokens
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert query.grad is not None
