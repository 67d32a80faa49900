# SPDX-License-Identifier: Apache-2.0
"""A plan is what happens: launches, reused samples and routes, for the schedules of real schedulers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vorta_trt.model.timestep_path import TimestepPath
from vorta_trt.runtime import Engine
from vorta_trt.runtime.from_checkpoint import Source
from vorta_trt.runtime.pipelines.inputs import begins_schedule, check_timestep, memory_of
from vorta_trt.runtime.pipelines.request import COND, UNCOND, StepState
from vorta_trt.runtime.sampling.cost import PlanCost, StepProfile
from vorta_trt.runtime.sampling.path_source import timestep_path_of
from vorta_trt.runtime.sampling.route_guards import RouteGuards
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast
from vorta_trt.runtime.sampling.step_plan import StepPlan, plan_steps
from vorta_trt.runtime.sampling.tea_cache import IDENTITY, TeaCache

LAYERS, HEADS = 2, 3


@pytest.fixture(scope="module")
def path(wan: Any) -> TimestepPath:
    return TimestepPath.from_model(Source(wan.checkpoint, wan.router).model())


class RecordingEngine:
    """Samples that tell their launch, and what every launch was given."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, float]] = []
        self.overrides: list[Tensor | None] = []
        self.buffer = torch.zeros(2)  # an engine writes every sample into the same memory

    def __call__(self, context: str, timestep: Any, override: Tensor | None) -> Tensor:
        self.launches.append((context, float(timestep)))
        self.overrides.append(override)
        self.buffer.fill_(len(self.launches))
        return self.buffer


def call(state: StepState, engine: RecordingEngine, timestep: Any, context: str = COND) -> Tensor:
    """What a transformer in a pipeline does at a step."""

    def launch(step: int) -> Tensor | None:
        given = torch.as_tensor(timestep)
        check_timestep(state.plan.timesteps, step, given.flatten().tolist(), given.dtype)
        return engine(context, timestep, state.plan.override_at(step)) if state.plan.compute[step] else None

    return state.sample(context, launch)


def begin(state: StepState, context: str = COND) -> int:
    """Takes a step; its number."""
    taken: list[int] = []
    state.sample(context, lambda step: taken.append(step) or torch.ones(1))  # type: ignore[func-returns-value]
    return taken[0]


