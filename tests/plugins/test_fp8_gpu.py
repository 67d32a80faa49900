# SPDX-License-Identifier: Apache-2.0
"""attention_precision "fp8" on a Hopper GPU: within 5 % of float32 on unit-normal inputs, on every branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, routed_attention, routed_attention_reference
from vorta_trt.plugins import load_library
from vorta_trt.plugins.errors import VortaError

pytestmark = pytest.mark.gpu

#: Relative error on unit-normal inputs, of a head's output in the Frobenius norm.
LIMIT = 5e-2
#: Tiles of 144, 40, 12 and 210 tokens, so that most end within a chunk of 32 keys; text of one and of
#: three query blocks.
GEOMETRIES = {
    "no-text": AttentionGeometry((4, 18, 16), (2, 9, 8), (3, 1, 1), (2, 3, 2), 6, "query", 0),
    "text": AttentionGeometry((6, 12, 10), (2, 4, 5), (1, 3, 1), (2, 3, 2), 6, "key", 77),
    "long-text": AttentionGeometry((10, 6, 6), (2, 3, 2), (3, 1, 3), (2, 3, 2), 6, "query", 300),
    "odd": AttentionGeometry((6, 14, 15), (6, 7, 5), (1, 1, 3), (3, 7, 1), 5, "key", 0),
}
ROUTES = ((0, 1, 2, 7), (2, 0, 1, 2))
#: Of query, key and value.
FACTORS = ((1e-4, 1e-4, 1e-4), (1e-3, 1e3, 1e4), (30, 30, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0))


@pytest.fixture(autouse=True)
def _needs_the_kernels(force_kernels: Callable[[str], None]) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("fp8 attention needs a GPU of compute capability 9.0")
    if not any("90a" in name for name in load_library().cuda_architectures):
        pytest.skip("this library has no code for 90a")


def make_inputs(geometry: AttentionGeometry, head_dim: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Query, key and value [B, S+T, N, D], unit-normal."""
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = (len(ROUTES), geometry.tokens, len(ROUTES[0]), head_dim)
    return [torch.randn(shape, generator=generator, device="cuda").to(dtype) for _ in range(3)]


def lengths_of(geometry: AttentionGeometry, *lengths: int) -> Tensor | None:
    return torch.tensor(lengths, dtype=torch.int32, device="cuda") if geometry.text_tokens else None  # [B]


def routes_of(routes: tuple[tuple[int, ...], ...] = ROUTES) -> Tensor:
    return torch.tensor(routes, dtype=torch.int32, device="cuda")  # [B, N]


def relative_errors(
    output: Tensor, inputs: list[Tensor], geometry: AttentionGeometry, lengths: Tensor | None
) -> list[float]:
    """Of every head of every sample against float32."""
    exact = routed_attention_reference(*(x.float() for x in inputs), routes_of(), geometry, lengths).double()
    difference = (output.double() - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3))  # [B, N]
    found: list[float] = difference.flatten().tolist()
    return found


#: Valid text tokens of the two samples: none, some, all; whole query blocks of 128 rows are padding in some.
TEXT_LENGTHS = {"no-text": ((0, 0),), "odd": ((0, 0),), "text": ((0, 77), (50, 1)), "long-text": ((300, 77), (0, 129))}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("name", "valid"), [(name, valid) for name in GEOMETRIES for valid in TEXT_LENGTHS[name]])
def test_unit_normal(
    name: str,
    valid: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    seed: int,
    record_property: Callable[[str, Any], None],
) -> None:
    geometry = GEOMETRIES[name]
    inputs = make_inputs(geometry, head_dim, dtype, seed)
    lengths = lengths_of(geometry, *valid)
    exact = [tensor.clone() for tensor in inputs]
    if lengths is not None:
        for sample, length in enumerate(valid):  # what stands in padding must not matter
            for tensor in inputs:
                tensor[sample, geometry.video_tokens + length :] = torch.nan
    output = routed_attention(*inputs, routes_of(), geometry, lengths, attention_precision="fp8")
    assert output.isfinite().all()
    for sample, length in enumerate(valid):
        assert (output[sample, geometry.video_tokens + length :] == 0).all()
    errors = relative_errors(output, exact, geometry, lengths)
    record_property("relative errors", errors)
    assert max(errors) <= LIMIT, errors


