# SPDX-License-Identifier: Apache-2.0
"""The kernels on a GPU against the oracle: at most twice the error that torch's attention makes in the same dtype."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .kernel_call import Call, make_inputs
from .kernel_cases import LARGE_CASES, SMALL_CASES, TEXT, TILES, WAN_SMALL
from .kernel_oracle import CORESET, FULL, SLIDING, Case, Selection, bucket_ids, expected, near_ties

pytestmark = pytest.mark.gpu

BRANCHES = {FULL: "full", CORESET: "coreset", SLIDING: "sliding"}


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed every day and test, printed when the test fails."""
    import datetime

    value = zlib.crc32(f"{request.node.nodeid}{datetime.date.today()}".encode())
    print(f"seed {value}")
    return value


def check_coreset(call: Call, sample: int, head: int) -> tuple[Selection, int]:
    """The kernels' coreset of a head, once it is shown to be right; and how many near ties it has."""
    case = call.case
    selection = call.selection(sample, head)
    query, key = (tensor[sample, : case.video, head] for tensor in call.inputs[:2])
    buckets = bucket_ids(case.grid, case.bucket).cuda()  # [G, K]
    t, h, w = case.bucket
    assert torch.equal(selection.kept_queries[:, 0], buckets[:, (t // 2 * h + h // 2) * w + w // 2]), "centre first"
    both = torch.cat([selection.kept_queries, selection.dropped_queries], 1)  # [G, K]
    assert torch.equal(both.sort(1).values, buckets), "kept and dropped tokens make up the bucket"
    ties = near_ties(case, query, selection.kept_queries)
    if case.coreset_keys == "key":
        ties += near_ties(case, key, selection.kept_keys)
    return selection, ties


def measure(call: Call) -> dict[str, dict[str, float]]:
    """Per branch: largest and root-mean-square error, and torch's. Asserts what holds for every output."""
    case, output = call.case, call.output
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    ties = dict.fromkeys(BRANCHES.values(), 0)
    nothing = torch.empty(0, 0, dtype=torch.long, device="cuda")
    for sample in range(case.batch):
        valid = case.valid(sample)
        assert output[sample, :valid].isfinite().all(), f"{case}: output of sample {sample} is not finite"
        assert (output[sample, valid:] == 0).all(), f"{case}: padded text of sample {sample} is not 0"
        for head, route in enumerate(case.routes[sample]):
            branch = BRANCHES.get(route, "full")
            selection = Selection(nothing, nothing, nothing)
            if route == CORESET:
                selection, tied = check_coreset(call, sample, head)
                ties[branch] += tied
            exact, by_torch = expected(case, sample, head, call.inputs, selection)
            found.setdefault(branch, []).append((exact, by_torch, output[sample, :, head]))
    report = {}
    for branch, heads in found.items():
        exact, by_torch, ours = (torch.stack([head[i] for head in heads]).double() for i in range(3))
        errors, torch_errors = ours - exact, by_torch - exact
        report[branch] = {
            "max_error": errors.abs().max().item(),
            "torch_max_error": torch_errors.abs().max().item(),
            "rms_error": errors.square().mean().sqrt().item(),
            "torch_rms_error": torch_errors.square().mean().sqrt().item(),
            "near_ties": ties[branch],
        }
    return report


def check(case: Case, seed: int, record: Callable[[str, Any], None]) -> Call:
    call = Call(case, make_inputs(case, seed))
    call.enqueue()
    torch.cuda.synchronize()
    for branch, errors in measure(call).items():
        record(f"{case}-{branch}", errors)
        assert errors["rms_error"] <= 2 * errors["torch_rms_error"], f"{case} {branch}: {errors}"
        assert errors["max_error"] <= 2 * errors["torch_max_error"], f"{case} {branch}: {errors}"
    return call


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_small(case: Case, seed: int, record_property: Callable[[str, Any], None]) -> None:
    check(case, seed, record_property)


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
    buckets = bucket_ids(case.grid, case.bucket).cuda()  # [G, K]
    inputs = make_inputs(case, seed)
    for tensor in inputs[:2]:
        tensor[:, buckets] = tensor[:, buckets[:, :1]]  # all tokens of a bucket alike
        tensor[:, buckets[0]] = 0  # and without a direction in the first
    call = Call(case, inputs)
    call.enqueue()
    ascending = torch.cat([buckets[:, 9:10], buckets[:, :5]], 1)  # the centre of a (2, 3, 2) bucket is token 9
    for head in range(4):
        selection = call.selection(0, head)
        assert torch.equal(selection.kept_queries, ascending)
        assert torch.equal(selection.kept_keys, ascending)


def test_runs_are_bitwise_equal(seed: int) -> None:
    call = Call(replace(TILES, head_dim=128), make_inputs(replace(TILES, head_dim=128), seed))
    first = call.enqueue().clone()
    for _ in range(5):
        call.poison()
        assert torch.equal(call.enqueue(), first)


def test_nan_in_one_head_stays_there(seed: int) -> None:
    case = replace(TEXT, routes=((FULL, SLIDING, CORESET, FULL),), lengths=(8,))
    inputs = make_inputs(case, seed)
    inputs[0][0, 7, 1] = float("nan")
    inputs[0][0, 7, 2] = float("nan")
    output = Call(case, inputs).enqueue()
    assert output[0, :, [0, 3]].isfinite().all()
    assert output[0, 7, 1].isnan().all()
    assert output[0, 8:, 1].isfinite().all()


def test_graph_replay_equals_eager_and_follows_the_routes(seed: int) -> None:
    case = replace(TEXT, head_dim=128)
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


def test_concurrent_streams(seed: int) -> None:
    calls = [Call(TEXT, make_inputs(TEXT, seed + i)) for i in range(4)]
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
