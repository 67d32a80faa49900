# SPDX-License-Identifier: Apache-2.0
"""Timesteps of the real diffusers schedulers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.runtime.schedules import SCHEDULERS, given_schedule, schedule_timesteps


def save_scheduler(folder: Path, name: str = "UniPCMultistepScheduler", **config: Any) -> Path:
    path = folder / "scheduler" / "scheduler_config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"_class_name": name, **config}))
    return folder


def wan_scheduler(folder: Path, shift: float = 3.0) -> Path:
    return save_scheduler(folder, flow_shift=shift, prediction_type="flow_prediction", use_flow_sigmas=True)


def test_the_pipelines_own_schedule(tmp_path: Path) -> None:
    from diffusers import UniPCMultistepScheduler

    expected = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    expected.set_timesteps(10)
    for checkpoint in (wan_scheduler(tmp_path), tmp_path / "transformer"):
        schedule = schedule_timesteps(checkpoint, 10)
        assert schedule.timesteps == tuple(expected.timesteps.tolist())
        assert (schedule.scheduler, schedule.shift) == ("UniPCMultistepScheduler", 3.0)


def test_another_scheduler_takes_the_pipelines_shift(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    expected = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected.set_timesteps(7)
    schedule = schedule_timesteps(wan_scheduler(tmp_path), 7, "flow-euler")
    assert schedule.timesteps == pytest.approx(expected.timesteps.tolist())


@pytest.mark.parametrize("steps", [0, 1001, 10**23])
def test_numbers_of_steps_that_no_model_has(steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_inference_steps {steps}: must be from 1 to 1000"):
        schedule_timesteps(None, steps, "unipc", 3.0)


@pytest.mark.parametrize("steps", [1, 6, 50])
def test_hunyuan_videos_pipeline_gives_its_scheduler_the_sigmas(tmp_path: Path, steps: int) -> None:
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import retrieve_timesteps

    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    sigmas = np.linspace(1.0, 0.0, steps + 1)[:-1]  # as HunyuanVideoPipeline does
    expected, _ = retrieve_timesteps(scheduler, steps, sigmas=sigmas)
    save_scheduler(tmp_path, "FlowMatchEulerDiscreteScheduler", shift=7.0)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "HunyuanVideoTransformer3DModel"}')
    for checkpoint in (tmp_path, tmp_path / "transformer"):
        schedule = schedule_timesteps(checkpoint, steps)
        assert schedule.timesteps == pytest.approx(expected.tolist(), rel=1e-6)
        assert (schedule.scheduler, schedule.shift) == ("FlowMatchEulerDiscreteScheduler", 7.0)


def test_hunyuan_video_with_another_scheduler_that_takes_sigmas(tmp_path: Path) -> None:
    import numpy as np
    from diffusers import UniPCMultistepScheduler

    expected = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=7.0)
    expected.set_timesteps(sigmas=np.linspace(1.0, 0.0, 9)[:-1])
    schedule = schedule_timesteps(None, 8, "unipc", 7.0, gives_sigmas=True)
    assert schedule.timesteps == tuple(map(float, expected.timesteps.tolist()))
    assert schedule.timesteps != schedule_timesteps(None, 8, "unipc", 7.0, gives_sigmas=False).timesteps


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)  # diffusers
@pytest.mark.parametrize("scheduler", ["unipc", "flow-euler", "dpm++"])
def test_a_larger_shift_stays_longer_at_high_noise(tmp_path: Path, scheduler: str) -> None:
    low, high = (schedule_timesteps(tmp_path, 20, scheduler, shift).timesteps for shift in (1.0, 8.0))
    assert len(low) == len(high) == 20
    assert all(first > second for first, second in zip(high, high[1:], strict=False))
    assert sum(high) > sum(low)


# -- given steps -------------------------------------------------------------------------------------------------------

copy_warning = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def sampled(scheduler: Any, asked: dict[str, Any]) -> torch.Tensor:
    """What a scheduler makes of a model that gives half of its latents."""
    scheduler.set_timesteps(**asked)
    scheduler.set_begin_index(0)
    latents = torch.linspace(-1, 1, 24).view(1, 24)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(latents / 2, timestep, latents, return_dict=False)[0]
    return latents


@copy_warning
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("asked", [{"num_inference_steps": 50}, {"sigmas": [1.0, 0.5]}], ids=["steps", "sigmas"])
def test_the_schedulers_own_sigmas_give_its_own_sample(tmp_path: Path, name: str, asked: dict[str, Any]) -> None:
    """Whatever the pipeline asks for, and as often as it does."""
    own = schedule_timesteps(wan_scheduler(tmp_path), 6, name, gives_sigmas=False)
    given = given_schedule(tmp_path, name, sigmas=own.instance.sigmas[:-1].tolist())
    assert given.timesteps == own.timesteps and given.shift is None
    expected = sampled(own.instance, {"num_inference_steps": 6})
    for _ in range(2):
        assert torch.equal(sampled(given.instance, asked), expected)
        assert tuple(given.instance.timesteps.tolist()) == own.timesteps


@copy_warning
@pytest.mark.parametrize("name", SCHEDULERS)
def test_given_timesteps(name: str) -> None:
    schedule = given_schedule(None, name, timesteps=(1000, 757, 522))
    assert schedule.timesteps == (1000.0, 757.0, 522.0)
    assert schedule.instance.sigmas.tolist() == pytest.approx([1.0, 0.757, 0.522, 0.0], abs=2e-6)
    assert sampled(schedule.instance, {}).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "num_inference_steps 0: must be from 1 to 1000"),
        ({"steps": 4, "scheduler": "ddim"}, "scheduler 'ddim': must be one of unipc, flow-euler, dpm"),
        ({"steps": 4, "shift": -1.0}, "shift -1.0: must be positive"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule_timesteps(wan_scheduler(tmp_path), **arguments)


def test_a_checkpoint_without_scheduler(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="has no scheduler/scheduler_config.json.*give the pipeline folder, or --sched"
    ):
        schedule_timesteps(tmp_path, 4)
    with pytest.raises(ValueError, match="shift: .* does not say; give --flow-shift"):
        schedule_timesteps(tmp_path, 4, "unipc")


def test_a_scheduler_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scheduler 'DDIMScheduler' of .*: not one whose timesteps are known here"):
        schedule_timesteps(save_scheduler(tmp_path, "DDIMScheduler"), 4)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_scheduler_config(tmp_path: Path, content: str) -> None:
    (wan_scheduler(tmp_path) / "scheduler" / "scheduler_config.json").write_text(content)
    with pytest.raises(ValueError, match="restore it from the published checkpoint"):
        schedule_timesteps(tmp_path, 4)
