# SPDX-License-Identifier: Apache-2.0
"""The small chain through TensorRT 8.6, with torch on the CPU in the place of engine and GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorrt8_chain as chain
import tensorrt8_chain_14b as chain_14b
import torch

import vorta_trt.runtime
from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_checkpoint import make_router

SMALL = AttentionGeometry(grid=(2, 6, 4), tile=(2, 3, 2), window=(1, 1, 1), bucket=(2, 3, 2), keep=6)


class TorchEngine:
    """The model of a bundle's checkpoint, with an error where `wrong` says so."""

    wrong = ""

    def __init__(self, bundle: Path, cuda_graph: bool = True) -> None:
        self.model: RoutedTransformer = chain.load(bundle.parent, 64, "float16")
        self.graph = cuda_graph

    def __enter__(self) -> TorchEngine:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __call__(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        sample, routes = self.model(**inputs)
        if self.wrong == "sample":
            sample = sample * 1.05
        if self.wrong == "routes":
            routes = (routes + 1) % 3
        if self.wrong == "graph" and self.graph:
            sample = sample + 1e-3
        return {"sample": sample, "routes": routes}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(chain, "GEOMETRY", SMALL)
    monkeypatch.setattr(chain, "ROUTINGS", {name: chain.ROUTINGS[name] for name in ("router, tau 0.45", "mixed")})
    monkeypatch.setattr(vorta_trt.runtime, "Engine", TorchEngine)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda module: module)
    make_wan_checkpoint(tmp_path / "wan-64", layers=3, heads=4, head_dim=64, ffn_dim=256, text_dim=128)
    make_router(tmp_path / "wan-64" / "router", SMALL, layers=3, heads=4, head_dim=64)
    return tmp_path


def test_an_engine_like_torch_is_right(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = list(chain.run(work, 64))
    assert [(o.routing, o.batch) for o in outcomes] == [
        ("router, tau 0.45", 1), ("router, tau 0.45", 2), ("mixed", 1), ("mixed", 2)
    ]  # fmt: skip
    assert all(o.right and 1e-5 < o.error == o.torch_error < 1e-2 for o in outcomes)
    draws = [(draw, outcome) for outcome in outcomes for draw in outcome.draws]
    assert len(draws) == 4 * chain.DRAWS
    assert all(0 < draw.routed_heads < 3 * 4 * outcome.batch for draw, outcome in draws)  # not all of one kind
    chain.show(outcomes)
    shown = capsys.readouterr().out
    assert "mixed" in shown and "WRONG" not in shown


@pytest.mark.parametrize("wrong", ["sample", "routes", "graph"])
def test_an_engine_that_errs_is_found(work: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setattr(TorchEngine, "wrong", wrong)
    monkeypatch.setattr(chain, "ROUTINGS", {"mixed": chain.ROUTINGS["mixed"]})
    assert not any(outcome.right for outcome in chain.run(work, 64))


def test_table_marks_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    draw = chain.Draw(1e-3, 1e-3, True, True, 5)
    outlier, differs = replace(draw, error=3e-3), replace(draw, graph_equal=False)
    cases = [(draw,) * 3, (draw, draw, outlier), (draw, outlier, outlier), (draw, draw, differs)]
    chain.show([chain.Outcome(64, "mixed", 1, draws) for draws in cases])
    shown = [line.endswith("WRONG") for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == [False, False, True, True]


def test_14b_inputs_and_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Dense goes through tau, the mixes through the override; shares as published."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    dense = chain_14b._given({}, "dense", 2, 40)
    assert dense["tau"].item() > 1 and (dense["route_override"] == -1).all()
    mixed = chain_14b._given({}, "50/50", 2, 40)["route_override"]
    assert [int((mixed == branch).sum()) for branch in (0, 1, 2)] == [1, 40, 39]
    row = {
        "implementation": "TensorRT 8.6", "routes": "dense", "state": "wrong", "difference": 0.5, "median": 0.25,
        "minimum": 0.24, "times_dense": 1.0, "memory_in_use_gib": 30.5, "kernel_shares": {"attention": 0.6},
    }  # fmt: skip
    chain_14b.show([row])
    assert "250.0" in (shown := capsys.readouterr().out) and "attention 60%" in shown and "WRONG" in shown
