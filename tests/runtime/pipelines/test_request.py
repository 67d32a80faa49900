# SPDX-License-Identifier: Apache-2.0
"""Requests: what is launched at which step, when a request begins, and what stops it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from vorta_trt.runtime.fallbacks import FallbackError, Fallbacks
from vorta_trt.runtime.pipelines.transformer import VortaTransformer
from vorta_trt.runtime.sampling.finite import HostCopy, NonFiniteError
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.sampling.route_guards import RouteGuards
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast

from ...tiny import Tiny, latents
from .denoisers import HEADS, LAYERS, SHAPE, TEXT, RecordingDenoiser, transformer_of

TIMESTEPS = (900.0, 700.0, 600.0, 400.0, 50.0)
EVERY_OTHER = StepBroadcast(2, (100, 800))  # skips 700 and 400


def sample(
    transformer: Any,
    timesteps: Sequence[float] = TIMESTEPS,
    contexts: Sequence[str] = ("cond", "uncond"),
    break_off: int | None = None,
) -> list[Tensor]:
    """Calls the transformer as Wan's pipeline does, with latents of their own at every step."""
    prompts = {context: torch.full((1, TEXT, 3), float(index)) for index, context in enumerate(contexts)}
    samples = []
    for step, timestep in enumerate(torch.tensor(timesteps)):
        given = torch.full((1, *SHAPE), step + 1.0)
        time = timestep.expand(1)
        if step == break_off:
            raise KeyboardInterrupt
        for context, prompt in prompts.items():
            with transformer.cache_context(context):
                samples.append(transformer(given, time, prompt, return_dict=False)[0])
    return samples


def test_without_a_request_every_call_is_a_launch_of_the_models_own() -> None:
    denoiser = RecordingDenoiser()
    sample(transformer_of(denoiser))
    assert denoiser.launches == [1] * 10
    assert set(denoiser.overrides) == set(denoiser.taus) == {None}


def test_skipped_steps_launch_nothing_and_reuse_the_sample_of_their_context() -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    plan = transformer.plan(TIMESTEPS, cache=EVERY_OTHER)
    with transformer.request(plan) as request:
        samples = sample(transformer)
    assert plan.compute == (True, False, True, False, True)
    assert request.launches == {"cond": 3, "uncond": 3}
    assert denoiser.launches == [1] * 6
    plain = sample(transformer)
    for step, computed in enumerate(plan.compute):
        origin = step if computed else step - 1
        for context in (0, 1):
            assert torch.equal(samples[2 * step + context], plain[2 * origin + context])


def test_guards_and_tau_reach_the_launches() -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    plan = transformer.plan(TIMESTEPS, guards=RouteGuards(dense_first=1, dense_layers=(1,)), tau=0.7)
    with transformer.request(plan):
        sample(transformer, contexts=["cond"])
    assert denoiser.taus == [0.7] * 5
    first, *others = denoiser.overrides
    assert first is not None and first.tolist() == [[0] * HEADS] * LAYERS
    assert all(other is not None and other.tolist() == [[-1] * HEADS, [0] * HEADS] for other in others)


def test_a_schedule_that_starts_over_is_a_new_request() -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    plan = transformer.plan(TIMESTEPS, cache=EVERY_OTHER)
    with transformer.request(plan) as request:
        whole = sample(transformer)
        for broken_off in range(1, 5):  # as after Ctrl-C in the middle
            with pytest.raises(KeyboardInterrupt):
                sample(transformer, break_off=broken_off)
        assert all(map(torch.equal, sample(transformer), whole))
        assert request.launches.total() == 2 * (3 + 1 + 1 + 2 + 2 + 3)
        assert not request.fallbacks.counts
        with pytest.raises(ValueError, match="timestep 600: is step 2 of the plan.*0,.*900"):
            sample(transformer, TIMESTEPS[2:])


def test_pipelines_that_say_when_they_are_done_leave_nothing_behind() -> None:
    transformer = transformer_of(RecordingDenoiser())
    with transformer.request(transformer.plan(TIMESTEPS)) as request:
        sample(transformer)
        transformer._reset_stateful_cache()
        assert request.state.taken == 0
        sample(transformer)
    assert not request.fallbacks.counts


