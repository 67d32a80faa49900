# SPDX-License-Identifier: Apache-2.0
"""Cross-attention on a GPU against float64: at most twice the error that torch's attention makes in the same dtype.

Letters: B batch, X query tokens, Y key tokens, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.plugins import load_library
from vorta_trt.plugins.cross_attention import TENSORS, CrossAttentionParams
from vorta_trt.plugins.operator_calls import enqueue

from .attention_inputs import CHARACTERS, realistic

pytestmark = pytest.mark.gpu


@dataclass(frozen=True)
class Case:
    """One problem; `layout` is that of keys and values."""

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    dtype: str = "bfloat16"
    layout: str = "contiguous"
    scale: float = 0.0

    def __str__(self) -> str:
        sizes = f"B{self.batch}-X{self.queries}-Y{self.keys}-N{self.heads}-D{self.head_dim}"
        return f"{sizes}-{self.dtype}-{self.layout}" + (f"-scale{self.scale}" if self.scale else "")


WAN = Case(2, 1000, 512, 3, 128)
CASES = [
    # Blocks: 144 or 64 and 128 keys, 256 or 128 queries; one less, as many, one more, and hardly any.
    *(Case(1, 300, keys, 2, 128) for keys in (1, 63, 64, 65, 143, 144, 145, 257, 288, 512, 1500)),
    *(Case(1, queries, 77, 2, 128, "float16") for queries in (1, 64, 127, 128, 129, 255, 256, 257, 2049)),
    *(Case(2, 203, 113, 3, head_dim, dtype) for head_dim in (8, 40, 64, 80, 96, 128, 160, 192, 248, 256)
      for dtype in ("float16", "bfloat16")),
    *(replace(WAN, head_dim=head_dim, layout=layout) for head_dim in (64, 128)
      for layout in ("fused", "heads_first", "one_sample", "one_head", "one_token", "slices")),
    replace(WAN, scale=0.3),
    Case(1, 20000, 512, 5, 128),  # more items than processors, several for each
    Case(3, 700, 257, 40, 128),
]  # fmt: skip


@pytest.fixture(params=["", "sm80"])
def kernels(request: pytest.FixtureRequest, force_kernels: Callable[[str], None]) -> None:
    """Both families of kernels, where the GPU has a choice."""
    built = any("90a" in name for name in load_library().cuda_architectures)
    if request.param and not (built and torch.cuda.get_device_capability() == (9, 0)):
        pytest.skip("this GPU or this library has one family of kernels: nothing to force")
    force_kernels(request.param)


def make_inputs(case: Case, seed: int) -> list[Tensor]:
    """Query [B, X, N, D], key and value [B, Y, N, D] in the case's layout, NaN wherever nobody may read."""
    options: dict[str, Any] = {"dtype": getattr(torch, case.dtype), "device": "cuda"}
    generator = torch.Generator("cuda").manual_seed(seed)
    rest = (case.heads, case.head_dim)
    shape = (case.batch, max(case.queries, case.keys), *rest)
    numbers = [tensor.to(options["dtype"]) for tensor in realistic(shape, generator, CHARACTERS)]
    query = numbers[0][:, : case.queries].contiguous()
    key, value = (tensor[:, : case.keys] for tensor in numbers[1:])
    if case.layout == "one_sample":
        return [query, *(tensor[:1].contiguous().expand(tensor.shape) for tensor in (key, value))]
    if case.layout == "one_head":
        return [query, *(tensor[:, :, :1].contiguous().expand(tensor.shape) for tensor in (key, value))]
    if case.layout == "one_token":
        return [query, *(tensor[:, :1].contiguous().expand(tensor.shape) for tensor in (key, value))]
    if case.layout == "fused":
        homes = torch.full((case.batch, case.keys, 2, *rest), torch.nan, **options).unbind(2)
    elif case.layout == "heads_first":
        homes = torch.empty(2, case.batch, case.heads, case.keys, case.head_dim, **options).transpose(2, 3).unbind(0)
    elif case.layout == "slices":  # of longer sequences, whose other tokens are NaN
        homes = torch.full((2, case.batch, case.keys + 99, *rest), torch.nan, **options)[:, :, 40:-59].unbind(0)
    else:
        homes = torch.empty(2, case.batch, case.keys, *rest, **options).unbind(0)
    for home, tensor in zip(homes, (key, value), strict=True):
        home.copy_(tensor)
    return [query, *homes]


