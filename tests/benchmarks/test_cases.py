# SPDX-License-Identifier: Apache-2.0
"""What is measured: the published sizes, useful FLOPs, mixed routes, and which head is checked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vorta_trt.benchmarks.cases import (
    RAGGED,
    SMALL,
    Case,
    checked_head,
    head_counts,
    make_inputs,
    route_ids,
    select_cases,
)
from vorta_trt.model import AttentionGeometry


def test_default_cases() -> None:
    cases = {(case.name, case.geometry.grid, case.heads, case.text_length) for case in select_cases()}
    hunyuan = {("hunyuan", (30, 45, 80), heads, text) for heads in (8, 24) for text in (77, 256)}
    assert cases == hunyuan | {
        ("wan-1.3b", (21, 30, 52), 12, 0),
        ("wan-14b", (20, 45, 80), 8, 0),
        ("wan-14b", (20, 45, 80), 40, 0),
        ("aligned", (30, 48, 80), 8, 0),
    }
    assert {case.head_dim for case in select_cases()} == {128}


def test_small_cases_span_a_thousand_to_ten_thousand_tokens() -> None:
    cases = select_cases(small=True)
    tokens = [case.geometry.tokens for case in cases]
    assert len(cases) == len(SMALL) and {case.heads for case in cases} == {12}
    assert tokens == sorted(tokens) and 1000 <= tokens[0] < 1300 and 9000 < tokens[-1] <= 10000


def test_every_ragged_case_has_a_whole_one_beside_it() -> None:
    for name, beside in zip(*[iter(RAGGED)] * 2, strict=True):
        ragged, whole = RAGGED[name].geometry, RAGGED[beside].geometry
        assert (ragged.tile, ragged.tiles, ragged.keep) == (whole.tile, whole.tiles, whole.keep)
        assert any(extent % size for extent, size in zip(ragged.grid, ragged.tile, strict=True))
        for shape in (whole.tile, whole.bucket):
            assert not any(extent % size for extent, size in zip(whole.grid, shape, strict=True))
        assert select_cases([name])[0].geometry == ragged


def test_chosen_cases() -> None:
    cases = select_cases(["hunyuan", "wan-14b"], heads=[3], text_lengths=[0, 1], head_dim=64, dtype="fp16")
    assert [(case.name, case.heads, case.text_length) for case in cases] == [
        ("hunyuan", 3, 0),
        ("hunyuan", 3, 1),
        ("wan-14b", 3, 0),
    ]
    assert str(cases[1]) == "hunyuan: grid 30x45x80, 1 of 256 text tokens, N=3, D=64, fp16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["wan"]}, "geometry 'wan': must be one of wan-1.3b, wan-14b"),
        ({"heads": [0]}, "heads 0: must be at least 1"),
        ({"text_lengths": [257]}, "text length 257: must be between 0 and the geometry's 256"),
        ({"head_dim": 12}, "head dimension 12: must be a multiple of 8"),
        ({"head_dim": 264}, "head dimension 264"),
    ],
)
def test_bad_choices(arguments: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_cases(**arguments)


def test_flops_count_the_pairs_that_are_needed(make_case: Callable[..., Case]) -> None:
    geometry = AttentionGeometry((4, 6, 8), (2, 3, 2), (1, 1, 3), (2, 3, 2), 6, "key", 10)
    case = make_case(geometry=geometry, text_length=7, heads=5)
    pair = 4 * case.head_dim
    full, coreset = pair * (192 + 7) ** 2, pair * (96 + 7) ** 2
    sliding = pair * (192 * (36 + 7) + 7 * (192 + 7))
    assert [case.flops(branch) for branch in ("full", "coreset", "sliding")] == [5 * full, 5 * coreset, 5 * sliding]
    assert case.flops("mixed") == full + 2 * coreset + 2 * sliding


@pytest.mark.parametrize(
    ("heads", "counts"),
    [
        (1, {"full": 1}),
        (2, {"full": 1, "coreset": 1}),
        (8, {"full": 1, "coreset": 4, "sliding": 3}),
        (40, {"full": 1, "coreset": 20, "sliding": 19}),
        (2000, {"full": 4, "coreset": 998, "sliding": 998}),
    ],
)
def test_mixed_routes(heads: int, counts: dict[str, int]) -> None:
    assert head_counts("mixed", heads) == counts
    assert sum(counts.values()) == len(route_ids("mixed", heads)) == heads


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 40])
def test_the_checked_head_takes_its_branch_in_mixed_routes_too(heads: int) -> None:
    ids = route_ids("mixed", heads)
    for route, branch in enumerate(("full", "coreset", "sliding")):
        head = checked_head(branch, heads)
        assert ids[head] == route or branch not in head_counts("mixed", heads)
        assert route_ids(branch, heads) == [route] * heads


def test_unknown_branch() -> None:
    with pytest.raises(ValueError, match="branch 'dense': must be one of full, coreset, sliding, mixed"):
        route_ids("dense", 2)


def test_inputs(case: Case, seed: int) -> None:
    inputs = make_inputs(case, "cpu", seed)
    assert torch.equal(inputs.query, make_inputs(case, "cpu", seed).query)
    assert not torch.equal(inputs.query, inputs.key)
    assert inputs.query.shape == (1, case.geometry.tokens, case.heads, case.head_dim)
    assert (inputs.text_length is None) == (case.geometry.text_tokens == 0)
    assert torch.equal(inputs.heads([2, 0]).value, inputs.value[:, :, [2, 0]])
    assert torch.equal(inputs.head(1).key, inputs.key[:, :, 1:2])
    assert inputs.heads_first(case.valid)[0].shape == (1, case.heads, case.valid, case.head_dim)


def test_outliers_are_in_four_channels_of_query_and_key(make_case: Callable[..., Case], seed: int) -> None:
    inputs = make_inputs(make_case(inputs="outliers"), "cpu", seed)
    for tensor, first in ((inputs.query, 0), (inputs.key, 4)):
        large = tensor.std(dim=(0, 1, 2)) > 8
        assert large.nonzero().flatten().tolist() == list(range(first, first + 4))
    assert inputs.value.std() < 2
