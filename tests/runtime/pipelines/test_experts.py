# SPDX-License-Identifier: Apache-2.0
"""Two experts: each takes its part of the schedule, as in the stock pipeline; one at a time where memory is short."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from typer import BadParameter
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.commands.options import one_per_expert, sources_of
from vorta_trt.engines import build_engine
from vorta_trt.engines.errors import SelectionError
from vorta_trt.export import read_metadata
from vorta_trt.export.metadata import KEY
from vorta_trt.export.names import component_file
from vorta_trt.export.onnx_file import data_file
from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.constants import COMPONENTS, DENSE_TAU, TRANSFORMER, TRANSFORMER_2
from vorta_trt.model.geometry import Branch
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.write_errors import WriteError
from vorta_trt.runtime import Engine, SamplingParams, VortaPipeline, VortaTransformer
from vorta_trt.runtime.fallbacks import FallbackError, Fallbacks
from vorta_trt.runtime.from_checkpoint import export_checkpoint
from vorta_trt.runtime.inspection import inspect_target
from vorta_trt.runtime.pipelines import transformer as transformer_module
from vorta_trt.runtime.pipelines import transformers
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.pipelines.transformers import ReadAhead
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.sampling.route_guards import RouteGuards
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast

from ...tiny import FRAMES, HEIGHT, WIDTH, Tiny, TinyExperts, build_here, latents

STEPS = 4  # with the shift of the tiny pipeline the first two are the first expert's
GUIDED = {"guidance_scale": 4.0, "guidance_scale_2": 3.0}
PARAMS = SamplingParams(num_inference_steps=STEPS, **GUIDED)


def transformers_of(tiny: TinyExperts, **options: Any) -> tuple[VortaTransformer, VortaTransformer]:
    high, low = (VortaTransformer.from_pretrained(model) for model in tiny.models(**options))
    return high, low


# -- as the stock pipeline ---------------------------------------------------------------------------------------------


def test_with_all_heads_full_it_is_the_stock_pipeline_with_its_own_transformers(tiny_experts: TinyExperts) -> None:
    """Both guidance scales and the switch count: another scale of either expert gives other latents."""
    from diffusers import WanTransformer3DModel

    own = [WanTransformer3DModel.from_pretrained(tiny_experts.checkpoint / name) for name in COMPONENTS]
    stock = tiny_experts.pipeline(*own)
    expected = latents(stock, STEPS, **GUIDED)
    for changed in ({**GUIDED, "guidance_scale": 5.0}, {**GUIDED, "guidance_scale_2": 4.0}):
        assert (latents(stock, STEPS, **changed) - expected).abs().max() > 1e-3
    stock.transformer_2 = own[0]
    assert (latents(stock, STEPS, **GUIDED) - expected).abs().max() > 1e-3
    given = latents(tiny_experts.pipeline(*transformers_of(tiny_experts, tau=DENSE_TAU)), STEPS, **GUIDED)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_a_video_is_the_stock_pipelines_bit_for_bit(tiny_experts: TinyExperts) -> None:
    models = tiny_experts.models()
    stock = tiny_experts.pipeline(*map(VortaTransformer.from_pretrained, models))
    size: dict[str, Any] = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS}
    noise = torch.Generator().manual_seed(7)
    (expected,) = stock("a red wall", generator=noise, output_type="pt", **size, **GUIDED).frames
    taken: list[int] = []
    with VortaPipeline.from_pretrained(models, strict=True) as pipe:
        report = lambda step, planned: taken.append(step)  # noqa: E731
        video, again = (pipe("a red wall", seed=7, params=PARAMS, on_step=report) for _ in range(2))
    assert np.array_equal(video.frames, (expected * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    assert np.array_equal(again.frames, video.frames)
    assert taken == 2 * list(range(STEPS))
    assert video.launches == 2 * STEPS
    assert [(part.component, len(part.steps.timesteps)) for part in video.planned.experts] == [
        (TRANSFORMER, 2),
        (TRANSFORMER_2, 2),
    ]


def test_a_guidance_scale_of_one_costs_one_pass(tiny_experts: TinyExperts) -> None:
    """The unconditional sample cancels out, but for rounding; the stock pipeline computes it all the same."""
    with VortaPipeline.from_pretrained(tiny_experts.models(), strict=True) as pipe:
        video = pipe("a red wall", seed=7, params=PARAMS.updated(guidance_scale_2=1.0))
        batched = pipe(
            "a red wall", seed=7, params=PARAMS.updated(guidance_scale_2=1.0, guidance_batching=GuidanceMode.BATCHED)
        )
    assert [part.passes for part in video.planned.experts] == [2, 1]
    assert (video.launches, batched.launches) == (2 * 2 + 2, 3 + 2)
    stock = tiny_experts.pipeline(*transformers_of(tiny_experts))
    size: dict[str, Any] = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS}
    noise = torch.Generator().manual_seed(7)
    (expected,) = stock(
        "a red wall", generator=noise, output_type="pt", **size, guidance_scale=4.0, guidance_scale_2=1.0
    ).frames
    frames = (expected * 255).permute(0, 2, 3, 1).numpy()
    for made in (video, batched):
        assert np.abs(made.frames - frames).max() <= 1.5


def test_guidance_that_has_no_effect(tiny_experts: TinyExperts) -> None:
    planner = RequestPlanner(tiny_experts.onnx, tiny_experts.checkpoint)
    with pytest.raises(ValueError, match="guidance_scale_2 3 with guidance_scale 1: has no effect"):
        planner.plan(SamplingParams(guidance_scale=1.0, guidance_scale_2=3.0))
    off = planner.plan(SamplingParams(num_inference_steps=STEPS, guidance_scale=1.0))
    assert [part.passes for part in off.experts] == [1, 1]
    same = planner.plan(SamplingParams(num_inference_steps=STEPS, guidance_scale=4.0))
    assert [part.guidance_scale for part in same.experts] == [4.0, 4.0]


# -- plans -------------------------------------------------------------------------------------------------------------


def test_plans_say_which_expert_takes_which_step(tiny_experts: TinyExperts) -> None:
    sources = tiny_experts.onnx, tiny_experts.models()
    planners = [RequestPlanner(source, tiny_experts.checkpoint) for source in sources]
    params = PARAMS.updated(dense_first=1, dense_last=3)
    planned, model = (planner.plan(params) for planner in planners)
    high, low = planned.experts
    assert high.steps.timesteps + low.steps.timesteps == planned.schedule.timesteps == planned.steps.timesteps
    assert min(high.steps.timesteps) >= 875 > max(low.steps.timesteps)
    assert (high.steps.first, low.steps.first) == (0, len(high.steps.timesteps))
    routes = planned.steps.routes
    assert routes is not None and model.steps.routes is not None
    assert torch.equal(routes.routes, model.steps.routes.routes)
    dense = [bool((step == Branch.FULL).all()) for step in routes.routes]
    assert dense == [True, True, True, True]  # guards count the steps of the schedule
    lines = planned.lines()
    assert lines[0].endswith("experts switch at timestep 875")
    assert lines[1].startswith("transformer (high noise): steps 0 to 1, timesteps 9")
    assert lines[1].endswith("guidance 4, 2 passes")
    assert lines[2].startswith("transformer_2 (low noise): steps 2 to 3, timesteps 8")
    assert lines[2].endswith("guidance 3, 2 passes")
    assert [line.split()[2] for line in lines if line.split()[0] in "0123"] == ["high", "high", "low", "low"]
    content = json.loads(json.dumps(planned.to_dict()))
    assert [(part["component"], part["first_step"], part["steps"]) for part in content["experts"]] == [
        (TRANSFORMER, 0, 2),
        (TRANSFORMER_2, 2, 2),
    ]
    assert (content["boundary_ratio"], len(content["plan"]["timesteps"])) == (0.875, STEPS)
    costs = [part.steps.cost for part in planned.experts]
    assert planned.steps.cost is not None
    assert planned.steps.cost.flops == sum(cost.flops for cost in costs if cost is not None)


def test_each_expert_has_its_own_routes(tiny_experts: TinyExperts) -> None:
    planner = RequestPlanner(tiny_experts.onnx, tiny_experts.checkpoint)
    planned = planner.plan(PARAMS)
    for expert, part in zip(planner.experts, planned.experts, strict=True):
        assert expert.path is not None and part.steps.routes is not None
        own = expert.path.route_table(part.steps.timesteps).routes
        assert torch.equal(part.steps.routes.routes, own)


@pytest.mark.parametrize(("timesteps", "component"), [((1000, 900), TRANSFORMER), ((800, 400), TRANSFORMER_2)])
def test_a_schedule_of_one_expert_alone(
    tiny_experts: TinyExperts, timesteps: tuple[float, ...], component: str
) -> None:
    with VortaPipeline.from_pretrained(tiny_experts.onnx, tiny_experts.checkpoint, strict=True) as pipe:
        video = pipe("a red wall", seed=1, params=SamplingParams(timesteps=timesteps))
    assert [part.component for part in video.planned.experts] == [component]
    assert video.launches == 2
    assert any(line.endswith("no step of this schedule") for line in video.planned.lines())


# -- loaded together, or in turn ---------------------------------------------------------------------------------------


class Watch:
    """The engines, as they come and go, and what is read ahead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        watch = self

        class WatchedEngine(Engine):
            def __init__(self, *arguments: Any, component: str, **options: Any) -> None:
                self.component = component
                watch.events.append(f"open {component}")
                super().__init__(*arguments, component=component, **options)

            def close(self) -> None:
                if not self.closed:
                    watch.events.append(f"close {self.component}")
                super().close()

        class WatchedReading(ReadAhead):
            def __init__(self, files: list[Path]) -> None:
                watch.events.append(f"read {files[0].name}")
                super().__init__(files)

        monkeypatch.setattr(transformer_module, "Engine", WatchedEngine)
        monkeypatch.setattr(transformers, "ReadAhead", WatchedReading)


