# SPDX-License-Identifier: Apache-2.0
"""Guards win over calibrated routes, and those over the router."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vorta_trt.runtime.sampling.route_guards import RouteGuards

STEPS, LAYERS, HEADS = 7, 4, 3


def calibrated(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 3, (STEPS, LAYERS, HEADS), generator=generator, dtype=torch.int32)


def test_without_guards_calibrated_routes_stand_and_the_router_decides_the_rest(seed: int) -> None:
    routes = calibrated(seed)
    assert RouteGuards().override(STEPS, LAYERS, HEADS) is None
    override = RouteGuards().override(STEPS, LAYERS, HEADS, routes)
    assert override is not None and torch.equal(override, routes)
    assert override is not routes


@pytest.mark.parametrize("over_calibrated", [False, True])
def test_guards_win_where_they_are_and_nowhere_else(over_calibrated: bool, seed: int) -> None:
    below = calibrated(seed) if over_calibrated else torch.full((STEPS, LAYERS, HEADS), -1, dtype=torch.int32)
    given = below.clone() if over_calibrated else None
    override = RouteGuards(dense_first=2, dense_last=1, dense_layers=(0, 3)).override(STEPS, LAYERS, HEADS, given)
    assert override is not None and override.dtype == torch.int32
    for step in range(STEPS):
        for layer in range(LAYERS):
            guarded = step < 2 or step == STEPS - 1 or layer in (0, 3)
            expected = [0] * HEADS if guarded else below[step, layer].tolist()
            assert override[step, layer].tolist() == expected
    if given is not None:
        assert torch.equal(given, below)  # not changed


def test_which_steps_are_dense() -> None:
    assert RouteGuards(1, 2).dense_steps(5) == [True, False, False, True, True]
    assert RouteGuards(9, 0).dense_steps(3) == [True] * 3
    assert RouteGuards(dense_layers=(1,)).dense_steps(2) == [False, False]


def test_what_does_not_fit(seed: int) -> None:
    with pytest.raises(ValueError, match="dense_layers 4: must be one of the model's, 0 to 3"):
        RouteGuards(dense_layers=(1, 4)).override(STEPS, LAYERS, HEADS)
    with pytest.raises(ValueError, match="dense_last -1: must be a number of steps"):
        RouteGuards(dense_last=-1)
    for wrong in (calibrated(seed)[:-1], calibrated(seed).long()):
        with pytest.raises(ValueError, match=r"calibrated routes of shape .*: must be int32 \(7, 4, 3\)"):
            RouteGuards().override(STEPS, LAYERS, HEADS, wrong)
