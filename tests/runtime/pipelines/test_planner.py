# SPDX-License-Identifier: Apache-2.0
"""What is known of a request before sampling, of bundles, files and models that are not loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from vorta_trt.engines import Bundle
from vorta_trt.model import RoutedTransformer
from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import VortaTransformer
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.sampling.cost import StepProfile
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast
from vorta_trt.runtime.sampling.tea_cache import IDENTITY, TeaCache
from vorta_trt.runtime.schedules import schedule_timesteps

from ...tiny import SIZE, Tiny, save_calibration


def test_a_file_and_its_model_are_planned_alike(tiny: Tiny) -> None:
    planners = RequestPlanner(tiny.onnx, tiny.checkpoint), RequestPlanner(tiny.model(), tiny.checkpoint)
    timesteps = schedule_timesteps(tiny.checkpoint, 12).timesteps
    distances = TeaCache(0, IDENTITY).distances(timesteps, planners[0].path)
    settings = SamplingParams(
        num_inference_steps=12,
        cache=TeaCache(3 * sorted(distances)[6], IDENTITY),
        dense_first=1,
        dense_layers=(1,),
        tau=0.5,
    )
    profile = StepProfile(other=1.0, full=0.4, coreset=0.2, sliding=0.1)
    file, model = (planner.plan(settings, profile) for planner in planners)
    assert file.schedule == model.schedule
    assert file.schedule.timesteps == timesteps
    assert file.steps.compute == model.steps.compute
    assert 2 < file.steps.computed_steps < 12
    assert file.steps.routes is not None and model.steps.routes is not None
    assert torch.equal(file.steps.routes.routes, model.steps.routes.routes)
    assert file.steps.cost == model.steps.cost
    assert file.steps.cost is not None and file.steps.cost.seconds is not None
    assert file.passes == (2 if tiny.family == "wan" else 1)
    assert planners[0].size == planners[1].size == SIZE
    assert json.loads(json.dumps(file.to_dict()))["plan"]["tau"] == 0.5
    assert file.lines()[0].startswith(file.schedule.scheduler)


def test_bundles_need_no_gpu(bundle: Path, tiny_wan: Tiny) -> None:
    for source in (bundle, Bundle.open(bundle, runtime=False)):
        planner = RequestPlanner(source, tiny_wan.checkpoint)
        assert planner.dtype == torch.float16
        assert planner.plan(SamplingParams(num_inference_steps=4)).steps.routes is not None


def test_the_checkpoint_is_found_by_its_name(tiny_wan: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RequestPlanner(tiny_wan.onnx).checkpoint == tiny_wan.checkpoint  # beside the file
    assert RequestPlanner(tiny_wan.model()).checkpoint == tiny_wan.checkpoint
    file = Path(shutil.copy(tiny_wan.onnx, tmp_path / "alone.onnx"))
    planner = RequestPlanner(file)
    assert planner.checkpoint is None
    with pytest.raises(
        CheckpointError, match=r"alone.onnx: does not hold the whole pipeline.*'checkpoint' .*--checkpoint FOLDER"
    ):
        planner.require_checkpoint()
    monkeypatch.chdir(tiny_wan.folder)
    assert RequestPlanner(file).checkpoint == Path("checkpoint")  # here
    assert RequestPlanner(file, tiny_wan.checkpoint / "transformer").checkpoint == tiny_wan.checkpoint
    inside = tiny_wan.checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    assert RequestPlanner(file, inside).checkpoint == tiny_wan.checkpoint
    cache = tmp_path / "models--Owner--Tiny"  # of Hugging Face
    (cache / "snapshots").mkdir(parents=True)
    (cache / "snapshots" / "0123").symlink_to(tiny_wan.checkpoint)
    assert RequestPlanner(file, cache).checkpoint == cache / "snapshots" / "0123"
    model = RoutedTransformer.from_pretrained(cache, geometry=tiny_wan.geometry, materialize=False)
    assert RequestPlanner(model).checkpoint == cache / "snapshots" / "0123"
    with pytest.raises(FileNotFoundError, match="checkpoint absent: is no folder"):
        RequestPlanner(file, "absent")


def test_what_nobody_runs_is_refused_before_the_plan(tiny_wan: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    index = json.loads((tiny_wan.checkpoint / "model_index.json").read_text())
    index |= {"image_encoder": ["transformers", "CLIPVisionModel"], "new_switch": 0.875}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"image_encoder \(CLIPVisionModel\), new_switch 0.875"):
        RequestPlanner(tiny_wan.onnx, folder)


def test_without_a_checkpoint_the_schedule_must_be_said(tiny_wan: Tiny, tmp_path: Path) -> None:
    planner = RequestPlanner(shutil.copy(tiny_wan.onnx, tmp_path))
    with pytest.raises(
        ValueError, match="no checkpoint was found, .* or for a plan alone --scheduler .* and --flow-shift"
    ):
        planner.plan(SamplingParams())
    assert (
        len(planner.plan(SamplingParams(num_inference_steps=7, scheduler="unipc", flow_shift=3.0)).steps.timesteps) == 7
    )
    assert planner.plan(SamplingParams(sigmas=(1.0, 0.5))).steps.timesteps == (1000.0, 500.0)


def test_distilled_schedules(tiny: Tiny) -> None:
    planner = RequestPlanner(tiny.onnx)
    planned = planner.plan(SamplingParams(sigmas=(1.0, 0.757, 0.522)))
    assert planned.steps.timesteps == (1000.0, 757.0, 522.0)
    assert planned.passes == 1  # guidance is off
    assert planned.schedule.shift is None
    if tiny.family == "wan":
        assert planner.plan(SamplingParams(sigmas=(1.0, 0.5), guidance_scale=3.0)).passes == 2


def test_timesteps_are_planned_as_the_pipeline_rounds_them(tiny_hunyuan_video: Tiny) -> None:
    """diffusers' HunyuanVideo gives its transformer bfloat16 timesteps, but for the first."""
    model = tiny_hunyuan_video.model(dtype=torch.bfloat16)
    planner = RequestPlanner(model, tiny_hunyuan_video.checkpoint)
    planned = planner.plan(SamplingParams(num_inference_steps=9)).steps
    assert planned.routes is not None
    exact = torch.tensor(planned.timesteps)
    assert not torch.equal(exact.bfloat16().float(), exact)
    assert torch.equal(torch.tensor(planned.routes.timesteps[1:]), exact[1:].bfloat16().float())
    dropped_in = VortaTransformer.from_pretrained(model).plan(
        schedule_timesteps(tiny_hunyuan_video.checkpoint, 9).timesteps
    )
    assert dropped_in.routes is not None
    assert dropped_in.routes.timesteps == planned.routes.timesteps
    with_unipc = planner.plan(
        SamplingParams(num_inference_steps=9, scheduler="unipc")
    ).steps  # keeps latents in float32
    assert with_unipc.routes is not None
    assert with_unipc.routes.timesteps == with_unipc.timesteps


