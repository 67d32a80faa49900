# SPDX-License-Identifier: Apache-2.0
"""What the coreset selection leaves in the workspace: lists of token ids, and keys and values as contiguous rows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from .kernel_call import COMPACT_HEAD_DIMS, POISON, Call, make_inputs, takes_hopper_kernels, workspace_regions
from .kernel_cases import (
    DTYPES,
    EDGES,
    HEAD_DIMS,
    HUNYUAN,
    HUNYUAN_RAGGED,
    LAYOUTS,
    MINIMAL,
    MINIMAL_TEXT,
    ODD,
    RAGGED_CASES,
    TEXT,
    TILES,
    WAN,
    WAN_RAGGED,
)
from .kernel_oracle import CORESET, FULL, SLIDING, Case, buckets_of, check_selection

pytestmark = pytest.mark.gpu

KEYS = ("query", "key")
#: More heads than a block looks up at once (256), most of them on other branches.
MANY_HEADS = replace(
    TEXT,
    name="many-heads",
    grid=(2, 6, 4),
    tile=(2, 6, 4),
    routes=tuple(tuple(random.Random(i).choices((FULL, CORESET, SLIDING), (4, 1, 4), k=211)) for i in range(3)),
    lengths=(8, 0, 3),
)
CASES = (
    *(replace(TEXT, head_dim=d, dtype=t, coreset_keys=k) for d in HEAD_DIMS for t in DTYPES for k in KEYS),
    *(replace(case, head_dim=d, dtype=t) for case in (TILES, ODD, *RAGGED_CASES) for d in COMPACT_HEAD_DIMS
      for t in DTYPES),
    *(replace(case, head_dim=d, coreset_keys=k) for case in (*EDGES, MINIMAL, MINIMAL_TEXT) for d in (64, 128, 256)
      for k in KEYS),
    *(replace(TEXT, name=n, layout=n, head_dim=d, coreset_keys="key") for n in LAYOUTS for d in (64, 80, 128)),
    *(replace(MANY_HEADS, head_dim=d, coreset_keys=k) for d in (64, 128) for k in KEYS),
    replace(TEXT, name="no-coreset", routes=((FULL, SLIDING, 7),), lengths=(5,)),
    replace(TEXT, name="all-coreset", routes=((CORESET,) * 3,) * 2),
    WAN,
    HUNYUAN,
    WAN_RAGGED,
    HUNYUAN_RAGGED,
    replace(HUNYUAN, name="hunyuan-all-coreset", routes=((CORESET,) * 8,)),
)  # fmt: skip


def check_lists(call: Call, sample: int, head: int) -> None:
    query, key = (tensor[sample, : call.case.video, head] for tensor in call.inputs[:2])  # [S, D]
    check_selection(call.case, call.selection(sample, head), query, key)


def check_rows(call: Call, sample: int, head: int) -> None:
    """Kept tokens in the order of their list, valid text, zeros; bit for bit."""
    case = call.case
    kept = call.selection(sample, head).kept_keys
    for name, tensor in (("compact_key", call.inputs[1]), ("compact_value", call.inputs[2])):
        rows = tensor[sample, :, head]  # [S+T, D]
        padding = rows.new_zeros(case.video + case.text - case.valid(sample), case.head_dim)
        wanted = torch.cat([rows[kept], rows[case.video : case.valid(sample)], padding])  # [kept + T, D]
        assert torch.equal(call.compact_rows(name, sample, head), wanted), f"{case}: {name} of head {head}"


def check_the_rest(call: Call) -> None:
    """What belongs to no coreset head, gaps and the bytes behind the workspace are as they were."""
    case = call.case
    regions = workspace_regions(case)
    assert regions["end"][0] == len(call.workspace)
    untouched = torch.ones(len(call.workspace), dtype=torch.bool, device="cuda")
    routes = torch.tensor(case.routes, device="cuda")  # [B, N]
    for name, (offset, size) in regions.items():
        if name == "work_counter":  # the attention's own
            untouched[offset : offset + size] = False
        elif size and (takes_hopper_kernels(case) or not name.startswith("compact")):
            view = untouched[offset : offset + size].view(case.batch, case.heads, -1)
            view[routes == CORESET] = False
    assert (call.workspace[untouched] == POISON).all()
    assert (call.guard == POISON).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{case.coreset_keys}")
def test_lists_and_rows(case: Case, seed: int) -> None:
    call = Call(case, make_inputs(case, seed))
    call.enqueue()
    torch.cuda.synchronize()
    for sample, routes in enumerate(case.routes):
        for head, route in enumerate(routes):
            if route == CORESET:
                check_lists(call, sample, head)
                if takes_hopper_kernels(case):
                    check_rows(call, sample, head)
    check_the_rest(call)


@pytest.mark.parametrize("text", [0, 8])
def test_text_lengths_out_of_range_are_clamped(text: int, seed: int) -> None:
    case = replace(TEXT, head_dim=128, lengths=(text, text))
    call = Call(case, make_inputs(case, seed))
    assert call.lengths is not None
    call.lengths.fill_(-3 if text == 0 else 1000)
    call.enqueue()
    torch.cuda.synchronize()
    if takes_hopper_kernels(case):
        check_rows(call, 1, 0)
    check_the_rest(call)


def exact_order(case: Case, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Kept and dropped token ids of one head [S, D], of tokens of one norm whose products are exact in float32."""
    buckets = buckets_of(case, "cuda")
    vectors = tokens.float()
    products = (vectors[buckets.ids] * vectors[buckets.centre][:, None]).sum(-1)  # [G, K]
    products = products.masked_fill(products.isnan(), 1e30).masked_fill(buckets.ids < 0, float("inf"))
    products[buckets.ids == buckets.centre[:, None]] = -float("inf")  # stays, and leads its list
    ranked = buckets.ids.gather(1, products.sort(dim=1, stable=True).indices)  # [G, K]
    kept = torch.arange(ranked.shape[1], device="cuda") < buckets.keep[:, None]  # [G, K]
    return ranked[kept], ranked[~kept & (ranked >= 0)]