@pytest.mark.parametrize("taken", [0, 3])
def test_a_plan_that_was_not_used_is_counted_or_refused(taken: int) -> None:
    """As with a second transformer, which takes the other steps."""
    transformer = transformer_of(RecordingDenoiser())
    plan = transformer.plan(TIMESTEPS)

    def part(fallbacks: Fallbacks, **options: Any) -> None:
        with transformer.request(plan, fallbacks=fallbacks, **options):
            with pytest.raises(KeyboardInterrupt):
                sample(transformer, break_off=taken)
            transformer._reset_stateful_cache()  # but the pipeline says that this is the video
            if taken:
                sample(transformer)

    fallbacks = Fallbacks()
    part(fallbacks)
    assert fallbacks.counts == {"unfinished plan": 1}
    with pytest.raises(FallbackError, match=f"unfinished plan: {taken} of 5 steps were asked of this transformer"):
        part(Fallbacks(strict=True))
    part(Fallbacks(strict=True), pipeline=SimpleNamespace(interrupt=True))


class Watched(Tensor):
    """A timestep that says which of its values were read on the host; views of it are like it."""

    reads: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.__name__ in ("tolist", "item", "cpu", "numpy", "__float__", "__int__", "__bool__", "equal"):
            cls.reads.append(function.__name__)
        return super().__torch_function__(function, types, arguments, options or {})