@pytest.mark.parametrize("what", ["query-key", "key", "key-mean", "value"])
def test_outlier_channels(what: str, seed: int, record_property: Callable[[str, Any], None]) -> None:
    """Recorded, not held to the limit: three channels of 20 times the others."""
    geometry = GEOMETRIES["no-text"]
    query, key, value = inputs = make_inputs(geometry, 128, torch.bfloat16, seed)
    for tensor in {"query-key": (query, key), "key": (key,), "value": (value,)}.get(what, ()):
        tensor[..., :3] *= 20
    if what == "key-mean":
        key[..., :3] += 20
    output = routed_attention(*inputs, routes_of(), geometry, attention_precision="fp8")
    assert output.isfinite().all()
    errors = relative_errors(output, inputs, geometry, None)
    record_property(what, errors)
    assert max(errors) <= 0.25, errors


@pytest.mark.parametrize("factors", FACTORS)
def test_magnitudes(factors: tuple[float, float, float], seed: int) -> None:
    """The scales follow the inputs: equal weights stay equal, peaked ones finite."""
    geometry = GEOMETRIES["text"]
    inputs = [x * f for x, f in zip(make_inputs(geometry, 128, torch.bfloat16, seed), factors, strict=True)]
    lengths = lengths_of(geometry, 50, 0)
    output = routed_attention(*inputs, routes_of(), geometry, lengths, attention_precision="fp8")
    assert output.isfinite().all()
    if factors[2] == 0:
        assert (output == 0).all()
    elif max(factors[:2]) <= 1:
        # The coreset of keys without a direction is that of ties, so only the other heads are compared.
        errors = relative_errors(output, inputs, geometry, lengths)
        full = [error for error, route in zip(errors, sum(ROUTES, ()), strict=True) if route != 1]
        assert max(full) <= LIMIT, errors


def test_strides_do_not_matter(seed: int) -> None:
    geometry = GEOMETRIES["text"]
    inputs = make_inputs(geometry, 128, torch.bfloat16, seed)
    fused = torch.stack(inputs, 2).unbind(2)
    lengths = lengths_of(geometry, 77, 50)
    given = routed_attention(*inputs, routes_of(), geometry, lengths, attention_precision="fp8")
    assert torch.equal(routed_attention(*fused, routes_of(), geometry, lengths, attention_precision="fp8"), given)


def test_graph_replays_follow_the_routes(seed: int) -> None:
    geometry = GEOMETRIES["text"]
    inputs = make_inputs(geometry, 128, torch.bfloat16, seed)
    lengths, routes = lengths_of(geometry, 77, 50), routes_of()
    other = routes_of(((1, 2, 0, 0), (0, 1, 2, 1)))
    expected = [routed_attention(*inputs, r, geometry, lengths, attention_precision="fp8") for r in (routes, other)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = routed_attention(*inputs, routes, geometry, lengths, attention_precision="fp8")
    for wanted, now in ((expected[0], routes.clone()), (expected[1], other), (expected[0], routes.clone())):
        routes.copy_(now)
        output.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(output, wanted)


@pytest.mark.parametrize("head_dim", [80, 96, 256])
def test_other_head_dimensions_are_unsupported(head_dim: int, seed: int) -> None:
    inputs = make_inputs(GEOMETRIES["no-text"], head_dim, torch.bfloat16, seed)
    with pytest.raises(VortaError, match=f"attention_precision fp8 with head_dim {head_dim}: .* use .* same"):
        routed_attention(*inputs, routes_of(), GEOMETRIES["no-text"], attention_precision="fp8")


def test_forced_generic_kernels_are_unsupported(seed: int, force_kernels: Callable[[str], None]) -> None:
    inputs = make_inputs(GEOMETRIES["no-text"], 128, torch.bfloat16, seed)
    force_kernels("sm80")
    with pytest.raises(VortaError, match="attention_precision fp8 with head_dim 128: .* not forced off"):
        routed_attention(*inputs, routes_of(), GEOMETRIES["no-text"], attention_precision="fp8")
