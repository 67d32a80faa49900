# SPDX-License-Identifier: Apache-2.0
"""The reference against outputs of the authors' code, its gradients and memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vorta_trt.model import AttentionGeometry, routed_attention_reference
from vorta_trt.model import reference as reference_module
from vorta_trt.model.reference import select_coreset

CASES = Path(__file__).parents[1] / "data" / "attention.safetensors"


@pytest.mark.parametrize(("branch", "name"), list(enumerate(["full", "coreset", "sliding"])))
@pytest.mark.parametrize("text", [0, 8])
def test_outputs_of_the_authors_code(branch: int, name: str, text: int) -> None:
    cases = load_file(CASES)
    geometry = AttentionGeometry((10, 6, 6), (2, 3, 2), (3, 1, 3), (2, 3, 2), 6, "key" if text else "query", text)
    (expected,) = (cases[key] for key in cases if key.startswith(name) and ("with_text" in key) == bool(text))
    query, key, value = (cases[part][:, : geometry.tokens] for part in ("query", "key", "value"))
    length = torch.tensor([5], dtype=torch.int32) if text else None
    routes = torch.full((1, 2), branch, dtype=torch.int32)
    out = routed_attention_reference(query, key, value, routes, geometry, length)
    assert out.isfinite().all()
    assert (out - expected).abs().max() < 1e-5


def test_small_blocks_change_nothing(normal: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = AttentionGeometry((4, 6, 4), (2, 3, 2), (1, 3, 1), (2, 3, 2), 5, "key", 3)
    query, key, value = (normal(2, geometry.tokens, 5, 8) for _ in range(3))
    routes = torch.tensor([[0, 1, 2, 2, 1], [2, 2, 0, 1, 0]], dtype=torch.int32)
    length = torch.tensor([0, 2], dtype=torch.int32)
    whole = routed_attention_reference(query, key, value, routes, geometry, length)
    monkeypatch.setattr(reference_module, "LOGITS_BYTES", 1 << 10)
    monkeypatch.setattr(reference_module, "HEADS_BYTES", 1)
    parts = routed_attention_reference(query, key, value, routes, geometry, length)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype, normal: Callable[..., Tensor]) -> None:
    geometry = AttentionGeometry((4, 6, 4), (2, 3, 2), (1, 3, 1), (2, 3, 2), 6)
    query, key, value = (normal(1, geometry.tokens, 3, 16, dtype=dtype) for _ in range(3))
    routes = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    out = routed_attention_reference(query, key, value, routes, geometry)
    exact = routed_attention_reference(query.float(), key.float(), value.float(), routes, geometry)
    assert torch.equal(out, exact.to(dtype))


def test_ties_keep_the_first_in_raster_order() -> None:
    geometry = AttentionGeometry((2, 3, 2), (1, 1, 1), (1, 1, 1), (2, 3, 2), 4)
    kept, rows = select_coreset(torch.ones(1, 12, 4), geometry)
    assert kept.tolist() == [[9, 0, 1, 2]]  # the centre (1, 1, 1) is token 9
    assert rows.tolist() == [[1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]]


def test_zero_vectors_have_similarity_zero() -> None:
    geometry = AttentionGeometry((1, 1, 3), (1, 1, 1), (1, 1, 1), (1, 1, 3), 2)
    tokens = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    kept, _ = select_coreset(tokens, geometry)
    assert kept.tolist() == [[1, 2]]  # similarity -1 before 0


def test_keep_of_whole_bucket_is_full_attention(normal: Callable[..., Tensor]) -> None:
    geometry = AttentionGeometry((2, 3, 4), (2, 3, 4), (1, 1, 1), (2, 3, 2), 12)
    query, key, value = (normal(1, 24, 2, 8) for _ in range(3))
    full = routed_attention_reference(query, key, value, torch.zeros(1, 2).int(), geometry)
    coreset = routed_attention_reference(query, key, value, torch.ones(1, 2).int(), geometry)
    torch.testing.assert_close(coreset, full, rtol=0, atol=1e-6)


def test_gradients(normal: Callable[..., Tensor]) -> None:
    geometry = AttentionGeometry((2, 3, 4), (2, 3, 1), (1, 1, 3), (2, 3, 2), 6, "key", 2)
    inputs = tuple(normal(1, geometry.tokens, 3, 4, dtype=torch.float64).requires_grad_() for _ in range(3))
    routes = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    length = torch.tensor([1], dtype=torch.int32)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return routed_attention_reference(query, key, value, routes, geometry, length)

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
    attend(*inputs).sum().backward()
    for tensor in inputs:
        assert tensor.grad is not None and tensor.grad.isfinite().all()
        assert not tensor.grad[:, -1].any()  # the padded text token


def test_text_length_is_checked(normal: Callable[..., Tensor]) -> None:
    geometry = AttentionGeometry((1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 2, 2), 2, "key", 3)
    tensors = [normal(1, 7, 1, 8) for _ in range(3)]
    routes = torch.zeros(1, 1).int()
    with pytest.raises(ValueError, match="text_length None: required"):
        routed_attention_reference(*tensors, routes, geometry)
    with pytest.raises(ValueError, match=r"text_length \[4\]: every entry must be between 0 and the geometry's 3"):
        routed_attention_reference(*tensors, routes, geometry, torch.tensor([4]).int())


MEMORY = """
import resource, torch
from vorta_trt.model import AttentionGeometry, routed_attention_reference
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
def run(geometry):
    query, key, value = (torch.randn(1, geometry.tokens, 3, 8, requires_grad=True) for _ in range(3))
    out = routed_attention_reference(query, key, value, torch.tensor([[0, 1, 2]]).int(), geometry)
    out.square().sum().backward()
run(AttentionGeometry((1, 4, 4), (1, 1, 1), (1, 1, 1), (1, 2, 2), 2))
before = peak()
run(AttentionGeometry((12, 36, 30), (12, 12, 10), (1, 3, 1), (2, 3, 2), 6))  # 12,960 tokens: S x S is 641 MiB
print(peak() - before)
"""


def test_memory_is_bounded_forward_and_backward() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 500, done.stdout  # logits and softmax of one S x S matrix would be 1,282