def diffusers_timesteps(name: str, steps: int) -> Tensor:
    import diffusers

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = {
        "unipc": lambda: diffusers.UniPCMultistepScheduler(**flow),
        "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(**flow),
        "flow-euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }[name]()
    scheduler.set_timesteps(steps)
    timesteps: Tensor = scheduler.timesteps
    return timesteps


def a_plan(compute: str, start: float = 900.0) -> StepPlan:
    """A plan of flags, e.g. "1001"."""
    timesteps = tuple(start - 10 * step for step in range(len(compute)))
    return StepPlan(timesteps, tuple(flag == "1" for flag in compute))


# -- following a plan --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(  # diffusers' DPM++ under NumPy 2
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize("scheduler", ["unipc", "flow-euler", "dpm++"])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_launches_are_those_of_the_plan(
    path: TimestepPath, scheduler: str, half: torch.dtype | None, seed: int
) -> None:
    timesteps = diffusers_timesteps(scheduler, 30)
    distances = TeaCache(0, IDENTITY).distances(timesteps.tolist(), path)
    threshold = float(np.random.default_rng(seed).uniform(1.5, 4)) * float(np.median(distances))
    plan = plan_steps(timesteps, path=path, cache=TeaCache(threshold, IDENTITY), timestep_dtype=half or torch.float32)
    assert 2 <= plan.computed_steps < 30
    state, engine = StepState(plan), RecordingEngine()
    samples = []
    for timestep in timesteps:  # as a pipeline gives them
        given = timestep.expand(2) if half is None else timestep.expand(2).to(half)
        samples.append([call(state, engine, given[:1], context).clone() for context in (COND, UNCOND)])
    computed = [step for step, flag in enumerate(plan.compute) if flag]
    assert len(engine.launches) == 2 * plan.computed_steps
    assert state.is_done(COND) and state.is_done(UNCOND)
    for step, (cond, uncond) in enumerate(samples):
        launch = max(index for index, other in enumerate(computed) if other <= step)  # the last computed step's
        assert (cond[0], uncond[0]) == (2 * launch + 1, 2 * launch + 2)  # contexts are never mixed


def test_numbers_and_tensors_of_any_precision_find_their_step() -> None:
    timesteps = torch.tensor([999.9, 987.65, 3.21])
    for given in (timesteps, timesteps.double(), timesteps.half(), timesteps.bfloat16()):
        plan = plan_steps(timesteps)
        for step, timestep in enumerate(given):
            check_timestep(plan.timesteps, step, [float(timestep)] * 2, timestep.dtype)
    for step, number in enumerate((999.9, 987.65, 3.21)):
        check_timestep((999.9, 987.65, 3.21), step, [number])


def test_equal_timesteps_in_a_row_are_steps_of_their_own() -> None:
    timesteps = torch.tensor([987.0, 985.0, 984.0, 980.0]).bfloat16()
    plan = plan_steps([987.0, 985.0, 984.0, 980.0])
    assert len(timesteps.unique()) < 4
    for step, timestep in enumerate(timesteps):
        check_timestep(plan.timesteps, step, [float(timestep)], timestep.dtype)


def test_a_pipeline_that_rounds_from_the_second_step_on() -> None:
    """diffusers' HunyuanVideo with FlowMatchEuler: the latents start in float32 and take the sample's type."""
    timesteps = diffusers_timesteps("flow-euler", 12)
    plan = plan_steps(timesteps, timestep_dtype=torch.bfloat16)
    for step, timestep in enumerate([timesteps[0], *timesteps[1:].bfloat16()]):
        check_timestep(plan.timesteps, step, [float(timestep)], timestep.dtype)
    assert timesteps[0] == timesteps[0].bfloat16()  # 1000, so the plan's routes are right for it, too


def test_requests_side_by_side_do_not_see_each_other() -> None:
    plans = [a_plan("100101"), a_plan("101001", start=700.0)]
    states, engines = [StepState(plan) for plan in plans], [RecordingEngine(), RecordingEngine()]
    for step in range(6):
        for plan, state, engine in zip(plans, states, engines, strict=True):
            call(state, engine, plan.timesteps[step])
    assert [timestep for _, timestep in engines[0].launches] == [900.0, 870.0, 850.0]
    assert [timestep for _, timestep in engines[1].launches] == [700.0, 680.0, 650.0]


def test_reset_starts_a_new_request_without_the_old_samples() -> None:
    plan = a_plan("1011")
    state, engine = StepState(plan), RecordingEngine()
    for _ in range(2):
        call(state, engine, 900.0)
        assert float(call(state, engine, 890.0)[0]) == len(engine.launches)
        state.reset()
    assert state.taken == 0
    begin(state)
    with pytest.raises(ValueError, match="is step 0 of the plan.*1"):
        call(state, engine, 900.0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_schedule_that_starts_over_is_told_without_reading_it(batch: int, dtype: torch.dtype) -> None:
    """By the memory of the first timestep, which is that of the scheduler's."""
    schedule = torch.tensor([900.0, 890.0, 880.0]).to(dtype)
    first, *others = (timestep.expand(batch) for timestep in schedule)
    assert begins_schedule(first, 3) and not any(begins_schedule(timestep, 3) for timestep in others)
    assert begins_schedule(others[1], 3, 2)  # where the part of the second of two experts begins
    seen = memory_of(first)
    assert seen is not None and seen.tolist() == schedule.tolist()
    assert not begins_schedule(first, 4)  # of another plan
    for own in (torch.full((batch,), 900.0), torch.tensor(900.0).expand(batch), first.half()):
        assert not begins_schedule(own, 3)
    assert not begins_schedule(torch.tensor([900.0]), 1)  # which may be a step like any other


def test_done_contexts() -> None:
    state = StepState(a_plan("11"))
    assert not state.is_done()
    assert (begin(state), begin(state, UNCOND)) == (0, 0)
    assert (state.is_done(), state.taken) == (False, 1)
    assert begin(state) == 1
    assert (state.is_done(), state.is_done(UNCOND), state.taken) == (True, False, 2)


def test_a_kept_sample_is_a_copy_and_so_is_a_reused_one() -> None:
    state = StepState(a_plan("1001"))
    sample = torch.ones(3)
    assert state.sample(COND, lambda step: sample) is sample
    sample.zero_()
    for _ in range(2):
        reused = state.sample(COND, lambda step: None)
        assert reused.tolist() == [1, 1, 1]
        reused.zero_()


@pytest.mark.parametrize(
    ("timestep", "message"),
    [
        (880.0, "timestep 880: is step 2 of the plan; it came at step 1, timestep 890"),
        (900.0, "timestep 900: is step 0 of the plan; it came at step 1"),
        (889.5, "timestep 889.5: is not in the plan; it came at step 1, timestep 890; plan with"),
        (torch.tensor([890.0, 880.0]), "timestep with 2 different values"),
    ],
)
def test_timesteps_out_of_order_or_outside_the_plan(timestep: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_timestep(a_plan("111").timesteps, 1, torch.as_tensor(timestep).flatten().tolist())


def test_a_finished_plan() -> None:
    state = StepState(a_plan("10"))
    assert (begin(state), begin(state)) == (0, 1)
    with pytest.raises(ValueError, match="context 'cond': all 2 steps of the plan are done"):
        begin(state)
    assert begin(state, UNCOND) == 0


# -- planning ----------------------------------------------------------------------------------------------------------


def test_without_options_every_step_is_computed_and_the_router_decides(path: TimestepPath) -> None:
    plan = plan_steps([900.0, 500.0], path=path)
    assert plan.compute == (True, True)
    assert (plan.route_override, plan.tau, plan.notes) == (None, None, ())
    assert plan.override_at(1) is None
    assert plan.routes is not None and torch.equal(plan.routes.routes, path.route_table([900.0, 500.0]).routes)


def test_guards_and_cache_together(path: TimestepPath) -> None:
    timesteps = np.linspace(790, 110, 12).tolist()
    plan = plan_steps(
        timesteps,
        path=path,
        cache=StepBroadcast(10),
        guards=RouteGuards(dense_first=2, dense_last=3, dense_layers=(1,)),
    )
    flags = [step in (0, 1, 9, 10, 11) for step in range(12)]  # guarded steps are computed, and nothing else
    assert list(plan.compute) == flags
    assert plan.route_override is not None and plan.routes is not None
    assert not plan.routes.routes[[0, 1, 9, 10, 11]].any()
    assert not plan.routes.routes[:, 1].any()
    assert plan.route_override[5, 0].tolist() == [-1] * HEADS
    state, engine = StepState(plan), RecordingEngine()
    for timestep in timesteps:
        call(state, engine, timestep)
    assert len(engine.overrides) == 5
    for override, step in zip(engine.overrides, (0, 1, 9, 10, 11), strict=True):
        assert override is not None and torch.equal(override, plan.route_override[step])


def test_calibrated_routes_lie_under_the_guards(path: TimestepPath, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    calibrated = torch.randint(-1, 3, (4, LAYERS, HEADS), generator=generator, dtype=torch.int32)
    timesteps = [900.0, 700.0, 400.0, 100.0]
    plan = plan_steps(timesteps, path=path, guards=RouteGuards(dense_last=1), calibrated=calibrated, tau=0.0)
    assert plan.routes is not None
    free = path.route_table(timesteps, 0.0).routes
    expected = torch.where(calibrated >= 0, calibrated, free.int())
    expected[3] = 0
    assert torch.equal(plan.routes.routes.int(), expected)


def test_routes_are_those_of_the_timesteps_that_the_transformer_sees(path: TimestepPath) -> None:
    timesteps = diffusers_timesteps("flow-euler", 40)
    plan = plan_steps(timesteps, path=path, timestep_dtype=torch.bfloat16)
    seen = timesteps.bfloat16().float().tolist()
    assert plan.routes is not None
    assert plan.routes.timesteps == tuple(seen)
    assert plan.timesteps == tuple(timesteps.tolist())
    assert torch.equal(plan.routes.scores, path.route_table(seen).scores)


def test_what_the_engine_takes_is_what_was_planned(wan: Any, fp32: Path, seed: int) -> None:
    known = timestep_path_of(fp32)
    timesteps = diffusers_timesteps("flow-euler", 6)
    plan = plan_steps(
        timesteps, path=known, cache=StepBroadcast(2, (100, 900)), guards=RouteGuards(dense_first=1), tau=0.0
    )
    assert plan.routes is not None and plan.routes.routes.any()
    state = StepState(plan)
    launches = 0
    with Engine(fp32) as engine:
        inputs = Source(wan.checkpoint, wan.router, precision="fp32").model().inputs(1, seed)

        def launch(step: int) -> Tensor | None:
            nonlocal launches
            if not plan.compute[step]:
                return None
            at_step = {"timestep": timesteps[step].expand(1), "route_override": plan.override_at(step)}
            outputs = engine(**{**inputs, **at_step, "tau": plan.tau})
            launches += 1
            assert plan.departures(step, torch.as_tensor(outputs["routes"])) == 0
            return torch.as_tensor(outputs["sample"])

        for _ in timesteps:
            state.sample(COND, launch)
    assert launches == plan.computed_steps < 6
    other = 1 - (plan.routes.routes[0] == 1).int().unsqueeze(1)  # [L, 1, N], another branch at every head
    assert plan.departures(0, other) == LAYERS * HEADS


def test_plans_that_cannot_be(path: TimestepPath) -> None:
    with pytest.raises(ValueError, match=r"timesteps \[\]: must hold at least one"):
        plan_steps([])
    with pytest.raises(ValueError, match="guards without layers and heads"):
        plan_steps([1.0], guards=RouteGuards(dense_first=1))
    with pytest.raises(ValueError, match=r"compute\[0\] False: the first step has nothing to reuse"):
        a_plan("01")
    with pytest.raises(ValueError, match="compute of 1 steps, timesteps of 2"):
        StepPlan((2.0, 1.0), (True,))
    with pytest.raises(ValueError, match="route_override of 1 steps, timesteps of 2"):
        StepPlan((2.0, 1.0), (True, True), torch.zeros(1, 2, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match="routes None: the plan does not know them"):
        a_plan("1").departures(0, torch.zeros(2, 1, 3))


@pytest.mark.parametrize("tau", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number(path: TimestepPath, tau: float) -> None:
    with pytest.raises(ValueError, match="must be a number.*1"):
        plan_steps([900.0, 500.0], path=path, tau=tau)


@pytest.mark.parametrize("timestep", [float("nan"), float("inf")])
def test_timesteps_that_are_no_numbers(path: TimestepPath, timestep: float) -> None:
    with pytest.raises(ValueError, match=f"timesteps .*{timestep}.*: must be finite"):
        plan_steps([900.0, timestep], path=path)


def test_without_the_models_timestep_path() -> None:
    plan = plan_steps([700.0, 500.0, 300.0], cache=StepBroadcast(), guards=RouteGuards(dense_last=1), heads=(2, 3))
    assert plan.compute == (True, False, True)
    assert (plan.routes, plan.cost) == (None, None)
    assert plan.route_override is not None and not plan.route_override[2].any()
    assert any(line.startswith("note: routes and cost are unknown") for line in plan.lines())
    assert json.loads(plan.to_json())["routes"] is None


# -- cost and reports --------------------------------------------------------------------------------------------------


def test_the_cost_counts_computed_steps_of_every_pass(path: TimestepPath) -> None:
    timesteps = [790.0, 600.0, 400.0, 200.0, 50.0]
    plan = plan_steps(timesteps, path=path, cache=StepBroadcast(3), tau=0.0, passes=2)
    assert plan.compute == (True, False, False, True, True)
    geometry, routes = path.geometry, plan.routes
    assert geometry is not None and routes is not None and routes.other_flops is not None and plan.cost is not None
    other = sum(routes.other_flops.values())
    expected = 0.0
    for step in (0, 3, 4):
        attention = sum(
            geometry.attention_flops(branch, path.head_dim)
            for branch in (("full", "coreset", "sliding")[head] for head in routes.routes[step].flatten().tolist())
        )
        expected += 2 * (attention + other)
    dense = 2 * 5 * (LAYERS * HEADS * geometry.attention_flops("full", path.head_dim) + other)
    assert plan.cost.flops == pytest.approx(expected)
    assert plan.cost.dense_flops == pytest.approx(dense)
    assert plan.cost.speedup == pytest.approx(dense / expected)
    assert plan.cost.share(1) == 0 < plan.cost.share(0) <= 1
    assert plan.cost.seconds is None


def test_seconds_from_measured_parts(path: TimestepPath, tmp_path: Path, seed: int) -> None:
    file = tmp_path / "profile.json"
    file.write_text('{"other": 2.0, "full": 0.5, "coreset": 0.125, "sliding": 0.0625}')
    profile = StepProfile.load(file)
    generator = torch.Generator().manual_seed(seed)
    override = torch.randint(0, 3, (3, LAYERS, HEADS), generator=generator, dtype=torch.int32)
    plan = plan_steps([700.0, 500.0, 50.0], path=path, cache=StepBroadcast(), calibrated=override, profile=profile)
    each = torch.tensor([0.5, 0.125, 0.0625])
    expected = 2 * 2.0 + float(each[override[[0, 2]].long()].sum())
    assert plan.cost is not None and plan.cost.seconds == pytest.approx(expected)
    assert plan.cost.dense_seconds == pytest.approx(3 * (2.0 + 0.5 * LAYERS * HEADS))
    assert "s dense without caching" in "\n".join(plan.lines())
    file.write_text('{"other": 2.0}')
    with pytest.raises(ValueError, match="step profile .*profile.json: full: is missing.*JSON"):
        StepProfile.load(file)


def test_cost_of_a_table_without_the_rest_of_the_flops(path: TimestepPath) -> None:
    from dataclasses import replace

    table = replace(path.route_table([5.0]), other_flops=None)
    assert PlanCost.of(table, (True,)) is None


def test_the_report(path: TimestepPath) -> None:
    plan = plan_steps(
        [700.0, 500.0, 50.0], path=path, cache=StepBroadcast(), guards=RouteGuards(dense_first=1), passes=2
    )
    lines = plan.lines()
    assert lines[0].split() == ["step", "timestep", "full", "coreset", "sliding", "cost"]
    assert lines[1].split() == ["0", "700.0", "compute", "100.0%", "0.0%", "0.0%", "100.0%"]
    assert lines[2].split() == ["1", "500.0", "reuse", "0.0%"]
    assert lines[4].startswith("2 of 3 steps computed, 1 reused; heads of computed steps: ")
    assert lines[5].startswith("transformer per sample, 2 passes per step: ")
    content = json.loads(plan.to_json())
    assert content["compute"] == [True, False, True]
    assert content["settings"]["cache"] == {"method": "broadcast", "interval": 2, "timestep_range": [100.0, 800.0]}
    assert content["settings"]["guards"]["dense_first"] == 1
    assert np.array(content["routes"]).shape == (3, LAYERS, HEADS)
    assert content["cost"]["flops_per_step"][1] == 0
    assert content["cost"]["flops"] == pytest.approx(sum(content["cost"]["flops_per_step"]))
    assert content["tau"] == 0.3
