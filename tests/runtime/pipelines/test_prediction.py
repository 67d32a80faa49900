# SPDX-License-Identifier: Apache-2.0
"""What `generate --dry-run --gpus` predicts: the same figures as `inspect --gpus`, for checkpoints and every layout."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from vorta_trt.benchmarks.step.cases import CASES
from vorta_trt.cli import app
from vorta_trt.model import RoutedTransformer
from vorta_trt.model.constants import COMPONENTS
from vorta_trt.model.transformer import routed_class
from vorta_trt.runtime.engine_parts import model_parts, parts_of_rank
from vorta_trt.runtime.inspection import inspect_target
from vorta_trt.runtime.memory_plan import plan_memory

from ...tiny import Tiny, TinyExperts

GIB = 2**30


def predicted(*arguments: object) -> dict[str, Any]:
    """The memory plan of a dry run, and the plan of times under "gpus"."""
    result = CliRunner().invoke(app, ["generate", *map(str, arguments), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    return {**content["memory"], "times": content["gpus"]}


@pytest.fixture(scope="module")
def wan_14b() -> RoutedTransformer:
    """Without its weights, in bfloat16."""
    case = CASES["wan-14b"]
    model = routed_class(case.family).empty_diffusers_model(case.config).bfloat16()
    return RoutedTransformer.from_model(model, geometry=case.geometry)


@pytest.mark.parametrize(("gpus", "measured"), [(1, 35.18), (2, 31.41)])
def test_a_model_in_torch_takes_what_was_measured(wan_14b: RoutedTransformer, gpus: int, measured: float) -> None:
    """GiB of torch's allocator at its peak, weights included, of Wan 14B on H200s (`bench parallel`, 2026-11-28)."""
    parts = parts_of_rank(model_parts(wan_14b, 1), wan_14b, gpus)
    assert (parts.weights + parts.activations_for(1) + parts.io_per_sample) / GIB == pytest.approx(measured, rel=0.02)


def test_two_experts_of_14b_on_four_gpus(wan_14b: RoutedTransformer) -> None:
    """As Wan 2.2 A14B: both have their weights on every GPU; guidance in parallel leaves one pass to each."""
    alone = plan_memory(wan_14b, cards=(), second=wan_14b)
    halves = plan_memory(wan_14b, cards=(), second=wan_14b, guidance=2)
    both = plan_memory(wan_14b, cards=(), second=wan_14b, gpus=2, guidance=2)
    shared = plan_memory(wan_14b, cards=(), second=wan_14b, gpus=4)
    assert {plan.weights == plan.second_weights for plan in (alone, halves, both, shared)} == {True}
    assert [list(plan.activations) for plan in (alone, halves, both, shared)] == [[1, 2], [1], [1], [1, 2]]
    assert halves.activations[1] == alone.activations[1] and not halves.exchange
    assert both.activations[1] == pytest.approx(alone.activations[1] / 2, rel=0.02)
    assert shared.activations[1] == pytest.approx(alone.activations[1] / 4, rel=0.02)
    for plan in (alone, both):
        rest = plan.latents + plan.reserve
        assert plan.sampling[1] == 2 * plan.weights + plan.activations[1] + plan.inputs_and_outputs[1] + rest
    assert 2 * both.weights / GIB == pytest.approx(53.2, rel=0.01)  # as exported, docs/measurements.md
    lines = list(both.lines())
    assert lines[0] == "of the first of 2 x 2 GPUs (guidance x heads); the others need no text encoder"
    assert "while sampling with both experts, without text encoder and VAE" in lines[-1]


def test_a_dry_run_says_what_inspect_says(tiny_wan: Tiny) -> None:
    inspected = inspect_target(tiny_wan.onnx, gpus=3, checkpoint=tiny_wan.checkpoint).memory_plan
    assert inspected is not None
    found = predicted(tiny_wan.checkpoint, "--router", tiny_wan.router, "--precision", "fp32", "--gpus", 3)
    assert (found["gpus"], found["guidance"], found["times"]["ulysses"]) == (3, 1, 3)
    for name in ("activations", "exchange", "latents", "text_encoder", "vae", "decoding"):
        of_file = inspected.model_dump(mode="json")[name]
        assert found[name] == of_file and of_file, name
    assert found["weights"] == pytest.approx(inspected.weights, rel=0.3)  # a file has a table for the timestep path
    assert not found["cards"]
    compiled = predicted(
        tiny_wan.checkpoint, "--router", tiny_wan.router, "--precision", "fp32", "--gpus", 3, "--compile-vae"
    )
    assert compiled["decoding"] > found["decoding"] and compiled["vae"] == found["vae"]


@pytest.mark.parametrize(
    ("options", "layout", "batches"),
    [
        (("--gpus", 2), (1, 2), ["1"]),
        (("--gpus", 6), (3, 2), ["1"]),
        (("--gpus", 3), (3, 1), ["1", "2"]),
        (("--gpus", 3, "--guidance-scale", 1), (3, 1), ["1"]),
        (("--gpus", 1), (1, 1), ["1", "2"]),
    ],
)
def test_every_layout(tiny_wan: Tiny, options: tuple[object, ...], layout: tuple[int, int], batches: list[str]) -> None:
    found = predicted(tiny_wan.checkpoint, "--router", tiny_wan.router, *options)
    assert (found["gpus"], found["guidance"]) == layout
    assert list(found["activations"]) == batches
    assert (found["exchange"] > 0) == (layout[0] > 1)
    assert (found["times"] is None) == (layout == (1, 1))


def test_both_experts_count(tiny_experts: TinyExperts) -> None:
    routers = [f"{noise}={tiny_experts.routers[part]}" for noise, part in zip(("high", "low"), COMPONENTS, strict=True)]
    options = ("--router", routers[0], "--router", routers[1], "--guidance-scale", 4, "--gpus", 6)
    found = predicted(tiny_experts.checkpoint, *options)
    assert found["second_weights"] == found["weights"] > 0
    of_files = predicted(tiny_experts.onnx, "--checkpoint", tiny_experts.checkpoint, *options[4:6], "--gpus", 2)
    assert of_files["second_weights"] and of_files["guidance"] == 2
    said = CliRunner().invoke(app, ["generate", str(tiny_experts.checkpoint), *map(str, options), "--dry-run"]).stdout
    assert "GPU memory weights" in said and ", of the second expert " in said
    assert "predicted seconds of the transformer on 2 x 3 GPUs (guidance x heads)" in said
