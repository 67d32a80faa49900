# SPDX-License-Identifier: Apache-2.0
"""The operator on CUDA: that torch hands the kernels the right pointers, strides and stream.

The kernels' own accuracy is tested with the plugins.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, routed_attention, routed_attention_reference
from vorta_trt.plugins import LibraryError

from ..plugins.attention_inputs import realistic

pytestmark = pytest.mark.gpu

GEOMETRY = AttentionGeometry((4, 6, 8), (2, 3, 4), (1, 3, 1), (2, 3, 2), 6, "key", 9)
ROUTES = [[0, 1, 2, 5], [2, 2, 1, 0]]


def arguments(seed: int, dtype: torch.dtype, head_dim: int = 64) -> tuple[Tensor, ...]:
    """Values with a mean, keys that dominate, channels that stick out."""
    generator = torch.Generator("cuda").manual_seed(seed)
    query, key, value = (tensor.to(dtype) for tensor in realistic((2, GEOMETRY.tokens, 4, head_dim), generator))
    return query, key, value, torch.tensor(ROUTES, dtype=torch.int32, device="cuda")


def lengths() -> Tensor:
    return torch.tensor([9, 4], dtype=torch.int32, device="cuda")


def assert_close(out: Tensor, given: tuple[Tensor, ...]) -> None:
    query, key, value, routes = given
    exact = routed_attention_reference(query.double(), key.double(), value.double(), routes, GEOMETRY, lengths())
    assert out.isfinite().all()
    assert (out.double() - exact).abs().max() < 4 * torch.finfo(out.dtype).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_close_to_the_reference(dtype: torch.dtype, seed: int) -> None:
    given = arguments(seed, dtype)
    assert_close(routed_attention(*given, GEOMETRY, lengths()), given)


def test_strided_and_misaligned_inputs(seed: int) -> None:
    query, key, value, routes = arguments(seed, torch.bfloat16)
    packed = torch.stack((query, key, value), dim=3).transpose(1, 2).contiguous()  # [B, N, S+T, 3, D]
    views = [packed[..., part, :].transpose(1, 2) for part in range(3)]  # [B, S+T, N, D]
    assert_close(routed_attention(*views, routes, GEOMETRY, lengths()), (query, key, value, routes))
    shifted = [torch.cat((tensor[..., :1], tensor), dim=-1)[..., 1:] for tensor in (query, key, value)]  # 2-byte offset
    assert_close(routed_attention(*shifted, routes, GEOMETRY, lengths()), (query, key, value, routes))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_no_host_synchronisation_and_graph_capture(seed: int) -> None:
    given, length = arguments(seed, torch.bfloat16), lengths()
    expected = routed_attention(*given, GEOMETRY, length)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        routed_attention(*given, GEOMETRY, length)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = routed_attention(*given, GEOMETRY, length)
    out.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


def test_fp8_without_kernels_is_refused(seed: int) -> None:
    """No GPU has fp8 kernels for a head dimension of 96, and none falls back in silence."""
    given = arguments(seed, torch.bfloat16, head_dim=96)
    with pytest.raises(LibraryError, match="fp8 with head_dim 96: .* head_dim 64 and 128; use attention_precision"):
        routed_attention(*given, GEOMETRY, lengths(), attention_precision="fp8")
    assert_close(routed_attention(*given, GEOMETRY, lengths(), attention_precision="same"), given)


def test_another_stream(seed: int) -> None:
    given = arguments(seed, torch.float16)
    length = lengths()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = routed_attention(*given, GEOMETRY, length)
    stream.synchronize()
    assert_close(out, given)


def test_gradients(seed: int) -> None:
    query, key, value, routes = arguments(seed, torch.bfloat16)
    found = []
    for attend in (routed_attention, routed_attention_reference):
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        out = attend(*leaves, routes, GEOMETRY, lengths())
        found.append(torch.autograd.grad(out.float().sum(), leaves))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_what_the_kernels_do_not_take(seed: int) -> None:
    with pytest.raises(TypeError, match="dtype torch.float32 on CUDA: .*bfloat16"):
        routed_attention(*arguments(seed, torch.float32), GEOMETRY, lengths())
    with pytest.raises(ValueError, match="head dimension 60 on CUDA: must be a multiple of 8"):
        routed_attention(*arguments(seed, torch.float16, head_dim=60), GEOMETRY, lengths())


@pytest.mark.parametrize(("batch", "heads"), [(0, 4), (2, 0)])
@pytest.mark.parametrize("attention_precision", ["same", "fp8"])
def test_tensors_without_elements_give_one_without(batch: int, heads: int, attention_precision: str) -> None:
    tensor = torch.empty(batch, GEOMETRY.tokens, heads, 64, dtype=torch.bfloat16, device="cuda")
    routes = torch.empty(batch, heads, dtype=torch.int32, device="cuda")
    length = torch.zeros(batch, dtype=torch.int32, device="cuda")
    precision = {"attention_precision": attention_precision}
    assert routed_attention(tensor, tensor, tensor, routes, GEOMETRY, length, **precision).shape == tensor.shape