def attend(case: Case, inputs: list[Tensor], output: Tensor | None = None) -> Tensor:
    """Our kernels; rows around the output must stay as they were."""
    if output is None:
        output = torch.full_like(inputs[0], torch.nan)
    tensors = dict(zip(TENSORS, (*inputs, output), strict=True))
    params = CrossAttentionParams(
        dtype=case.dtype, batch=case.batch, query_tokens=case.queries, key_tokens=case.keys, heads=case.heads,
        head_dim=case.head_dim, scale=case.scale,
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        **{f"{name}_stride": tensor.stride()[:3] for name, tensor in tensors.items()},
    )  # fmt: skip
    enqueue(load_library(), params, torch.cuda.current_stream().cuda_stream)
    return output


def by_torch(case: Case, inputs: list[Tensor]) -> Tensor:
    query, key, value = (tensor.transpose(1, 2) for tensor in inputs)
    scale = case.scale or case.head_dim**-0.5
    if query.dtype == torch.float64:
        return (torch.softmax(query @ key.mT * scale, -1) @ value).transpose(1, 2)
    return functional.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_that_of_torch(
    case: Case, kernels: None, seed: int, record_property: Callable[[str, Any], None]
) -> None:
    inputs = make_inputs(case, seed)
    wanted = by_torch(case, [tensor.double() for tensor in inputs])
    output = attend(case, inputs)
    assert output.isfinite().all()
    ours, torchs = ((tensor.double() - wanted).abs() for tensor in (output, by_torch(case, inputs)))
    figures = {
        "max_error": ours.max().item(), "torch_max_error": torchs.max().item(),
        "rms_error": ours.square().mean().sqrt().item(), "torch_rms_error": torchs.square().mean().sqrt().item(),
    }  # fmt: skip
    record_property(str(case), figures)
    # Where every output is one value itself torch may err by nothing at all: half a unit in the last place is rounding.
    half_unit = torch.finfo(output.dtype).eps / 2 * wanted.abs().max().item()
    assert figures["max_error"] <= max(2 * figures["torch_max_error"], half_unit), figures
    assert figures["rms_error"] <= max(2 * figures["torch_rms_error"], half_unit / 10), figures


@pytest.mark.parametrize("head_dim", [64, 128, 192])
def test_nothing_but_the_output_is_written(head_dim: int, kernels: None, seed: int) -> None:
    case = Case(2, 301, 77, 3, head_dim)
    inputs = make_inputs(case, seed)
    home = torch.full((case.batch, case.queries + 64, case.heads + 1, head_dim + 16), 7.0, device="cuda").bfloat16()
    view = home[:, 32:-32, :-1, :-16]
    attend(case, inputs, view)
    assert torch.equal(view, attend(case, inputs))
    view.fill_(7.0)
    assert (home == 7.0).all()


@pytest.mark.parametrize("head_dim", [64, 128])
def test_runs_and_replays_are_bitwise_equal(head_dim: int, kernels: None, seed: int) -> None:
    case = replace(WAN, head_dim=head_dim)
    inputs = make_inputs(case, seed)
    first = attend(case, inputs)
    output = torch.full_like(first, torch.nan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend(case, inputs, output)
    for _ in range(5):
        output.fill_(torch.nan)
        graph.replay()
        assert torch.equal(output, first)


def test_the_kernel_waits_for_the_one_before(kernels: None, seed: int) -> None:
    """Its inputs are written on the same stream right before, by a kernel that takes its time."""
    inputs = make_inputs(WAN, seed)
    wanted = attend(WAN, inputs)
    late = [torch.zeros_like(tensor) for tensor in inputs]
    for _ in range(5):
        for tensor in late:
            tensor.zero_()
        torch.cuda._sleep(200_000)
        for tensor, source in zip(late, inputs, strict=True):
            tensor.copy_(source)
        assert torch.equal(attend(WAN, late), wanted)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_nan_stays_with_its_head_or_row(head_dim: int, kernels: None, seed: int) -> None:
    case = replace(WAN, head_dim=head_dim)
    query, key, value = inputs = make_inputs(case, seed)
    query[0, 7, 0] = torch.nan
    key[1, 5, 1] = torch.nan
    value[1, -1, 2] = torch.inf
    output = attend(case, inputs)
    bad = ~output.isfinite().all(-1)  # [B, X, N]
    wanted = torch.zeros_like(bad)
    wanted[0, 7, 0] = wanted[1, :, 1] = wanted[1, :, 2] = True
    assert torch.equal(bad, wanted)
