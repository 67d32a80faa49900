# SPDX-License-Identifier: Apache-2.0
"""The reference against outputs of the authors' code, against a brute-force mask, and its gradients and memory."""

from __future__ import annotations

import itertools
import math
import random
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


# -- brute force: every pair of tokens is asked whether it may attend --------------------------------------------------


def brute_force(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    geometry: AttentionGeometry,
    lengths: list[int],
    scale: float,
) -> Tensor:
    """An O((S+T)^2) mask built token by token from the definition, float64."""
    out = torch.zeros_like(query)
    video = geometry.video_tokens
    coordinates = list(itertools.product(*(range(axis) for axis in geometry.grid)))
    for sample, head in itertools.product(range(query.shape[0]), range(query.shape[2])):
        q, k, v = (tensor[sample, :, head] for tensor in (query, key, value))
        branch = int(routes[sample, head])
        valid = video + lengths[sample]
        mask = torch.zeros(geometry.tokens, geometry.tokens, dtype=torch.bool)
        copies = {}
        if branch == 1:
            query_copies = kept_and_copied(q[:video], geometry, coordinates)
            copies = query_copies
            own = (
                query_copies if geometry.coreset_keys == "query" else kept_and_copied(k[:video], geometry, coordinates)
            )
            mask[:valid, [token for token in range(valid) if token not in own]] = True
        elif branch == 2:
            for token, position in enumerate(coordinates):
                mask[token, [other for other in range(video) if in_window(position, coordinates[other], geometry)]] = (
                    True
                )
            mask[:video, video:valid] = True
            mask[video:valid, :valid] = True
        else:
            mask[:valid, :valid] = True
        for token in range(valid):
            seen = mask[copies.get(token, token)].nonzero().flatten()
            weights = torch.softmax(k[seen] @ q[copies.get(token, token)] * scale, dim=0)
            out[sample, token, head] = weights @ v[seen]
    return out


def in_window(position: tuple[int, ...], other: tuple[int, ...], geometry: AttentionGeometry) -> bool:
    for axis in range(3):
        tile, tiles, window = geometry.tile[axis], geometry.grid[axis] // geometry.tile[axis], geometry.window[axis]
        if window >= tiles:
            continue
        centre = min(max(position[axis] // tile, window // 2), tiles - 1 - window // 2)
        if abs(other[axis] // tile - centre) > window // 2:
            return False
    return True


def kept_and_copied(tokens: Tensor, geometry: AttentionGeometry, coordinates: list[tuple[int, ...]]) -> dict[int, int]:
    """Dropped token -> the centre whose output it takes."""
    buckets: dict[tuple[int, ...], list[int]] = {}
    for token, position in enumerate(coordinates):
        corner = tuple(p // size for p, size in zip(position, geometry.bucket, strict=True))
        buckets.setdefault(corner, []).append(token)
    copied = {}
    for corner, members in buckets.items():
        middle = tuple(c * size + size // 2 for c, size in zip(corner, geometry.bucket, strict=True))
        centre = coordinates.index(middle)
        others = [token for token in members if token != centre]
        similarity = [float(torch.nn.functional.cosine_similarity(tokens[o], tokens[centre], dim=0)) for o in others]
        ranked = [token for _, token in sorted(zip(similarity, others, strict=True))]
        copied.update(dict.fromkeys(ranked[geometry.keep - 1 :], centre))
    return copied


def random_geometry(chance: random.Random) -> AttentionGeometry:
    tile = [chance.randint(1, 3) for _ in range(3)]
    grid = [size * chance.randint(1, 3) for size in tile]
    bucket = [chance.choice([d for d in range(1, axis + 1) if axis % d == 0 and d <= 3]) for axis in grid]
    return AttentionGeometry(
        tuple(grid), tuple(tile), tuple(chance.choice([1, 3, 5]) for _ in range(3)), tuple(bucket),
        chance.randint(1, math.prod(bucket)), chance.choice(["query", "key"]), chance.choice([0, 0, 1, 4]),
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("repetition", range(12))
def test_random_geometries_against_brute_force(repetition: int, seed: int, normal: Callable[..., Tensor]) -> None:
    chance = random.Random(seed + repetition)
    geometry = random_geometry(chance)
    batch, heads, head_dim = chance.randint(1, 2), 4, chance.choice([1, 3, 8])
    print(geometry, batch, head_dim)
    shape = (batch, geometry.tokens, heads, head_dim)
    query, key, value = (normal(*shape, dtype=torch.float64) for _ in range(3))
    routes = torch.tensor([[chance.choice([0, 1, 2, 2, 1, 9, -1]) for _ in range(heads)] for _ in range(batch)]).int()
    lengths = [chance.randint(0, geometry.text_tokens) for _ in range(batch)]
    expected = brute_force(query, key, value, routes, geometry, lengths, 0.7)
    for sample, length in enumerate(lengths):  # rows of padded text must not be read
        for tensor in (query, key, value):
            tensor[sample, geometry.video_tokens + length :] = math.nan
    text_length = torch.tensor(lengths, dtype=torch.int32) if geometry.text_tokens else None
    out = routed_attention_reference(query, key, value, routes, geometry, text_length, 0.7)
    assert out.is_contiguous() and out.dtype == torch.float64
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


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
    kept, dropped = select_coreset(torch.ones(1, 12, 4), geometry)
    assert kept.tolist() == [[[9, 0, 1, 2]]]  # the centre (1, 1, 1) is token 9
    assert dropped.tolist() == [[[3, 4, 5, 6, 7, 8, 10, 11]]]


def test_zero_vectors_have_similarity_zero() -> None:
    geometry = AttentionGeometry((1, 1, 3), (1, 1, 1), (1, 1, 1), (1, 1, 3), 2)
    tokens = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    kept, _ = select_coreset(tokens, geometry)
    assert kept.tolist() == [[[1, 2]]]  # similarity -1 before 0


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
