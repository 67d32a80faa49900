# SPDX-License-Identifier: Apache-2.0
"""Calibrating and training one of two experts: at its own timesteps, behind the steps of the other, and named so."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model import RoutedTransformer
from vorta_trt.model.calibration import CalibrationSettings, calibrate_routes
from vorta_trt.model.calibration.linears import LinearCalibration
from vorta_trt.model.calibration.samples import PromptSamples
from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.constants import COMPONENTS, TRANSFORMER, TRANSFORMER_2
from vorta_trt.model.families.wan.random import make_checkpoint
from vorta_trt.model.random_pipeline import complete_pipeline
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.training import RunError, TrainingSettings, train_router
from vorta_trt.model.training.timesteps import draw_timesteps, timesteps_of

from ..training.samples import CHANNELS, GEOMETRY, HEAD_DIM, HEADS, LAYERS, SIZE, TEXT_DIM, write_data
from .schedulers import scheduler_of

BOUNDARY = 0.875


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"layers": LAYERS, "heads": HEADS, "head_dim": HEAD_DIM, "channels": CHANNELS, "text_dim": TEXT_DIM}
    root = tmp_path_factory.mktemp("pipeline") / "experts"
    made = make_checkpoint(root, ffn_dim=32, freq_dim=32, seed=3, boundary_ratio=BOUNDARY, **sizes)
    return complete_pipeline(made, seed=4)


@pytest.mark.parametrize("component", COMPONENTS)
def test_routes_of_an_expert_from_prompts(checkpoint: Path, tmp_path: Path, component: str) -> None:
    steps: list[tuple[str, int, int]] = []
    report = calibrate_routes(
        checkpoint,
        tmp_path / "routes.json",
        scheduler_of(checkpoint),
        CalibrationSettings(dtype="fp32", buckets=1, run_steps=4, samples=1),
        component=component,
        prompts=["a red wall"],
        video_size=SIZE,
        steps=8,
        device="cpu",
        linear_output=tmp_path / "linears.json",
        progress=lambda *event: steps.append(event),
    )
    linears = LinearCalibration.load(tmp_path / "linears.json")
    assert linears.component == component and "blocks.0.attn1.to_q" in linears.input_scales()
    routes = RouteCalibration.load(tmp_path / "routes.json")
    assert routes.component == component
    ((upper, lower),) = routes.buckets
    assert lower >= 875 if component == TRANSFORMER else upper < 875
    assert len(report.table.timesteps) < 8 and ("measuring the branches", 0, 4) in steps  # two steps each, twice
    routes.check("wan", LAYERS, HEADS, GEOMETRY, component)
    model = RoutedTransformer.from_pretrained(checkpoint, component=component)
    assert model.component == component


def test_too_few_steps_of_an_expert_are_said_with_its_share(checkpoint: Path, tmp_path: Path) -> None:
    words = r"run steps 2, of which \d are those of transformer_2 \(low noise\): none falls into the bucket"
    with pytest.raises(ValueError, match=words):
        calibrate_routes(
            checkpoint,
            tmp_path / "routes.json",
            scheduler_of(checkpoint),
            CalibrationSettings(dtype="fp32", buckets=4, run_steps=2, samples=1),
            component=TRANSFORMER_2,
            prompts=["a red wall"],
            video_size=SIZE,
            steps=50,
            device="cpu",
        )
    assert not list(tmp_path.iterdir())


def test_the_second_is_measured_behind_the_steps_of_the_first(seed: int) -> None:
    """A run whose first steps another model predicts has the latents of a run of one model that does the same."""

    def predict(inputs: dict[str, Any]) -> Tensor:
        latents: Tensor = inputs["latents"]
        return latents * 0.5 + inputs["timestep"] / 1000

    def make(latents: Tensor, timestep: float, conditions: Any, following: float) -> dict[str, Any]:
        return {"latents": latents, "timestep": timestep}

    def scheduler(steps: int) -> Any:
        from diffusers import UniPCMultistepScheduler

        made: Any = UniPCMultistepScheduler(  # type: ignore[no-untyped-call]
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        )
        made.set_timesteps(steps)
        return made

    maker: Any = make
    maker.device, maker.guidance = torch.device("cpu"), 3.0
    maker.family = SimpleNamespace(first_latents=lambda noise, conditions: noise)
    seen: dict[range, list[Tensor]] = {}
    for steps in (range(6), range(3, 6), range(2)):
        seen[steps] = []
        samples = PromptSamples(
            ("a",), [{}, {}], (2, 1, 2, 2), scheduler, 6, maker, seed, steps, None if steps.start == 0 else predict
        )

        def visit(timestep: float, inputs: dict[str, Any], steps: range = steps) -> Tensor:
            seen[steps].append(inputs["latents"])
            return predict(inputs)

        samples.walk(0, 0.0, 0, visit, predict)
        assert len(seen[steps]) == samples.visits == len(steps)
    assert all(map(torch.equal, seen[range(3, 6)], seen[range(6)][3:]))
    assert all(map(torch.equal, seen[range(2)], seen[range(6)][:2]))


def test_a_schedule_without_a_step_of_the_expert(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"steps 1: none of the schedule is of transformer_2 \(low noise\)"):
        calibrate_routes(
            checkpoint,
            tmp_path / "routes.json",
            scheduler_of(checkpoint),
            component=TRANSFORMER_2,
            prompts=["a"],
            video_size=SIZE,
            steps=1,
            device="cpu",
            settings=CalibrationSettings(dtype="fp32"),
        )


def test_timesteps_that_an_expert_is_trained_at(seed: int) -> None:
    high, low = (timesteps_of(component, BOUNDARY) for component in COMPONENTS)
    assert (high, low) == (range(1000, 874, -1), range(874, 0, -1))
    assert timesteps_of(TRANSFORMER, None) == range(1000, 0, -1)
    for among in (high, low):
        drawn = torch.cat([draw_timesteps(seed, step, 0, 500, 5, among) for step in range(1, 6)])
        assert set(drawn.tolist()) <= set(map(float, among))
        assert drawn.max() - drawn.min() > 0.8 * len(among)  # all five intervals


def test_a_router_of_an_expert(checkpoint: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ["cat"])
    settings = TrainingSettings(precision="fp32", steps=1, batch_size=2, seed=1)
    options: dict[str, Any] = {"component": TRANSFORMER_2, "device": "cpu"}
    report = train_router(checkpoint, data, tmp_path / "router", settings, **options)
    assert report is not None
    assert json.loads((tmp_path / "router" / "config.json").read_text())["component"] == TRANSFORMER_2
    (line,) = (json.loads(line) for line in (tmp_path / "router" / "log.jsonl").read_text().splitlines())
    assert max(line["timesteps"]) < 875
    RoutedTransformer.from_pretrained(checkpoint, tmp_path / "router", component=TRANSFORMER_2)
    with pytest.raises(CheckpointError, match="was trained for transformer_2"):
        RoutedTransformer.from_pretrained(checkpoint, tmp_path / "router")
    more = settings.model_copy(update={"steps": 2})
    with pytest.raises(RunError, match="component is transformer, but the run was started with transformer_2"):
        train_router(checkpoint, data, tmp_path / "router", more, resume=True, device="cpu")
