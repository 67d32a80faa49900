# SPDX-License-Identifier: Apache-2.0
"""The operator on CUDA: that torch hands the kernels the right pointers, strides and stream.

The kernels' own accuracy is tested with the plugins.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, routed_attention, routed_attention_reference
from vorta_trt.plugins import LibraryError

pytestmark = pytest.mark.gpu

GEOMETRY = AttentionGeometry((4, 6, 8), (2, 3, 4), (1, 3, 1), (2, 3, 2), 6, "key", 9)
ROUTES = [[0, 1, 2, 5], [2, 2, 1, 0]]


def arguments(normal: Callable[..., Tensor], dtype: torch.dtype, head_dim: int = 64) -> tuple[Tensor, ...]:
    query, key, value = (normal(2, GEOMETRY.tokens, 4, head_dim, dtype=dtype).cuda() for _ in range(3))
    return query, key, value, torch.tensor(ROUTES, dtype=torch.int32, device="cuda")


def lengths() -> Tensor:
    return torch.tensor([9, 4], dtype=torch.int32, device="cuda")


def assert_close(out: Tensor, given: tuple[Tensor, ...]) -> None:
    query, key, value, routes = given
    exact = routed_attention_reference(query.double(), key.double(), value.double(), routes, GEOMETRY, lengths())
    assert out.isfinite().all()
    assert (out.double() - exact).abs().max() < 8 * torch.finfo(out.dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_close_to_the_reference(dtype: torch.dtype, normal: Callable[..., Tensor]) -> None:
    given = arguments(normal, dtype)
    assert_close(routed_attention(*given, GEOMETRY, lengths()), given)


def test_strided_and_misaligned_inputs(normal: Callable[..., Tensor]) -> None:
    query, key, value, routes = arguments(normal, torch.bfloat16)
    packed = torch.stack((query, key, value), dim=3).transpose(1, 2).contiguous()  # [B, N, S+T, 3, D]
    views = [packed[..., part, :].transpose(1, 2) for part in range(3)]  # [B, S+T, N, D]
    assert_close(routed_attention(*views, routes, GEOMETRY, lengths()), (query, key, value, routes))
    shifted = [torch.cat((tensor[..., :1], tensor), dim=-1)[..., 1:] for tensor in (query, key, value)]  # 2-byte offset
    assert_close(routed_attention(*shifted, routes, GEOMETRY, lengths()), (query, key, value, routes))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_no_host_synchronisation_and_graph_capture(normal: Callable[..., Tensor]) -> None:
    given, length = arguments(normal, torch.bfloat16), lengths()
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


def test_fp8_without_kernels_is_refused(normal: Callable[..., Tensor]) -> None:
    """No GPU has fp8 kernels for a head dimension of 96, and none falls back in silence."""
    given = arguments(normal, torch.bfloat16, head_dim=96)
    with pytest.raises(LibraryError, match="fp8 attention needs .* head_dim 64 or 128.*attention_precision"):
        routed_attention(*given, GEOMETRY, lengths(), attention_precision="fp8")
    assert_close(routed_attention(*given, GEOMETRY, lengths(), attention_precision="same"), given)


def test_another_stream(normal: Callable[..., Tensor]) -> None:
    given = arguments(normal, torch.float16)
    length = lengths()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = routed_attention(*given, GEOMETRY, length)
    stream.synchronize()
    assert_close(out, given)


def test_gradients(normal: Callable[..., Tensor]) -> None:
    query, key, value, routes = arguments(normal, torch.bfloat16)
    found = []
    for attend in (routed_attention, routed_attention_reference):
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        out = attend(*leaves, routes, GEOMETRY, lengths())
        found.append(torch.autograd.grad(out.float().sum(), leaves))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_what_the_kernels_do_not_take(normal: Callable[..., Tensor]) -> None:
    with pytest.raises(TypeError, match="dtype torch.float32 on CUDA: .*bfloat16"):
        routed_attention(*arguments(normal, torch.float32), GEOMETRY, lengths())
    with pytest.raises(ValueError, match="head dimension 60 on CUDA: must be a multiple of 8"):
        routed_attention(*arguments(normal, torch.float16, head_dim=60), GEOMETRY, lengths())
