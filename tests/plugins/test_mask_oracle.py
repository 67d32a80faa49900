# SPDX-License-Identifier: Apache-2.0
"""The two oracles of the kernel tests against each other on ragged problems, and against the authors' outputs."""

from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load_file

from .. import mask_oracle as plain_oracle
from . import mask_oracle
from .attention_inputs import CHARACTERS, add_sinks, realistic
from .authors_cases import FILE, every_case
from .kernel_oracle import CORESET, FULL, SLIDING, Case, buckets_of, expected, select_head, sliding_blocks


def random_case(number: int) -> Case:
    draw = random.Random(number)

    def triple(most: int) -> tuple[int, int, int]:
        return draw.randint(1, most), draw.randint(1, most), draw.randint(1, most)

    bucket = triple(4)
    text = draw.choice((0, 0, 5))
    window = (draw.choice((1, 3, 5)), draw.choice((1, 3, 5)), draw.choice((1, 3, 5)))
    return Case(
        f"random-{number}", triple(8), triple(9), window, bucket, draw.randint(1, bucket[0] * bucket[1] * bucket[2]),
        ((FULL, CORESET, SLIDING),), (draw.randint(0, text),) if text else (), text, draw.choice(("query", "key")),
        head_dim=16, dtype="float32",
    )  # fmt: skip


def pattern_of(case: Case) -> mask_oracle.Pattern:
    return mask_oracle.Pattern(case.grid, case.tile, case.window, case.bucket, case.keep, case.text)


@pytest.mark.parametrize("number", range(40))
def test_the_oracles_agree(number: int) -> None:
    case = random_case(number)
    inputs = realistic((1, case.video + case.text, 3, 16), torch.Generator().manual_seed(number))
    query, key, value = inputs
    for head, route in enumerate(case.routes[0]):
        selection = select_head(case, query[0, :, head], key[0, :, head])
        exact, _ = expected(case, 0, head, inputs, selection)
        wanted = mask_oracle.routed(
            pattern_of(case), query[0, :, head], key[0, :, head], value[0, :, head], route,
            case.lengths[0] if case.text else 0, case.coreset_keys,
        )  # fmt: skip
        torch.testing.assert_close(exact, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("number", range(40, 50))
def test_the_oracles_see_the_same_tiles_and_buckets(number: int) -> None:
    case = random_case(number)
    mask = torch.zeros(case.video, case.video, dtype=torch.bool)
    for queries, keys in sliding_blocks(case):
        mask[queries[:, None], keys] = True
    assert torch.equal(mask, mask_oracle.sliding_mask(pattern_of(case)))
    buckets, coreset = buckets_of(case), mask_oracle.coreset_of(pattern_of(case))
    for row, ids in enumerate(buckets.ids):
        inside = ids[ids >= 0]
        assert (coreset.bucket[inside] == row).all()
        assert (coreset.centre[inside] == buckets.centre[row]).all()
        assert (coreset.keep[inside] == buckets.keep[row]).all()


@pytest.mark.parametrize("number", range(50, 65))
def test_the_oracle_of_the_python_tests_agrees(number: int) -> None:
    """Written by somebody else from the same text, entry by entry in plain Python."""
    case = random_case(number)
    theirs = plain_oracle.Problem(
        case.grid, case.tile, case.window, case.bucket, case.keep, case.coreset_keys, case.text
    )  # fmt: skip
    assert mask_oracle.sliding_mask(pattern_of(case)).tolist() == plain_oracle.sliding_mask(theirs).tolist()
    tokens = torch.randn(case.video, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    kept, centre_of, _ = plain_oracle.choose(theirs, tokens.numpy())
    ours = mask_oracle.kept_tokens(pattern_of(case), tokens[None])[0]
    assert set(ours.nonzero().flatten().tolist()) == kept
    centre = mask_oracle.coreset_of(pattern_of(case)).centre
    assert {token: int(centre[token]) for token in (~ours).nonzero().flatten().tolist()} == centre_of


def test_a_ragged_axis_by_hand() -> None:
    """Seven tokens in tiles of three, windows of one and three tiles; buckets of four that keep two."""
    pattern = mask_oracle.Pattern((1, 1, 7), (1, 1, 3), (1, 1, 1), (1, 1, 4), 2)
    own_tile = [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3 + [[6]]
    assert [row.nonzero().flatten().tolist() for row in mask_oracle.sliding_mask(pattern)] == own_tile
    wide = mask_oracle.Pattern((1, 1, 10), (1, 1, 3), (1, 1, 3), (1, 1, 4), 2)  # tiles of 3, 3, 3 and 1
    seen = [row.nonzero().flatten().tolist() for row in mask_oracle.sliding_mask(wide)]
    assert seen == [list(range(9))] * 6 + [list(range(3, 10))] * 4  # the last tile's centre is clamped to the third
    coreset = mask_oracle.coreset_of(pattern)
    assert coreset.centre.tolist() == [2] * 4 + [5] * 3
    assert coreset.keep.tolist() == [2] * 4 + [1] * 3  # 3 * 2 // 4


@every_case
def test_mask_oracle_reproduces_the_authors_outputs(name: str, route: int, text: int, coreset_keys: str) -> None:
    tensors = load_file(FILE)
    pattern = mask_oracle.Pattern((10, 6, 6), (2, 3, 2), (3, 1, 3), (2, 3, 2), 6, text)
    query, key, value = (tensors[part][0, : 360 + text] for part in ("query", "key", "value"))  # [L, N, D]
    for head in range(2):
        output = mask_oracle.routed(
            pattern, query[:, head], key[:, head], value[:, head], route, 5 if text else 0, coreset_keys
        )
        torch.testing.assert_close(output.float(), tensors[name][0, :, head], rtol=0, atol=1e-5)


def test_inputs_have_what_they_promise() -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (1, 2000, len(CHARACTERS), 64)
    query, key, value = realistic(shape, generator)
    assert (value.mean(1).abs() > 0.1).float().mean() > 0.8
    logits = torch.einsum("bqnd,bknd->bnqk", query[:, :100], key) / 8
    assert (key[0].std(0).amax(1) > 15).sum() >= 2  # heads with channels that stick out
    assert (key[0].mean(0).amax(1) > 15).sum() == 1  # and one with a mean in some
    assert logits.isfinite().all()
    for nats in (0.0, 9.0, 14.0):
        q, k = torch.randn(2, 4000, 64, generator=generator)
        add_sinks(q, k, (5, 7), nats, generator)
        above = (q @ k[[5, 7]].T / 8).mean() - (q @ k.T / 8).mean()
        assert above.item() == pytest.approx(nats, abs=0.1)
