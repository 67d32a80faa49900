# SPDX-License-Identifier: Apache-2.0
"""Presets on a model: what is sampled, what wins, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.model.constants import TRANSFORMER, TRANSFORMER_2
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.sampling.presets import PRESETS

from ...tiny import Tiny, TinyExperts

FOUR = (1000, 937.5, 2500 / 3, 625)


def plan_of(tiny: Tiny, *options: str) -> dict[str, Any]:
    """What `generate --dry-run` plans."""
    arguments = ["generate", str(tiny.onnx), "--checkpoint", str(tiny.checkpoint), *options, "--dry-run", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def refused(tiny: Tiny, *options: str, code: int = 1) -> str:
    arguments = ["generate", str(tiny.onnx), "--checkpoint", str(tiny.checkpoint), *options, "--dry-run"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("name", ["lightning", "lightx2v-4step"])
def test_two_experts(tiny_experts: TinyExperts, name: str) -> None:
    plan = plan_of(tiny_experts, "--preset", name)
    assert plan["plan"]["timesteps"] == pytest.approx(FOUR, abs=1e-3) and plan["passes"] == 1
    assert plan["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    taken = [(part["component"], part["first_step"], part["steps"]) for part in plan["experts"]]
    assert taken == [(TRANSFORMER, 0, 2), (TRANSFORMER_2, 2, 2)]


def test_one_transformer(tiny_wan: Tiny) -> None:
    assert plan_of(tiny_wan, "--preset", "lightx2v-4step")["plan"]["timesteps"] == pytest.approx(FOUR, abs=1e-3)
    plan = plan_of(tiny_wan, "--preset", "fastwan-3step")
    assert plan["plan"]["timesteps"] == [1000, 757, 522] and plan["passes"] == 1
    planner = RequestPlanner(tiny_wan.onnx, tiny_wan.checkpoint)
    assert planner.schedule(SamplingParams(**planner.preset("fastwan-3step"))).instance.config.stochastic_sampling


def test_what_is_given_wins(tiny_wan: Tiny) -> None:
    guided = plan_of(tiny_wan, "--preset", "lightx2v-4step", "--guidance-scale", "3")
    assert guided["passes"] == 2 and len(guided["plan"]["timesteps"]) == 4
    assert plan_of(tiny_wan, "--preset", "fastwan-3step", "--timesteps", "1000,500")["plan"]["timesteps"] == [1000, 500]
    assert plan_of(tiny_wan, "--preset", "fastwan-3step", "--sigmas", "1,0.25")["plan"]["timesteps"] == [1000, 250]
    assert "the 3 timesteps given are the steps" in refused(
        tiny_wan, "--preset", "fastwan-3step", "--steps", "8", code=2
    )


def test_refused(tiny_wan: Tiny, tiny_experts: TinyExperts, tiny_hunyuan_video: Tiny) -> None:
    assert "must be one of mlperf" in refused(tiny_wan, "--preset", "fast", code=2)
    assert "preset 'lightning': is for models with two experts" in refused(tiny_wan, "--preset", "lightning")
    assert "preset 'fastwan-3step': is for models with one" in refused(tiny_experts, "--preset", "fastwan-3step")
    assert "is for models of another family; leave it out" in refused(tiny_hunyuan_video, "--preset", "lightx2v-4step")
    ratio = RequestPlanner(tiny_experts.onnx, tiny_experts.checkpoint).boundary_ratio
    problem = "is for videos of 81x720x1280" if ratio == 0.875 else "takes over at boundary_ratio 0.875, and that of"
    assert problem in refused(tiny_experts, "--preset", "mlperf")


def test_a_bundle_of_several_sizes(tiny_wan: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset's size is taken if the bundle has it, and nobody asks for another."""
    planner = RequestPlanner(tiny_wan.several, tiny_wan.checkpoint)
    first, second = planner.sizes
    preset = replace(PRESETS["fastwan-3step"], size=VideoSize.parse(second))
    monkeypatch.setitem(PRESETS, preset.name, preset)
    assert planner.for_preset(preset.name) is planner.at(second)
    assert planner.for_preset("lightx2v-4step") is planner
    with pytest.raises(ValueError, match=f"is for videos of {second}, and those of .* have {first}"):
        planner.preset(preset.name)
    command = ["generate", str(tiny_wan.several), "--checkpoint", str(tiny_wan.checkpoint), "--preset", preset.name]
    assert CliRunner().invoke(app, [*command, "--dry-run"]).exit_code == 0
    result = CliRunner().invoke(app, [*command, "--dry-run", "--size", first])
    assert result.exit_code == 1 and f"is for videos of {second}" in " ".join(result.output.split())