@pytest.mark.parametrize("guidance", [GuidanceMode.SEQUENTIAL, GuidanceMode.BATCHED])
def test_no_step_reads_its_timestep(guidance: GuidanceMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU every read would wait for all that was launched. What goes to the host is read one launch later."""
    Watched.reads.clear()
    waited = 0
    wait = HostCopy.wait

    def watched(copy: HostCopy) -> Tensor:
        nonlocal waited
        waited += 1
        return wait(copy).as_subclass(Tensor)  # what has arrived may be read

    monkeypatch.setattr(HostCopy, "wait", watched)
    transformer = transformer_of(RecordingDenoiser())
    prompts = {context: torch.ones(1, TEXT, 3) for context in ("cond", "uncond")}
    with transformer.request(transformer.plan(TIMESTEPS), guidance=guidance, fallbacks=Fallbacks(strict=True)):
        for step, timestep in enumerate(torch.tensor(TIMESTEPS).as_subclass(Watched)):
            given, time = torch.full((1, *SHAPE), step + 1.0), timestep.expand(1)
            for context, prompt in prompts.items():
                with transformer.cache_context(context):
                    transformer(given, time, prompt)
    assert Watched.reads == []
    assert waited > 5  # timesteps and counts of values that are not finite


def test_one_request_at_a_time_and_none_after_an_error() -> None:
    transformer = transformer_of(RecordingDenoiser())
    plan = transformer.plan(TIMESTEPS)
    with pytest.raises(RuntimeError, match="one transformer follows one plan at a time"), transformer.request(plan):
        with transformer.request(plan):
            pass
    with pytest.raises(KeyboardInterrupt), transformer.request(plan):
        raise KeyboardInterrupt
    with transformer.request(plan):
        sample(transformer)


def test_steps_are_announced_and_may_be_refused() -> None:
    denoiser = RecordingDenoiser()
    transformer = transformer_of(denoiser)
    steps: list[int] = []

    def stop(step: int) -> None:
        steps.append(step)
        if step == 3:
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError), transformer.request(transformer.plan(TIMESTEPS), on_step=stop):
        sample(transformer)
    assert steps == [0, 1, 2, 3]
    assert len(denoiser.launches) == 6


# -- guards against bad samples ----------------------------------------------------------------------------------------


class Overflowing(RecordingDenoiser):
    """Not finite from a timestep on."""

    def run(self, inputs: Any, *options: Any) -> Any:
        result, routes = super().run(inputs, *options)
        return result / (0 if float(inputs["timestep"][0]) == 600 else 1), routes


@pytest.mark.parametrize("locate", [True, False, None])
def test_values_that_are_not_finite_stop_the_run(locate: bool | None) -> None:
    denoiser = Overflowing()
    transformer = transformer_of(denoiser)
    plan = transformer.plan(TIMESTEPS, guards=RouteGuards(dense_layers=(0,)), tau=0.5)
    with pytest.raises(NonFiniteError, match="step 2, timestep 600, context 'cond': 100 %") as caught:
        with transformer.request(plan, locate=locate):
            sample(transformer)
    place = "looked at hidden_states, timestep, encoder_hidden_states, tau, route_override"
    assert caught.value.place == place if locate is not False else place not in caught.value.place
    assert len(denoiser.launches) == 5


def test_the_layer_is_found(tiny: Tiny) -> None:
    """An infinity in a weight of the last block, through the pipeline."""
    model = tiny.model()
    blocks = model.routed_blocks()
    broken = blocks[-1].ffn.net[2] if tiny.family == "wan" else blocks[-1].proj_out
    with torch.no_grad():
        broken.weight[0, 0] = float("inf")
    transformer = VortaTransformer.from_pretrained(model)
    pipeline = tiny.pipeline(transformer)
    pipeline.scheduler.set_timesteps(3) if tiny.family == "wan" else pipeline.scheduler.set_timesteps(
        sigmas=[1, 2 / 3, 1 / 3]
    )
    name = next(name for name, module in model.named_modules() if module is broken)
    with pytest.raises(NonFiniteError, match=f"step 0, .* it began in {name}: the first module whose output"):
        with transformer.request(transformer.plan(pipeline.scheduler.timesteps)):
            latents(pipeline)


def test_routes_that_depart_from_the_plan_are_counted_or_refused(tiny_wan: Tiny) -> None:
    transformer = VortaTransformer.from_pretrained(tiny_wan.model())
    pipeline = tiny_wan.pipeline(transformer)
    pipeline.scheduler.set_timesteps(3)
    plan = transformer.plan(pipeline.scheduler.timesteps)
    fallbacks = Fallbacks()
    with transformer.request(plan, fallbacks=fallbacks):
        latents(pipeline)
    assert not fallbacks.counts
    assert plan.routes is not None
    plan.routes.routes[1, 0, 0] = (plan.routes.routes[1, 0, 0] + 1) % 3
    with transformer.request(plan, fallbacks=fallbacks):
        latents(pipeline)
    assert fallbacks.counts == {"planned routes": 2}  # both contexts
    plan.routes.routes[2, 0, 0] = (plan.routes.routes[2, 0, 0] + 1) % 3
    plan.routes.routes[1, 0, 0] = (plan.routes.routes[1, 0, 0] + 2) % 3
    with pytest.raises(FallbackError, match=r"step 2, timestep .*: 1 of 6 heads took another branch than planned"):
        with transformer.request(plan, fallbacks=Fallbacks(strict=True)):
            latents(pipeline)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # a prototype, says torch
@pytest.mark.parametrize("guidance", [GuidanceMode.SEQUENTIAL, GuidanceMode.BATCHED])
def test_on_a_gpu_no_step_waits_for_the_one_before(guidance: GuidanceMode) -> None:
    """torch refuses whatever waits for the GPU, from the second step on; a wrong schedule is told all the same."""

    class OnGpu(RecordingDenoiser):
        device, on_cpu = torch.device("cuda"), False

    transformer = transformer_of(OnGpu())
    prompts = {context: torch.ones(1, TEXT, 3, device="cuda") for context in ("cond", "uncond")}

    def run(timesteps: Sequence[float]) -> None:
        for step, timestep in enumerate(torch.tensor(timesteps, device="cuda")):
            given, time = torch.full((1, *SHAPE), step + 1.0, device="cuda"), timestep.expand(1)
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            for context, prompt in prompts.items():
                with transformer.cache_context(context):
                    transformer(given, time, prompt)
            torch.cuda.set_sync_debug_mode("default")

    try:
        with transformer.request(transformer.plan(TIMESTEPS), guidance=guidance, fallbacks=Fallbacks(strict=True)):
            run(TIMESTEPS)
            run(TIMESTEPS)
        with pytest.raises(ValueError, match="timestep 650: is not in the plan; it came at step 1, timestep 700"):
            with transformer.request(transformer.plan(TIMESTEPS), guidance=guidance):
                run((900.0, 650.0, *TIMESTEPS[2:]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
