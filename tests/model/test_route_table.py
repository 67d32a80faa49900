# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.model import RoutedTransformer, RouteTable

TIMESTEPS = [1000.0, 750.0, 500.0, 250.0, 1.0]


@pytest.fixture(scope="module")
def routed(pipeline: Any) -> RoutedTransformer:
    return RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, tau=0.4)


@pytest.fixture(scope="module")
def table(routed: RoutedTransformer) -> RouteTable:
    return RouteTable.from_model(routed, TIMESTEPS)


def test_equals_what_the_model_takes(routed: RoutedTransformer, table: RouteTable, seed: int) -> None:
    assert table.routes.shape == (5, 3, 4) and table.routes.dtype == torch.int8
    inputs = routed.inputs(5, seed)
    inputs["timestep"] = torch.tensor(TIMESTEPS)
    inputs["tau"] = torch.tensor([0.4])
    with torch.no_grad():
        _, routes = routed(**inputs)  # [L, B, N]
    assert torch.equal(table.routes.int(), routes.transpose(0, 1))
    torch.testing.assert_close(table.scores.sum(-1), torch.ones(5, 3, 4))


def test_figures(table: RouteTable) -> None:
    shares = table.shares()
    assert list(shares) == ["full", "coreset", "sliding"] and sum(shares.values()) == pytest.approx(1)
    geometry = table.geometry
    expected = sum(
        shares[name] * geometry.attention_flops(name, 24) / geometry.attention_flops("full", 24) for name in shares
    )
    assert table.saved == pytest.approx(1 - expected)
    assert table.dense_flops == 12 * 4 * 24 * 72**2
    assert float(table.flops_per_step().sum()) == pytest.approx(5 * table.dense_flops * (1 - table.saved))
    per_step = table.saved_per_step()
    assert per_step.shape == (5,) and bool((per_step < 1).all())


def test_threshold_and_override(routed: RoutedTransformer) -> None:
    dense = RouteTable.from_model(routed, TIMESTEPS, tau=1.1)
    assert dense.shares()["full"] == 1 and dense.saved == 0
    override = torch.full((3, 4), -1, dtype=torch.int32)
    override[0] = 2
    table = RouteTable.from_model(routed, torch.tensor(TIMESTEPS), tau=1.1, route_override=override)
    assert table.shares() == pytest.approx({"full": 2 / 3, "coreset": 0, "sliding": 1 / 3})


def test_unknown_ids_count_as_full(table: RouteTable) -> None:
    odd = dataclasses.replace(table, routes=torch.full_like(table.routes, 7))
    assert odd.shares() == {"full": 1, "coreset": 0, "sliding": 0} and odd.saved == 0


def test_json_round_trip(table: RouteTable) -> None:
    again = RouteTable.from_json(table.to_json())
    assert torch.equal(again.routes, table.routes)
    torch.testing.assert_close(again.scores, table.scores, rtol=0, atol=1e-6)
    assert (again.timesteps, again.tau, again.geometry, again.head_dim) == (
        table.timesteps, table.tau, table.geometry, table.head_dim
    )  # fmt: skip
    content = json.loads(table.to_json())
    assert content["attention_flops_saved"] == pytest.approx(table.saved)
    with pytest.raises(ValueError, match="route table of format None: must be 1"):
        RouteTable.from_json("{}")


def test_summary(table: RouteTable) -> None:
    lines = table.summary().splitlines()
    assert lines[0] == "5 steps, 3 layers, 4 heads, tau 0.4"
    assert lines[2].split() == ["timestep", "full", "coreset", "sliding", "saved"]
    assert lines[3].split()[0] == "1000.0" and lines[-2].split()[0] == "all"


@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture(routed: RoutedTransformer, tmp_path: Path, steps: int, suffix: str) -> None:
    table = RouteTable.from_model(routed, torch.linspace(1000, 1, steps))
    path = table.plot(tmp_path / f"routes.{suffix}")
    assert path.stat().st_size > 2000


def test_wrong_use(routed: RoutedTransformer, pipeline: Any) -> None:
    with pytest.raises(ValueError, match="timesteps .*: must hold at least one"):
        RouteTable.from_model(routed, [])
    with pytest.raises(ValueError, match="geometry None"):
        RouteTable.from_model(RoutedTransformer.from_pretrained(pipeline.checkpoint), TIMESTEPS)
