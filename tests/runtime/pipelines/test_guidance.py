# SPDX-License-Identifier: Apache-2.0
"""Both samples of guidance in one launch: the same samples, fewer launches, and no guess that is not checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.runtime import Engine
from vorta_trt.runtime.fallbacks import FallbackError, Fallbacks
from vorta_trt.runtime.memory_plan import GuidanceFit
from vorta_trt.runtime.pipelines import denoiser as denoiser_module
from vorta_trt.runtime.pipelines.denoiser import EngineDenoiser, use_batched_guidance
from vorta_trt.runtime.pipelines.transformer import VortaTransformer
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast

from ...tiny import Tiny, latents
from .denoisers import SHAPE, TEXT, RecordingDenoiser, transformer_of

TIMESTEPS = (900.0, 700.0, 600.0, 400.0, 50.0)
COND, UNCOND = (torch.full((1, TEXT, 3), value) for value in (1.0, 2.0))


def call(transformer: VortaTransformer, context: str, given: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
    with transformer.cache_context(context):
        (sample,) = transformer(given, timestep, prompt, return_dict=False)
    return sample


def sample(transformer: VortaTransformer, uncond: Tensor = UNCOND, skip_uncond_from: int = 99) -> list[Tensor]:
    samples = []
    for step, timestep in enumerate(TIMESTEPS):
        given, time = torch.full((1, *SHAPE), step + 1.0), torch.tensor(timestep).expand(1)
        samples.append(call(transformer, "cond", given, time, COND))
        if step < skip_uncond_from:
            samples.append(call(transformer, "uncond", given, time, uncond))
    return samples


def test_after_the_first_step_both_contexts_share_a_launch() -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    plain = sample(transformer)
    denoiser.launches.clear()
    fallbacks = Fallbacks(strict=True)
    with transformer.request(
        transformer.plan(TIMESTEPS), guidance=GuidanceMode.BATCHED, fallbacks=fallbacks
    ) as request:
        assert all(map(torch.equal, sample(transformer), plain))
        assert all(map(torch.equal, sample(transformer), plain))  # another request learns anew
    assert denoiser.launches == 2 * [1, 1, 2, 2, 2, 2]
    assert request.launches == {"cond": 2, "uncond": 2, "cond + uncond": 8}


def test_skipped_steps_launch_nothing_here_either() -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    plan = transformer.plan(TIMESTEPS, cache=StepBroadcast(2, (100, 800)))
    with transformer.request(plan):
        expected = sample(transformer)
    denoiser.launches.clear()
    with transformer.request(plan, guidance=GuidanceMode.BATCHED):
        assert all(map(torch.equal, sample(transformer), expected))
    assert denoiser.launches == [1, 1, 2, 2]


def test_other_prompts_than_expected_are_launched_on_their_own() -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    changing = UNCOND.clone()
    expected = []
    for step, timestep in enumerate(TIMESTEPS):
        expected.append(torch.full((1, *SHAPE), (step + 1.0) * (timestep + 2 + (step >= 2))))
    fallbacks = Fallbacks()
    with transformer.request(transformer.plan(TIMESTEPS), guidance=GuidanceMode.BATCHED, fallbacks=fallbacks):
        for step, timestep in enumerate(TIMESTEPS):
            given, time = torch.full((1, *SHAPE), step + 1.0), torch.tensor(timestep).expand(1)
            call(transformer, "cond", given, time, COND)
            if step == 2:
                changing += 1  # the very same tensor, with other values
            assert torch.equal(call(transformer, "uncond", given, time, changing), expected[step])
    assert fallbacks.counts == {"batched guidance": 1}
    assert denoiser.launches == [1, 1, 2, 2, 1, 1, 1, 1, 1]  # it does not try again


@pytest.mark.parametrize("what", ["latents", "timestep", "written"])
def test_only_the_very_same_tensors_count(what: str) -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    with transformer.request(transformer.plan(TIMESTEPS[:3]), guidance=GuidanceMode.BATCHED) as request:
        for step, timestep in enumerate(TIMESTEPS[:3]):
            given, time = torch.full((1, *SHAPE), step + 1.0), torch.full((1,), timestep)
            call(transformer, "cond", given, time, COND)
            if step == 2 and what == "written":
                given *= 3
            elif step == 2:
                given, time = (given.clone(), time) if what == "latents" else (given, time.clone())
            uncond = call(transformer, "uncond", given, time, UNCOND)
            assert torch.equal(uncond, given * (timestep + 2))
    assert request.fallbacks.counts == {"batched guidance": 1}
    assert denoiser.launches == [1, 1, 2, 2, 1]


def test_a_pipeline_that_stops_guiding() -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    with transformer.request(transformer.plan(TIMESTEPS), guidance=GuidanceMode.BATCHED) as request:
        sample(transformer, skip_uncond_from=2)
    assert request.fallbacks.counts == {"batched guidance": 1}
    assert denoiser.launches == [1, 1, 2, 2, 1, 1]
    with pytest.raises(FallbackError, match="the unconditional sample of the step before was not asked for"):
        with transformer.request(
            transformer.plan(TIMESTEPS), guidance=GuidanceMode.BATCHED, fallbacks=Fallbacks(strict=True)
        ):
            sample(transformer, skip_uncond_from=2)


def test_tensors_that_do_not_count_their_writes() -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    with transformer.request(transformer.plan(TIMESTEPS), guidance=GuidanceMode.BATCHED) as request:
        with torch.inference_mode():
            sample(transformer, UNCOND.clone())
    assert request.fallbacks.counts == {"batched guidance": 1}


def test_pipelines_sample_the_same_but_for_rounding(tiny: Tiny) -> None:
    guided = {} if tiny.family == "wan" else {"negative_prompt": "blue", "true_cfg_scale": 3.0}
    with VortaTransformer.from_pretrained(tiny.onnx) as transformer:
        pipeline = tiny.pipeline(transformer)
        expected = latents(pipeline, 4, **guided)
        plan = transformer.plan(pipeline.scheduler.timesteps)
        fallbacks = Fallbacks(strict=True)
        with transformer.request(plan, guidance=GuidanceMode.BATCHED, fallbacks=fallbacks) as request:
            sampled = latents(pipeline, 4, **guided)
    assert request.launches == {"cond": 1, "uncond": 1, "cond + uncond": 3}
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-3)


class Crowded(RecordingDenoiser):
    """Has no memory for two samples."""

    def run(self, inputs: Any, *options: Any) -> Any:
        if len(inputs["hidden_states"]) > 1:
            raise torch.OutOfMemoryError("two samples do not fit")
        return super().run(inputs, *options)


def test_memory_that_is_gone_when_it_is_needed() -> None:
    denoiser = Crowded()
    transformer = transformer_of(denoiser)
    expected = sample(transformer)
    with transformer.request(transformer.plan(TIMESTEPS), guidance=GuidanceMode.BATCHED) as request:
        assert all(map(torch.equal, sample(transformer), expected))
    assert request.fallbacks.counts == {"batched guidance": 1}
    assert request.launches == {"cond": 5, "uncond": 5}
    with pytest.raises(FallbackError, match="batched guidance: two samples do not fit"):
        with transformer.request(
            transformer.plan(TIMESTEPS), guidance=GuidanceMode.BATCHED, fallbacks=Fallbacks(strict=True)
        ):
            sample(transformer)


class GpuDenoiser(EngineDenoiser):
    """An engine as if it were on a GPU."""

    on_cpu = False

    def __init__(self) -> None:
        self.engine: Any = None


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("mode", GuidanceMode)
def test_on_a_gpu_profile_and_memory_decide(monkeypatch: pytest.MonkeyPatch, mode: GuidanceMode, fits: bool) -> None:
    answer = GuidanceFit(fits, 9, 5, "9 bytes more, 5 are free")
    monkeypatch.setattr(denoiser_module, "batched_guidance_fits", lambda engine: answer)
    fallbacks = Fallbacks()
    assert use_batched_guidance(GpuDenoiser(), mode, fallbacks) is (fits and mode is not GuidanceMode.SEQUENTIAL)
    asked_for = mode is GuidanceMode.BATCHED and not fits
    assert fallbacks.counts == ({"batched guidance": 1} if asked_for else {})
    if asked_for:
        with pytest.raises(FallbackError, match="batched guidance: 9 bytes more, 5 are free"):
            use_batched_guidance(GpuDenoiser(), mode, Fallbacks(strict=True))


@pytest.mark.parametrize("mode", GuidanceMode)
def test_on_the_cpu_and_in_torch_only_who_asks_gets_it(tiny_wan: Tiny, mode: GuidanceMode) -> None:
    with Engine(tiny_wan.onnx) as engine:
        for denoiser in (EngineDenoiser(engine), RecordingDenoiser()):
            assert use_batched_guidance(denoiser, mode, Fallbacks(strict=True)) is (mode is GuidanceMode.BATCHED)