# -- calibrated routes -------------------------------------------------------------------------------------------------


def test_calibrated_routes(tiny_wan: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    geometry = RequestPlanner(tiny_wan.onnx).geometry
    file = tmp_path / "routes.json"
    save_calibration(file, geometry, (1000.0, 700.0), (699.0, 0.0))
    planner = RequestPlanner(tiny_wan.onnx, route_override=file)
    steps = planner.plan(SamplingParams(num_inference_steps=8, dense_first=1)).steps
    assert steps.routes is not None
    assert steps.routes.routes[0].eq(0).all()  # a guard is stronger
    for timestep, routes in zip(steps.timesteps[1:], steps.routes.routes[1:], strict=True):
        assert routes.eq(2 if timestep > 700 else 1).all()
    assert RequestPlanner(tiny_wan.onnx).calibration is None
    with pytest.raises(FileNotFoundError, match="absent.json"):
        RequestPlanner(tiny_wan.onnx, route_override=tmp_path / "absent.json")
    opened = Bundle.open(bundle, runtime=False)
    monkeypatch.setattr(Bundle, "route_override_path", file)
    assert RequestPlanner(opened).calibration is not None
    assert RequestPlanner(opened, route_override=None).calibration is None


def test_calibrated_routes_of_another_model_are_refused(
    tiny_wan: Tiny, tiny_hunyuan_video: Tiny, tmp_path: Path
) -> None:
    RouteCalibration(
        family="wan",
        geometry=RequestPlanner(tiny_wan.onnx).geometry,
        buckets=((1000.0, 0.0),),
        routes=torch.zeros(1, 2, 3, dtype=torch.int8),
        errors=torch.zeros(1, 2, 3, 3),
        budget=0.1,
    ).save(tmp_path / "routes.json")
    with pytest.raises(ValueError, match="are for family wan, the model has hunyuan_video"):
        RequestPlanner(tiny_hunyuan_video.onnx, route_override=tmp_path / "routes.json")


# -- settings that do not go together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "negative", "message"),
    [
        ({"guidance_scale": 1.0}, "ugly", "negative_prompt 'ugly': has no effect without guidance; give a guidance_sc"),
        ({"true_cfg_scale": 2.0}, None, "true_cfg_scale 2: is for models whose guidance_scale is an input"),
        ({"num_inference_steps": 0}, None, r"num_inference_steps\s+Input should be greater than or equal to 1"),
        ({"guidance_scale_2": 3.0}, None, "guidance_scale_2 3: is for models with two experts"),
        ({"sigmas": (0.5, 0.7)}, None, "sigmas 0.5, 0.7: must fall from at most 1 to above 0"),
        ({"sigmas": (1.5, 0.7)}, None, "must fall from at most 1"),
        ({"sigmas": ()}, None, "sigmas none: must fall"),
        ({"cache": StepBroadcast(), "dense_layers": (9,)}, None, "dense_layers 9: must be one of"),
    ],
)
def test_wan(tiny_wan: Tiny, settings: dict[str, Any], negative: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RequestPlanner(tiny_wan.onnx).plan(SamplingParams(**settings, negative_prompt=negative))


@pytest.mark.parametrize(
    ("settings", "negative", "message"),
    [
        ({}, "ugly", "negative_prompt 'ugly': has no effect without guidance; give a true_cfg_scale above 1"),
        ({"scheduler": "dpm++"}, None, "scheduler DPMSolver.*: the pipeline of HunyuanVideo chooses the sigmas"),
    ],
)
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_hunyuan_video(tiny_hunyuan_video: Tiny, settings: dict[str, Any], negative: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RequestPlanner(tiny_hunyuan_video.onnx).plan(SamplingParams(**settings, negative_prompt=negative))


def test_hunyuan_video_without_guidance_embedding(tiny_hunyuan_video: Tiny) -> None:
    planner = RequestPlanner(tiny_hunyuan_video.onnx)
    planner.config["guidance_embeds"] = False
    with pytest.raises(ValueError, match="guidance_scale 4: this model has no guidance embedding"):
        planner.plan(SamplingParams(guidance_scale=4.0))
    assert planner.plan(SamplingParams(true_cfg_scale=4.0, negative_prompt="ugly")).passes == 2


def test_sources_that_cannot_be_used(tiny_wan: Tiny, tmp_path: Path) -> None:
    model = onnx.load(tiny_wan.onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(VortaError, match="foreign.onnx: `vorta-trt export` did not write it"):
        RequestPlanner(tmp_path / "foreign.onnx")
    with pytest.raises(FileNotFoundError, match="no such bundle or ONNX file"):
        RequestPlanner(tmp_path / "absent.bundle")
    routed = tiny_wan.model()
    routed.geometry = None
    with pytest.raises(ValueError, match="geometry None: videos have the geometry's size"):
        RequestPlanner(routed)