@pytest.mark.parametrize("bucket", [(2, 3, 2), (1, 3, 6), (5, 6, 2), (2, 1, 1), (3, 4, 5), (11, 1, 4)])
@pytest.mark.parametrize("head_dim", [8, 64, 128, 256])
@pytest.mark.parametrize("coreset_keys", KEYS)
def test_ties_and_nan(coreset_keys: str, head_dim: int, bucket: tuple[int, int, int], seed: int) -> None:
    """Entries of +1 and -1 make many equal similarities; the lower index stays. NaN ranks last."""
    keep = (bucket[0] * bucket[1] * bucket[2] + 1) // 2
    case = replace(TEXT, coreset_keys=coreset_keys, head_dim=head_dim, bucket=bucket, keep=keep)
    inputs = make_inputs(case, seed)
    generator = torch.Generator("cuda").manual_seed(seed)
    for tensor in inputs[:2]:
        video = tensor[:, : case.video]
        video.copy_(torch.randint(0, 2, video.shape, generator=generator, device="cuda") * 2 - 1)
        video[torch.rand(video.shape[:3], generator=generator, device="cuda") < 0.05] = float("nan")
    call = Call(case, inputs)
    call.enqueue()
    for sample, routes in enumerate(case.routes):
        for head, route in enumerate(routes):
            if route == CORESET:
                selection = call.selection(sample, head)
                by_query, by_key = (exact_order(case, tensor[sample, : case.video, head]) for tensor in inputs[:2])
                assert torch.equal(selection.kept_queries, by_query[0])
                assert torch.equal(selection.dropped_queries, by_query[1])
                assert torch.equal(selection.kept_keys, (by_key if coreset_keys == "key" else by_query)[0])


def test_lists_and_rows_are_written_anew_by_every_call(seed: int) -> None:
    case = replace(TILES, head_dim=128)
    call = Call(case, make_inputs(case, seed))
    call.enqueue()
    first = call.workspace.clone()
    end = workspace_regions(case)["work_counter"][0]
    for _ in range(3):
        call.poison()
        call.enqueue()
        assert torch.equal(call.workspace[:end], first[:end])
