# SPDX-License-Identifier: Apache-2.0
"""Attention and whole transformers of several ranks on CUDA, in bfloat16.

With two GPUs or more, ranks have one each and NCCL; with one, they share it and exchange through gloo, which copies to
the host and back: the kernels, shards and permutations are the same ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vorta_trt.model import AttentionGeometry

from ...ranks import Pool, started
from .conftest import MODELS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def on_gpus() -> Iterator[Pool]:
    gpus = torch.cuda.device_count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCCL_NVLS_ENABLE", "0")
        patch.setenv("NCCL_SOCKET_IFNAME", "lo")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        with started(min(gpus, 4) if gpus > 1 else 4, "cuda") as pool:
            yield pool


@pytest.fixture(params=[2, 3, 4])
def ranks(request: pytest.FixtureRequest) -> int:
    if 1 < (gpus := torch.cuda.device_count()) < request.param:
        pytest.skip(f"needs {request.param} GPUs, or one alone: torch finds {gpus}")
    count: int = request.param
    return count


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("keys", "lengths"), [("query", None), ("key", [3, 70])])
def test_attention_is_that_of_one_gpu(
    on_gpus: Pool, ranks: int, head_dim: int, keys: str, lengths: list[int] | None, seed: int
) -> None:
    geometry = AttentionGeometry((5, 9, 15), (2, 3, 5), (3, 1, 3), (2, 3, 2), 6, keys, 0 if lengths is None else 77)
    shuffled = random.Random(seed).sample(range(12), 12)
    case = {"geometry": geometry.to_dict(), "lengths": lengths, "orders": [[*range(12)], shuffled], "device": "cuda"}
    assert on_gpus("attention", ranks, **case, heads=12, head_dim=head_dim, seed=seed) == [[0, 0]] * ranks


def test_every_permutation_of_four_heads(on_gpus: Pool, seed: int) -> None:
    orders = [list(order) for order in itertools.permutations(range(4))]
    geometry = AttentionGeometry((3, 5, 7), (2, 3, 5), (3, 1, 1), (2, 3, 2), 6, "key", 9).to_dict()
    case = {"geometry": geometry, "lengths": [4, 9], "orders": orders, "device": "cuda"}
    found = on_gpus("attention", 2, **case, heads=4, head_dim=64, seed=seed)
    assert found == [[0] * len(orders)] * 2


WAYS: list[dict[str, Any]] = [
    {"placement": "balanced", "block_ops": "plugin", "options": {}},
    {"placement": "in_order", "block_ops": "native", "options": {}},
    {"placement": "balanced", "block_ops": "plugin", "options": {"linear_precision": "fp8"}},
]


@pytest.mark.parametrize("way", WAYS, ids=["plugin", "native", "fp8"])
@pytest.mark.parametrize("name", MODELS)
def test_error_is_that_of_one_gpu(
    on_gpus: Pool, folders: dict[str, dict[str, str]], ranks: int, name: str, way: dict[str, Any], seed: int
) -> None:
    found = on_gpus("errors_on_gpus", ranks, **folders[name], **way, seed=seed)
    print(found)
    assert all(0 < error <= 2 * of_one for of_one, *others in found for error in others)  # twice torch's own
    assert len(found[0]) == (5 if torch.cuda.device_count() > 1 else 3)  # torch, then the library; not beside, beside
    assert len({tuple(others) for _, *others in found}) == 1  # the same samples on every rank
