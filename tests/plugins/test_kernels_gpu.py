# SPDX-License-Identifier: Apache-2.0
"""The kernels on a GPU against the oracle: at most twice the error that torch's attention makes in the same dtype."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from .kernel_call import POISON, Call, make_inputs, takes_hopper_kernels
from .kernel_cases import BLOCK_CASES, BLOCKS, GENERIC_CASES, LARGE_CASES, SMALL_CASES, TEXT, TILES, WAN_SMALL
from .kernel_check import check, measure
from .kernel_oracle import CORESET, FULL, SLIDING, Case, buckets_of, sliding_blocks

pytestmark = pytest.mark.gpu
#: A problem for each of the head dimensions that have kernels for Hopper.
FAST = [replace(TEXT, head_dim=64), replace(TEXT, head_dim=128)]


@pytest.fixture(params=["default", "sm80"])
def kernels(request: pytest.FixtureRequest, force_kernels: Callable[[str], None]) -> None:
    """Both families of kernels, where the GPU has a choice."""
    if request.param == "default":
        return
    if not takes_hopper_kernels(TEXT):
        pytest.skip("this GPU or this library has one family of kernels: nothing to force")
    force_kernels(request.param)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_small(case: Case, seed: int, record_property: Callable[[str, Any], None]) -> None:
    check(case, seed, record_property)


@pytest.mark.parametrize("case", BLOCK_CASES, ids=str)
def test_blocks(case: Case, seed: int, record_property: Callable[[str, Any], None]) -> None:
    check(case, seed, record_property)


@pytest.mark.parametrize("case", GENERIC_CASES, ids=str)
def test_generic_kernels(
    case: Case, seed: int, force_kernels: Callable[[str], None], record_property: Callable[[str, Any], None]
) -> None:
    if not takes_hopper_kernels(case):
        pytest.skip("the other tests run the generic kernels here")
    force_kernels("sm80")
    check(case, seed, lambda name, value: record_property(f"{name}-sm80", value))


@pytest.mark.parametrize("case", FAST, ids=str)
def test_the_generic_kernels_can_be_forced(case: Case, seed: int, force_kernels: Callable[[str], None]) -> None:
    """Known from what they leave in the workspace: they read no compact keys, so nobody writes any."""
    call = Call(case, make_inputs(case, seed))
    call.enqueue()
    assert (call.region("compact_key") != POISON).any() == takes_hopper_kernels(case)
    force_kernels("sm80")
    call.poison()
    call.enqueue()
    assert (call.region("compact_key") == POISON).all()


@pytest.mark.parametrize("case", LARGE_CASES, ids=str)
def test_large(case: Case, seed: int, record_property: Callable[[str, Any], None]) -> None:
    check(case, seed, record_property)


def test_text_lengths_out_of_range_are_clamped(seed: int) -> None:
    call = Call(replace(TEXT, lengths=(8, 0)), make_inputs(replace(TEXT, lengths=(8, 0)), seed))
    wanted = call.enqueue().clone()
    call.poison()
    assert call.lengths is not None
    call.lengths.copy_(torch.tensor([13, -2]))
    assert torch.equal(call.enqueue(), wanted)


@pytest.mark.parametrize("coreset_keys", ["query", "key"])
def test_equal_similarities_keep_the_lower_index(coreset_keys: str, seed: int) -> None:
    case = replace(TEXT, coreset_keys=coreset_keys, routes=((CORESET,) * 4,), lengths=(8,), dtype="float16")
    buckets = buckets_of(case, "cuda").ids  # [G, K], all of them whole
    inputs = make_inputs(case, seed)
    for tensor in inputs[:2]:
        tensor[:, buckets] = tensor[:, buckets[:, :1]]  # all tokens of a bucket alike
        tensor[:, buckets[0]] = 0  # and without a direction in the first
    call = Call(case, inputs)
    call.enqueue()
    ascending = torch.cat([buckets[:, 9:10], buckets[:, :5]], 1).flatten()  # the centre of (2, 3, 2) is token 9
    for head in range(4):
        selection = call.selection(0, head)
        assert torch.equal(selection.kept_queries, ascending)
        assert torch.equal(selection.kept_keys, ascending)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_runs_are_bitwise_equal(head_dim: int, kernels: None, seed: int) -> None:
    case = replace(TILES, head_dim=head_dim)
    call = Call(case, make_inputs(case, seed))
    first = call.enqueue().clone()
    for _ in range(5):
        call.poison()
        assert torch.equal(call.enqueue(), first)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_nan_in_one_head_stays_there(head_dim: int, kernels: None, seed: int) -> None:
    case = replace(TEXT, routes=((FULL, SLIDING, CORESET, FULL),), lengths=(8,), head_dim=head_dim)
    inputs = make_inputs(case, seed)
    inputs[0][0, 7, 1] = float("nan")
    inputs[0][0, 7, 2] = float("nan")
    output = Call(case, inputs).enqueue()
    assert output[0, :, [0, 3]].isfinite().all()
    assert output[0, 7, 1].isnan().all()
    assert output[0, 8:, 1].isfinite().all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", [*FAST, replace(BLOCKS, head_dim=64), replace(BLOCKS, head_dim=128)], ids=str)
def test_poisoned_keys_and_values_reach_only_who_sees_them(case: Case, poison: float, kernels: None, seed: int) -> None:
    """All of one head, and the first token of a sliding head: outputs of everybody else are the same bits."""
    case = replace(case, coreset_keys="query")
    inputs = make_inputs(case, seed)
    clean = Call(case, inputs).enqueue().clone()
    poisoned_head = case.routes[1].index(FULL)
    sliding = case.routes[0].index(SLIDING)
    for tensor in inputs[1:]:
        tensor[1, :, poisoned_head] = poison
        tensor[0, 0, sliding] = poison
    sees = torch.zeros(case.video + case.text, dtype=torch.bool, device="cuda")  # [S+T]
    sees[case.video : case.valid(0)] = True  # text sees everything
    for queries, keys in sliding_blocks(case):
        if 0 in keys:
            sees[queries.cuda()] = True
    same = torch.ones(clean.shape[:3], dtype=torch.bool, device="cuda")  # [B, S+T, N]
    same[1, :, poisoned_head] = False
    same[0, sees, sliding] = False
    assert not same[0, :, sliding].all() and same[0, : case.video, sliding].any()
    call = Call(case, inputs)
    assert torch.equal(call.enqueue()[same], clean[same])
    assert not call.output[0, sees, sliding].isfinite().any()
    assert not call.output[1, : case.valid(1), poisoned_head].isfinite().any()
    assert (call.output[1, case.valid(1) :] == 0).all()


@pytest.mark.parametrize("case", FAST, ids=str)
def test_graph_replay_equals_eager_and_follows_the_routes(case: Case, kernels: None, seed: int) -> None:
    call = Call(case, make_inputs(case, seed))
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        call.enqueue()
    for shift in range(3):
        call.routes.copy_(torch.tensor(case.routes).roll(shift, 1))
        call.poison()
        graph.replay()
        replayed = call.output.clone()
        call.poison()
        assert torch.equal(call.enqueue(), replayed)
        rolled = tuple(tuple(row) for row in call.routes.tolist())
        call.case = replace(case, routes=rolled)
        measure(call)


@pytest.mark.parametrize("case", FAST, ids=str)
def test_calls_in_one_stream_may_share_a_workspace(case: Case, kernels: None, seed: int) -> None:
    """A call must not begin to fill it before the one ahead is done with it."""
    others = replace(case, routes=tuple(row[::-1] for row in case.routes))
    calls = [Call(each, make_inputs(each, seed + i)) for i, each in enumerate((case, others))]
    wanted = [call.enqueue().clone() for call in calls]
    calls[1].tensors.workspace = calls[0].tensors.workspace
    for _ in range(20):
        for call in calls:
            call.output.fill_(float("nan"))
        outputs = [call.enqueue() for call in calls]
        for output, first in zip(outputs, wanted, strict=True):
            assert torch.equal(output, first)


def test_capture_may_be_the_first_call_of_a_process(seed: int) -> None:
    """The library's code is loaded during the capture then."""
    script = f"""
        import sys, types
        package = types.ModuleType("here")
        package.__path__ = [{str(Path(__file__).parent)!r}]
        sys.modules["here"] = package
        import torch
        from here.kernel_call import Call, make_inputs
        from here.kernel_cases import TEXT
        call = Call(TEXT, make_inputs(TEXT, {seed}))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call.enqueue()
        graph.replay()
        torch.cuda.synchronize()
        replayed = call.output.clone()
        call.poison()
        assert torch.equal(call.enqueue(), replayed) and replayed.isfinite().all()
        print("equal")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "equal", result.stderr


@pytest.mark.parametrize("case", [*FAST, replace(BLOCKS, head_dim=128)], ids=str)
def test_concurrent_streams(case: Case, kernels: None, seed: int) -> None:
    calls = [Call(case, make_inputs(case, seed + i)) for i in range(4)]
    wanted = [call.enqueue().clone() for call in calls]
    torch.cuda.synchronize()
    for call in calls:
        call.poison()
    torch.cuda.synchronize()
    for call in calls:
        with torch.cuda.stream(torch.cuda.Stream()):
            call.enqueue()
    torch.cuda.synchronize()
    for call, first in zip(calls, wanted, strict=True):
        assert torch.equal(call.output, first)


def test_offsets_pass_32_bits(seed: int) -> None:
    """Heads lie more than 2^31 elements into the tensor."""
    case = replace(WAN_SMALL, routes=((SLIDING, CORESET),))
    small = make_inputs(case, seed)
    stride = 70_000  # elements from token to token: 32,760 tokens pass 2^31
    wide = [torch.empty(1, case.video, stride, dtype=case.torch_dtype, device="cuda") for _ in range(2)]
    query, key = (big[..., -256:].unflatten(2, (2, 128)) for big in wide)  # [B, S, N, D]
    query.copy_(small[0])
    key.copy_(small[1])
    assert query.stride(1) * (case.video - 1) > 2**31
    output = Call(case, (query, key, small[2])).enqueue()
    assert torch.equal(output, Call(case, small).enqueue())


@pytest.mark.parametrize("case", [replace(TEXT, head_dim=80), replace(TILES, dtype="float16")], ids=str)
def test_torch_operator_is_these_kernels(case: Case, seed: int) -> None:
    from vorta_trt.model import AttentionGeometry, routed_attention

    geometry = AttentionGeometry(
        case.grid, case.tile, case.window, case.bucket, case.keep, case.coreset_keys, case.text
    )  # fmt: skip
    call = Call(case, make_inputs(case, seed))
    output = routed_attention(*call.inputs, call.routes, geometry, call.lengths)
    assert torch.equal(output, call.enqueue())