def test_in_turn_the_videos_are_those_of_both_together(
    tiny_experts: TinyExperts, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    prompts, videos = ["a red wall", "a blue wall"], {}
    for residency in ("resident", "sequential"):
        made: list[Any] = []
        with VortaPipeline.from_pretrained(
            tiny_experts.onnx, tiny_experts.checkpoint, residency=residency, strict=True
        ) as pipe:
            pipe.generate_each(prompts, lambda _, video, made=made: made.append(video), seed=3, params=PARAMS)  # noqa: B023
            assert pipe.residency.to_dict()["experts_in_turn"] == (residency == "sequential")
        videos[residency], events = made, watch.events[:]
        watch.events.clear()
        if residency == "resident":
            both = [f"open {component}" for component in COMPONENTS]
            assert sorted(events) == sorted([*both, *(event.replace("open", "close") for event in both)])
            assert events[:2] == both
    turn = ["open transformer", "read model.transformer_2.onnx", "close transformer", "open transformer_2"]
    assert events == [*turn, "close transformer_2", *turn, "close transformer_2"]
    for together, in_turn in zip(videos["resident"], videos["sequential"], strict=True):
        assert np.array_equal(together.frames, in_turn.frames)
        assert together.launches == in_turn.launches == 2 * STEPS
    assert not np.array_equal(videos["resident"][0].frames, videos["resident"][1].frames)


def test_a_request_that_is_stopped_leaves_nothing_loaded(
    tiny_experts: TinyExperts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(step: int, planned: Any) -> None:
        if step == 2:
            raise KeyboardInterrupt

    watch = Watch(monkeypatch)
    with VortaPipeline.from_pretrained(tiny_experts.onnx, tiny_experts.checkpoint, residency="sequential") as pipe:
        with pytest.raises(KeyboardInterrupt):
            pipe("a red wall", params=PARAMS, on_step=stop)
        assert watch.events[-2:] == ["open transformer_2", "close transformer_2"]
        assert pipe("a red wall", seed=1, params=PARAMS).launches == 2 * STEPS


@pytest.mark.parametrize("in_turn", [False, True])
def test_what_engines_share_is_freed_with_them(in_turn: bool) -> None:
    """The stage behind denoising, and in turn the second expert, need the memory of activations."""
    events: list[str] = []

    def open_one(component: str) -> Any:
        events.append(component)
        return SimpleNamespace(device=torch.device("cpu"), close=lambda: events.append(f"close {component}"))

    loaded = transformers.Transformers(COMPONENTS, open_one, lambda component: [], Fallbacks())
    loaded.in_turn, loaded.on_free = in_turn, lambda: events.append("free")
    for component in COMPONENTS:
        assert loaded.get(component) is loaded.get(component)
    loaded.close()
    high, low = COMPONENTS
    if in_turn:
        assert events == ["free", high, f"close {high}", "free", low, f"close {low}", "free"]
    else:
        assert events == [high, low, f"close {low}", f"close {high}", "free"]


def test_reading_ahead_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"0" * 100)
    ahead = ReadAhead([tmp_path / "absent", tmp_path / "plan"])
    ahead.wait()
    ahead.stop()


@pytest.mark.gpu
def test_on_a_gpu_both_engines_make_the_videos_of_the_models(tiny_experts: TinyExperts, tmp_path: Path) -> None:
    """Together and in turn alike; within the rounding of fp16 of the models in torch on the GPU."""
    path = build_here(tiny_experts.sources("fp16"), tmp_path / "experts.bundle")
    models = [model.to("cuda") for model in tiny_experts.models(dtype=torch.float16)]
    with VortaPipeline.from_pretrained((models[0], models[1]), tiny_experts.checkpoint) as pipe:
        expected = pipe("a red wall", seed=3, params=PARAMS).frames.astype(int)
    for in_turn in (False, True):
        with VortaPipeline.from_pretrained(path, tiny_experts.checkpoint, residency="sequential", strict=True) as pipe:
            pipe.transformers.in_turn = in_turn
            video = pipe("a red wall", seed=3, params=PARAMS)
        assert np.abs(video.frames - expected).mean() <= 1


# -- in the stock pipeline ---------------------------------------------------------------------------------------------


def test_a_cache_in_a_stock_pipeline(tiny_experts: TinyExperts) -> None:
    """Each expert plans its own part of a video's schedule, whatever the number of steps, and after one broken off."""

    def interrupt(pipeline: Any, step: int, timestep: Tensor, tensors: Any) -> dict[str, Any]:
        if step == 5:
            raise KeyboardInterrupt
        return {}

    both = transformers_of(tiny_experts)
    pipeline = tiny_experts.pipeline(*both)
    cache = StepBroadcast(2, (0, 1000))
    for each in both:
        each.enable_cache(cache, dense_first=1)
    cached, again = (latents(pipeline, 8, **GUIDED) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        latents(pipeline, 8, callback_on_step_end=interrupt, **GUIDED)
    after, other = latents(pipeline, 8, **GUIDED), latents(pipeline, 6, **GUIDED)
    assert torch.equal(cached, again) and torch.equal(cached, after)
    assert not any(each.fallbacks.counts for each in both)
    for each in both:
        each.disable_cache()
    assert not torch.equal(latents(pipeline, 8, **GUIDED), cached)
    for steps, expected in ((8, cached), (6, other)):
        pipeline.scheduler.set_timesteps(steps)
        plans = [
            each.plan(pipeline.scheduler.timesteps, cache=cache, guards=RouteGuards(dense_first=1)) for each in both
        ]
        assert sum(plan.computed_steps for plan in plans) < steps == sum(len(plan.timesteps) for plan in plans)
        strict = Fallbacks(strict=True)
        with both[0].request(plans[0], fallbacks=strict), both[1].request(plans[1], fallbacks=strict):
            for _ in range(2):
                assert torch.equal(latents(pipeline, steps, **GUIDED), expected)


def test_experts_in_the_wrong_place_are_found_out(tiny_experts: TinyExperts) -> None:
    high, low = transformers_of(tiny_experts)
    with pytest.raises(ValueError, match=r"timestep 999: this is transformer_2 \(low noise\), which takes 875 to 0"):
        latents(tiny_experts.pipeline(low, high), STEPS)
    with pytest.raises(ValueError, match=r"timestep 8\d\d: this is transformer \(high noise\), which takes 1000"):
        latents(tiny_experts.pipeline(high, high), STEPS)
    with pytest.raises(ValueError, match=r"none is of transformer \(high noise\)"):
        high.plan([800.0, 400.0])
    plan = high.plan([999.0, 900.0, 400.0])
    with pytest.raises(FallbackError, match="unfinished plan: 1 of 2 steps"):
        with high.request(plan, fallbacks=Fallbacks(strict=True)):
            given = {"encoder_hidden_states": torch.zeros(1, 512, 32), "hidden_states": torch.zeros(1, 4, 3, 8, 12)}
            high(timestep=torch.tensor([999.0]), **given)


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_an_exported_file_says(tiny_experts: TinyExperts) -> None:
    files = [component_file(tiny_experts.onnx, component) for component in COMPONENTS]
    assert [file.name for file in files] == ["model.onnx", "model.transformer_2.onnx"]
    told = [read_metadata(file) for file in files]
    assert [(each.component, each.boundary_ratio, each.experts) for each in told] == [
        (component, 0.875, COMPONENTS) for component in COMPONENTS
    ]
    assert told[0].router_sha256 != told[1].router_sha256
    assert {each.checkpoint for each in told} == {"checkpoint"}


def test_either_both_files_are_written_or_none(
    tiny_experts: TinyExperts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vorta_trt import export

    def fail(model: Any, path: Path, *arguments: Any, **options: Any) -> Path:
        if model.component == TRANSFORMER_2:
            raise OSError("the disk is full")
        path.write_text("new")
        return path

    monkeypatch.setattr(export, "export_onnx", fail)
    (tmp_path / "model.onnx").write_text("old")
    with pytest.raises(OSError, match="the disk is full"):
        export_checkpoint(tiny_experts.sources(), tmp_path / "model.onnx", lambda *what: None)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.onnx", "old")]


def test_both_files_are_checked_before_the_slow_part(tiny_experts: TinyExperts, tmp_path: Path) -> None:
    (tmp_path / "model.transformer_2.onnx").mkdir()
    stages: list[str] = []
    with pytest.raises(WriteError, match="output .*model.transformer_2.onnx: .*is a folder"):
        export_checkpoint(tiny_experts.sources(), tmp_path / "model.onnx", lambda what, *_: stages.append(what))
    assert not stages and len(list(tmp_path.iterdir())) == 1


def test_one_expert_without_the_other(tiny_experts: TinyExperts, tiny_wan: Tiny, tmp_path: Path) -> None:
    shutil.copy(tiny_experts.onnx, tmp_path)
    second = component_file(tiny_experts.onnx, TRANSFORMER_2)
    with pytest.raises(FileNotFoundError, match="transformer_2.onnx: does not exist, and .*model.onnx is the first of"):
        RequestPlanner(tmp_path / "model.onnx", tiny_experts.checkpoint)
    shutil.copy(tiny_wan.onnx, tmp_path / "model.transformer_2.onnx")
    with pytest.raises(SelectionError, match="component 'transformer_2': .*transformer_2.onnx holds transformer only"):
        RequestPlanner(tmp_path / "model.onnx", tiny_experts.checkpoint)
    with pytest.raises(ValueError, match=r"holds transformer_2 \(low noise\) of two experts; give the file of"):
        RequestPlanner(second, tiny_experts.checkpoint)
    high, low = tiny_experts.models()
    for wrong in (high, low, (low, high), (high, high)):
        with pytest.raises(ValueError, match="must be transformer and transformer_2 of one pipeline"):
            RequestPlanner(wrong, tiny_experts.checkpoint)
    with pytest.raises(CheckpointError, match="has two experts that switch at 0.875, but .* of a pipeline with one tr"):
        RequestPlanner(tiny_wan.onnx, tiny_experts.checkpoint)
    with pytest.raises(CheckpointError, match="has one transformer, but .* of a pipeline with two experts that sw"):
        RequestPlanner(tiny_experts.onnx, tiny_wan.checkpoint)


def test_a_bundle_has_both(tiny_experts: TinyExperts, tmp_path: Path) -> None:
    """Built from the exported files; the plan needs no GPU, and calibrated routes are those of their expert."""
    routes = []
    for component, branch, buckets in (
        (TRANSFORMER, Branch.SLIDING, (1000.0, 875.0)),
        (TRANSFORMER_2, Branch.CORESET, (874.0, 0.0)),
    ):
        calibration = RouteCalibration(
            family="wan",
            geometry=tiny_experts.geometry,
            buckets=(buckets,),
            routes=torch.full((1, 2, 3), int(branch), dtype=torch.int8),
            errors=torch.zeros(1, 2, 3, 3),
            budget=0.1,
            component=component,
        )
        routes.append(tmp_path / f"{component}.json")
        calibration.save(routes[-1])
    files = [component_file(tiny_experts.export("fp16"), component) for component in COMPONENTS]
    with pytest.raises(ValueError, match=r"are for transformer_2 \(low noise\), the model is transformer \(high"):
        build_engine(files, tmp_path / "wrong.bundle", route_override=routes[::-1])
    path = build_engine(files, tmp_path / "experts.bundle", route_override=routes, optimization_level=0).path
    planner = RequestPlanner(path, tiny_experts.checkpoint)
    planned = planner.plan(PARAMS)
    for part, branch in zip(planned.experts, (Branch.SLIDING, Branch.CORESET), strict=True):
        assert part.steps.routes is not None and bool((part.steps.routes.routes == int(branch)).all())
    told = RequestPlanner(path, tiny_experts.checkpoint, route_override={TRANSFORMER_2: None})
    assert [expert.calibration is None for expert in told.experts] == [False, True]
    inspected = inspect_target(path)
    assert inspected.memory_plan.second_weights and inspected.memory_plan.cards[0].experts == "together"


# -- commands ----------------------------------------------------------------------------------------------------------


def command(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_generate_runs_both(tiny_experts: TinyExperts, tmp_path: Path) -> None:
    pytest.importorskip("av")
    options = (tiny_experts.onnx, "--checkpoint", tiny_experts.checkpoint, "--steps", STEPS, "--guidance-scale", 4)
    plan = command("generate", *options, "--guidance-scale-2", 3, "--dry-run")
    assert "transformer_2 (low noise): steps 2 to 3" in plan and "guidance 3, 2 passes" in plan
    said = command("generate", *options, "--prompt", "a red wall", "--strict", "-o", tmp_path / "wall.mp4")
    assert f"{STEPS} steps, {2 * STEPS} launches" in said
    assert (tmp_path / "wall.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("routers", "message"),
    [
        (("high={high}", "{low}"), "give one for high noise"),
        (("high={high}", "high={low}"), "give one for high noise"),
        (("high={high}", "low={high}/absent"), "absent: does not exist"),
    ],
)
def test_options_for_experts(tiny_experts: TinyExperts, tmp_path: Path, routers: tuple[str, ...], message: str) -> None:
    names = {"high": tiny_experts.routers[TRANSFORMER], "low": tiny_experts.routers[TRANSFORMER_2]}
    given = [part for router in routers for part in ("--router", router.format(**names))]
    code = 1 if "absent" in message else 2
    said = command("export", tiny_experts.checkpoint, *given, "-o", tmp_path / "model.onnx", code=code)
    assert re.search(message, " ".join(said.replace("│", " ").split())), said
    said = command("export", tiny_experts.checkpoint, "--lora", "a.safetensors", "-o", tmp_path / "model.onnx", code=2)
    assert "two experts; say for which it is, high=a.safetensors" in " ".join(said.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "file"), [("--router", "{low}"), ("--lora", "a.safetensors:0.5")])
def test_an_expert_that_there_is_not(
    tiny_experts: TinyExperts, tmp_path: Path, caplog: pytest.LogCaptureFixture, option: str, file: str
) -> None:
    given = f"mid={file.format(low=tiny_experts.routers[TRANSFORMER_2])}"
    said = command("export", tiny_experts.checkpoint, option, given, "-o", tmp_path / "model.onnx", code=2)
    words = " ".join(said.replace("│", " ").split())
    assert "no expert 'mid'; the two experts are high and low" in words and "used for both" not in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_path_with_an_equals_sign(tiny_experts: TinyExperts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_experts.router, tmp_path / "tau=0.3")
    both = {TRANSFORMER: "tau=0.3", TRANSFORMER_2: "tau=0.3"}
    assert one_per_expert(["tau=0.3"], "--router", COMPONENTS, shared=True) == both
    each = one_per_expert(["high=tau=0.3", "low=./tau=0.3"], "--router", COMPONENTS, shared=True)
    assert each == both | {TRANSFORMER_2: "./tau=0.3"}
    with pytest.raises(BadParameter, match="say for which it is, high=tau=0.3"):
        one_per_expert(["tau=0.3"], "--route-override", COMPONENTS)
    with pytest.raises(BadParameter, match="no expert 'mid'"):
        one_per_expert(["mid=tau=0.3"], "--route-override", COMPONENTS)


def test_files_that_do_not_belong_together(tiny_experts: TinyExperts, tmp_path: Path) -> None:
    """`inspect` and `verify` say so as `build` and `generate` do."""
    second = component_file(tiny_experts.onnx, TRANSFORMER_2)
    model = onnx.load(second, load_external_data=False)
    (entry,) = (entry for entry in model.metadata_props if entry.key == KEY)
    stated = json.loads(entry.value)
    for name, value in (("precision", "bf16"), ("checkpoint", "another"), ("latent_shape", [16, 3, 30, 30])):
        entry.value = json.dumps(stated | {name: value})
        onnx.save(model, tmp_path / "model.transformer_2.onnx")
        for file in (tiny_experts.onnx, data_file(tiny_experts.onnx), data_file(second)):
            if file.is_file():
                shutil.copy(file, tmp_path)
        size = name == "latent_shape"
        message = "was exported for .*; .*export it again with --size" if size else f"is of {name} {value}, and"
        for arguments in (("inspect",), ("verify", tiny_experts.checkpoint)):
            said = command(arguments[0], tmp_path / tiny_experts.onnx.name, *arguments[1:], code=1)
            assert re.search(message, " ".join(said.split())), said


def test_one_router_of_two_is_said(tiny_experts: TinyExperts, caplog: pytest.LogCaptureFixture) -> None:
    given = [f"high={tiny_experts.router}"]
    high, low = sources_of(tiny_experts.checkpoint, given, None, "fp32", None)
    assert high.router == tiny_experts.router and low.router is None
    assert "--router: none is given for transformer_2 (low noise), whose heads all stay full" in caplog.text


def test_build_of_the_second_file_alone(tiny_experts: TinyExperts, tmp_path: Path) -> None:
    second = component_file(tiny_experts.onnx, TRANSFORMER_2)
    said = command("build", second, "-o", tmp_path / "model.bundle", code=1)
    assert "holds transformer_2 (low noise) of two experts; give the file of the first" in " ".join(said.split())
    assert not list(tmp_path.iterdir())


def test_options_for_experts_of_a_model_with_one(tiny_wan: Tiny, tmp_path: Path) -> None:
    given = ("--router", f"high={tiny_wan.router}", "-o", tmp_path / "model.onnx")
    said = command("export", tiny_wan.checkpoint, *given, code=2)
    assert "one transformer" in " ".join(said.replace("│", " ").split())


def test_routes_of_both(tiny_experts: TinyExperts, caplog: pytest.LogCaptureFixture) -> None:
    given = [
        part
        for noise, router in zip(("high", "low"), tiny_experts.routers.values(), strict=True)
        for part in ("--router", f"{noise}={router}")
    ]
    said = command("routes", tiny_experts.checkpoint, *given, "--steps", STEPS, "--precision", "fp32")
    both = command(
        "routes", tiny_experts.checkpoint, "--router", tiny_experts.router, "--steps", STEPS, "--precision", "fp32"
    )
    assert "is used for both experts" in caplog.text and "transformer_2 (low noise): 2 steps" in both
    assert "transformer (high noise): 2 steps" in said and "transformer_2 (low noise): 2 steps" in said
