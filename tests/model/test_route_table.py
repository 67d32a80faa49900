# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
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
    assert np.shape(content["shares_per_step_and_layer"]["sliding"]) == (5, 3)
    assert content["total_flops_dense"] == again.total_dense_flops == table.total_dense_flops
    assert content["total_flops_saved"] == pytest.approx(table.total_saved)
    for name in [key for key in content if key.startswith(("total_", "other_", "shares_per"))]:
        del content[name]  # as older versions wrote it
    older = RouteTable.from_json(json.dumps(content))
    assert older.total_saved is None and older.saved == table.saved and "end to end" not in older.summary()
    with pytest.raises(ValueError, match="route table: format: is missing|route table: content .*: must be an object"):
        RouteTable.from_json("{}")


def test_summary(table: RouteTable) -> None:
    lines = table.summary().splitlines()
    assert lines[0] == "5 steps, 3 layers, 4 heads, tau 0.4"
    assert lines[2].split() == ["timestep", "full", "coreset", "sliding", "saved"]
    assert lines[3].split()[0] == "1000.0" and lines[8].split()[0] == "all"
    assert lines[9].startswith("attention per sample and schedule: ")
    assert lines[-1].startswith("end to end per sample and schedule: ")


@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture(routed: RoutedTransformer, tmp_path: Path, steps: int, suffix: str) -> None:
    table = RouteTable.from_model(routed, torch.linspace(1000, 1, steps))
    path = table.plot(tmp_path / f"routes.{suffix}")
    assert path.stat().st_size > 2000


def test_shares_per_step_and_layer(table: RouteTable) -> None:
    shares = table.shares_per_step_and_layer()
    torch.testing.assert_close(sum(shares.values()), torch.ones(5, 3, dtype=torch.float64))
    assert float(shares["sliding"][1, 2]) == (table.routes[1, 2] == 2).double().mean()


def test_wrong_use(routed: RoutedTransformer, pipeline: Any) -> None:
    with pytest.raises(ValueError, match="timesteps .*: must hold at least one"):
        RouteTable.from_model(routed, [])
    with pytest.raises(ValueError, match="max_panels 0: must be at least 1"):
        RouteTable.from_model(routed, TIMESTEPS).plot("routes.png", 0)
    with pytest.raises(ValueError, match="geometry None"):
        RouteTable.from_model(RoutedTransformer.from_pretrained(pipeline.checkpoint), TIMESTEPS)
