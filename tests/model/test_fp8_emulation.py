# SPDX-License-Identifier: Apache-2.0
"""Attention in 8 bits, emulated: errors as large as the kernels' (tests/plugins/test_fp8_gpu.py), and no larger."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, routed_attention_reference
from vorta_trt.model.fp8_emulation import attend_in_fp8

GEOMETRY = AttentionGeometry((4, 18, 16), (2, 9, 8), (3, 1, 1), (2, 3, 2), 6, "query", 0)
RAGGED = AttentionGeometry((5, 13, 11), (2, 4, 5), (1, 3, 3), (2, 3, 2), 6, "key", 7)
ROUTES = torch.tensor([[0, 1, 2]], dtype=torch.int32)


def inputs(geometry: AttentionGeometry, head_dim: int, kind: str) -> list[Tensor]:
    """Query, key and value [1, S+T, 3, D]."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, geometry.tokens, 3, head_dim)
    query, key, value = (torch.randn(shape, generator=generator).bfloat16().float() for _ in range(3))
    if kind == "outliers of Q and K":
        query[..., :4] *= 16
        key[..., 4:8] *= 16
    elif kind == "outliers of K":
        key[..., :3] *= 20
    elif kind == "mean of K":
        key[..., :3] += 20
    elif kind == "mean of V":
        value += 1
    return [query, key, value]


@pytest.mark.parametrize("head_dim", [64, 128, 48])
@pytest.mark.parametrize("geometry", [GEOMETRY, RAGGED], ids=["whole", "ragged"])
@pytest.mark.parametrize("kind", ["normal", "outliers of Q and K", "outliers of K", "mean of K", "mean of V"])
def test_errors_are_those_of_eight_bits(kind: str, geometry: AttentionGeometry, head_dim: int) -> None:
    tensors = inputs(geometry, head_dim, kind)
    lengths = torch.tensor([5], dtype=torch.int32) if geometry.text_tokens else None
    exact = routed_attention_reference(*tensors, ROUTES, geometry, lengths)
    rounded = routed_attention_reference(*tensors, ROUTES, geometry, lengths, softmax=attend_in_fp8)
    norms = [torch.linalg.vector_norm(x, dim=(0, 1, 3)) for x in (rounded - exact, rounded, exact)]  # [N]
    errors, ratios = norms[0] / norms[2], norms[1] / norms[2]
    assert 1e-3 < errors.min() and errors.max() < 0.05, errors
    assert (ratios - 1).abs().max() < 0.01, ratios
    assert (rounded[:, geometry.video_tokens + 5 :] == 0).all()


def test_equal_rows_and_zeros() -> None:
    zeros = torch.zeros(1, 40, 64)
    assert torch.equal(attend_in_fp8(zeros, zeros, zeros, 0.125), zeros)
    value = torch.full((1, 40, 64), 3.0)
    torch.testing.assert_close(attend_in_fp8(zeros, zeros, value, 0.125), value)
