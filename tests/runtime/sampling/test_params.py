# SPDX-License-Identifier: Apache-2.0
"""`SamplingParams`: JSON in and out, and errors that name the field."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vorta_trt.model.records import first_error
from vorta_trt.runtime.sampling.params import GuidanceMode, SamplingParams
from vorta_trt.runtime.sampling.route_guards import RouteGuards
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast
from vorta_trt.runtime.sampling.tea_cache import IDENTITY, TeaCache


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_inference_steps": 20, "guidance_scale": 4, "negative_prompt": "ugly", "seed": 2**64 - 1},
        {"sigmas": [1.0, 0.757, 0.522], "renoise": True},
        {"timesteps": (999, 500), "scheduler": "unipc", "guidance_batching": "sequential"},
        {"scheduler": "flow-euler", "flow_shift": 5, "true_cfg_scale": 2.5},
        {"cache": TeaCache(0.1, IDENTITY, "modulation", fitted_range=(0.1, 0.2)), "tau": 0.4},
        {"cache": StepBroadcast(3, (200, 700)), "dense_first": 1, "dense_last": 2, "dense_layers": [0, 3]},
        {"cache": "tea"},
    ],
)
def test_json_and_back(given: dict[str, Any]) -> None:
    params = SamplingParams(**given)
    assert SamplingParams.model_validate_json(params.model_dump_json()) == params
    assert SamplingParams.model_validate(params.model_dump(mode="json")) == params
    assert params.updated() == params


def test_names_stand_for_caches_with_their_defaults() -> None:
    assert SamplingParams.model_validate({"cache": "tea"}).cache == TeaCache()
    params = SamplingParams.model_validate_json('{"cache": {"method": "broadcast", "interval": 3}}')
    assert params.cache == StepBroadcast(3)


def test_given_steps_are_counted() -> None:
    params = SamplingParams(sigmas=(1.0, 0.5))
    assert (params.num_inference_steps, params.gives_steps) == (2, True)
    assert params.updated(sigmas=(1.0, 0.7, 0.3), seed=1).num_inference_steps == 3
    assert SamplingParams(timesteps=(900.0,), num_inference_steps=1).gives_steps


@pytest.mark.parametrize(
    "steps",
    [np.array([1.0, 0.5]), np.array([1, 0.5], np.float32), torch.tensor([1.0, 0.5]), iter((1.0, 0.5)), (1, "0.5")],
)
def test_given_steps_of_all_kinds(steps: Any) -> None:
    params = SamplingParams(sigmas=steps)
    assert (params.sigmas, params.num_inference_steps) == ((1.0, 0.5), 2)
    assert params.updated(timesteps=range(900, 0, -300), sigmas=None).timesteps == (900.0, 600.0, 300.0)


def test_guards_and_changes() -> None:
    params = SamplingParams(dense_first=1, dense_layers=(2,))
    assert params.guards == RouteGuards(1, 0, (2,))
    changed = params.updated(dense_last=3, guidance_batching="batched")
    assert changed.guards == RouteGuards(1, 3, (2,))
    assert changed.guidance_batching is GuidanceMode.BATCHED
    with pytest.raises(ValidationError, match="frozen"):
        params.tau = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        ({"seed": 2**64}, "seed", "less than or equal to 18446744073709551615"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
        ({"num_inference_steps": 1001}, "num_inference_steps", "less than or equal to 1000"),
        ({"sigmas": np.array(0.5)}, "sigmas", "valid tuple"),
        ({"num_inference_steps": 2.5}, "num_inference_steps", "integer"),
        ({"true_cfg_scale": 0.5}, "true_cfg_scale", "greater than or equal to 1"),
        ({"flow_shift": 0}, "flow_shift", "greater than or equal to 0.001"),
        ({"flow_shift": 1e308}, "flow_shift", "less than or equal to 1000"),
        ({"guidance_scale": 1e308}, "guidance_scale", "less than or equal to 1000"),
        ({"guidance_scale_2": 1e308}, "guidance_scale_2", "less than or equal to 1000"),
        ({"true_cfg_scale": 1e308}, "true_cfg_scale", "less than or equal to 1000"),
        ({"tau": 1e308}, "tau", "less than or equal to 1000"),
        ({"tau": float("nan")}, "tau", "finite"),
        ({"dense_layers": (-1,)}, "dense_layers.0", "greater than or equal to 0"),
        ({"steps": 3}, "steps", "not permitted"),
        ({"guidance_batching": "both"}, "guidance_batching", "'auto', 'batched' or 'sequential'"),
        ({"cache": "teacache"}, "cache", "'tea', 'broadcast'"),
        ({"cache": {"method": "broadcast", "interval": 0}}, "cache.broadcast", "interval 0: must be at least 1"),
        ({"cache": {"method": "tea", "treshold": 1}}, "cache.tea.treshold", "nexpected"),
        ({"cache": {"method": "tea", "coefficients": [1.0, 0.0]}}, "cache.tea", "threshold None: must be given"),
        ({"scheduler": "ddim"}, "scheduler", "'ddim': must be one of unipc, flow-euler, dpm"),
        ({"sigmas": (0.5, 0.7)}, "sigmas", "0.5, 0.7: must fall from at most 1 to above 0"),
        ({"timesteps": (1001,)}, "timesteps", "1001: must fall from at most 1000 to above 0"),
        ({"sigmas": (1.0,), "timesteps": (1000.0,)}, "sigmas", "give one of them"),
        ({"sigmas": (1.0,), "flow_shift": 3.0}, "flow_shift", "3: given sigmas are not shifted"),
        ({"sigmas": (1.0,), "num_inference_steps": 2}, "num_inference_steps", "2: the 1 sigmas given are the steps"),
        ({"renoise": True}, "renoise", "needs given steps"),
        ({"sigmas": (1.0,), "renoise": True, "scheduler": "unipc"}, "renoise", "only flow-euler adds noise"),
    ],
)
def test_errors_name_the_field(given: dict[str, Any], named: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        SamplingParams(**given)
    line = first_error(caught.value)
    assert line.startswith(named) and "\n" not in line


def test_every_field_is_described_and_reading_them_is_cheap() -> None:
    properties = SamplingParams.model_json_schema()["properties"]
    assert all(field["description"] for field in properties.values())
    code = (
        "import sys; from vorta_trt.runtime.sampling.params import SamplingParams; "
        "SamplingParams(seed=1); sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
