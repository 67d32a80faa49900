# SPDX-License-Identifier: Apache-2.0
"""Wan 2.2 TI2V in generation: timesteps by token become two, and an image's latent takes the place of frame 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor

from vorta_trt.engines import Bundle
from vorta_trt.model import RoutedTransformer
from vorta_trt.model.images import read_images
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.runtime import SamplingParams, VortaPipeline, VortaTransformer
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.frames import frame_rate, read_frames
from vorta_trt.runtime.pipelines.timesteps import Timesteps, of_schedule
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.schedules import schedule_timesteps
from vorta_trt.runtime.verification.verify import verify

from ...tiny import FRAMES, HEIGHT, WIDTH, Tiny, latents, save_calibration

KINDS = ("WanPipeline", "WanImageToVideoPipeline")
GRID = (3, 3, 5)
FEW = SamplingParams(num_inference_steps=2)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8))


def stock(tiny: Tiny, kind: str, transformer: Any) -> Any:
    pipeline = getattr(diffusers, kind).from_pretrained(tiny.checkpoint, transformer=None)
    pipeline.transformer = transformer
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampled(tiny: Tiny, kind: str, transformer: Any, image: Image.Image, seed: int, **options: Any) -> Tensor:
    """[1, C, F, H, W]"""
    frames, height, width = tiny.size
    options |= {"image": image} if kind == KINDS[1] else {}
    options |= {"num_frames": frames, "height": height, "width": width}
    return latents(stock(tiny, kind, transformer), 2, seed, **options)


# -- the drop-in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_router_the_latents_are_those_of_diffusers_own(
    tiny_ti2v: Tiny, kind: str, image: Image.Image, seed: int
) -> None:
    own = diffusers.WanTransformer3DModel.from_pretrained(tiny_ti2v.checkpoint / "transformer")
    expected = sampled(tiny_ti2v, kind, own, image, seed)
    routed = VortaTransformer.from_pretrained(RoutedTransformer.from_model(own))
    found = sampled(tiny_ti2v, kind, routed, image, seed)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_samples_what_the_routed_model_samples(
    tiny_ti2v: Tiny, kind: str, image: Image.Image, seed: int
) -> None:
    """With both samples of guidance in a launch, too: the pipeline gives both the same timesteps by token."""
    routed = VortaTransformer.from_pretrained(tiny_ti2v.model())
    expected = sampled(tiny_ti2v, kind, routed, image, seed)
    schedule = schedule_timesteps(tiny_ti2v.checkpoint, 2)
    fallbacks = Fallbacks(strict=True)
    with VortaTransformer.from_pretrained(tiny_ti2v.onnx) as transformer:
        plan = transformer.plan(schedule.timesteps)
        with transformer.request(plan, guidance=GuidanceMode.BATCHED, fallbacks=fallbacks) as request:
            found = sampled(tiny_ti2v, kind, transformer, image, seed)
    assert request.launches.total() == 3 and plan.routes is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    dense = sampled(tiny_ti2v, kind, VortaTransformer.from_pretrained(tiny_ti2v.model(tau=2)), image, seed)
    assert (dense - expected).abs().max() > 0.01 * expected.abs().max()


def test_a_model_of_one_timestep_in_a_pipeline_that_expands_it(tiny_wan: Tiny, seed: int) -> None:
    transformer = VortaTransformer.from_pretrained(tiny_wan.model())
    pipeline = tiny_wan.pipeline(transformer)
    expected = latents(pipeline, 2, seed)
    pipeline.register_to_config(expand_timesteps=True)
    assert torch.equal(latents(pipeline, 2, seed), expected)
    given = {name: tensor for name, tensor in tiny_wan.model().inputs(1, seed).items() if name in transformer._names}
    with pytest.raises(ValueError, match="this model has one timestep for all of them; give it as"):
        transformer(**{**given, "timestep": torch.arange(72.0)[None]})


def test_the_timestep_of_the_other_frames_chooses_calibrated_routes(
    tiny_ti2v: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an image the first token's is 0."""
    save_calibration(tmp_path / "routes.json", tiny_ti2v.geometry, (1000.0, 700.0), (700.0, 0.0))
    transformer = VortaTransformer.from_pretrained(tiny_ti2v.model())
    monkeypatch.setattr(transformer, "calibration", RouteCalibration.load(tmp_path / "routes.json"))
    taken: list[set[int]] = []
    run = transformer.denoiser.run

    def watched(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        sample, routes = run(*arguments, **options)
        taken.append(set(routes.flatten().tolist()))
        return sample, routes

    monkeypatch.setattr(transformer.denoiser, "run", watched)
    given = {name: tensor for name, tensor in tiny_ti2v.model().inputs().items() if name in transformer._names}
    for timestep in (900.0, 400.0):
        transformer(**{**given, "timestep": tokens(0.0, timestep)})
    assert taken == [{2}, {1}]


# -- timesteps ---------------------------------------------------------------------------------------------------------


def tokens(first: float, others: float) -> Tensor:
    """[1, S], as diffusers' pipelines make them."""
    return torch.tensor([first] * 15 + [others] * 30)[None]


def test_timesteps_of_every_shape() -> None:
    two, one = Timesteps(2), Timesteps(1)
    assert two(tokens(0, 700), 1, GRID).tolist() == [[0, 700]]
    assert two(torch.tensor(700), 2, GRID).tolist() == [[700, 700]] * 2
    assert two(torch.tensor([700.0, 3.0]), 2, GRID).tolist() == [[700, 700], [3, 3]]
    assert one(tokens(700, 700), 1, GRID).tolist() == [700]
    assert two(torch.full((1, 15), 5.0), 1, (1, 3, 5)).tolist() == [[5, 5]]  # a single frame
    assert of_schedule(tokens(0, 700)).tolist() == [700]
    assert of_schedule(torch.tensor([3.0])).tolist() == [3]


@pytest.mark.parametrize("place", [0, 7, 14, 15, 30, 44])
def test_a_token_with_a_timestep_of_its_own(place: int) -> None:
    uneven = tokens(0, 700)
    uneven[0, place] = 5
    with pytest.raises(ValueError, match="the first latent frame must have one timestep, and all others one"):
        Timesteps(2)(uneven, 1, GRID)
    with pytest.raises(ValueError, match="one timestep for all of them"):
        Timesteps(1)(uneven, 1, GRID)


@pytest.mark.gpu
def test_on_a_gpu_a_token_with_a_timestep_of_its_own_is_said_later() -> None:
    uneven, two = tokens(0, 700).cuda(), Timesteps(2)
    uneven[0, 30] = 5
    assert two(uneven, 1, GRID).tolist() == [[0, 700]]
    with pytest.raises(ValueError, match="the first latent frame must have one timestep, and all others one"):
        two.finish()


@pytest.mark.parametrize("shape", [(1, 44), (2, 45), (1, 2), (1, 45, 1), (3,)])
def test_timesteps_of_no_pipeline(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"timestep of shape .*: must be \[B"):
        Timesteps(2)(torch.ones(shape), 1, GRID)


# -- export, build, videos ---------------------------------------------------------------------------------------------


def test_an_fp32_file_passes_every_case(tiny_ti2v: Tiny) -> None:
    """ONNX Runtime against torch, mixed routes among them; and no tensor holds the modulation of every token."""
    report = verify(tiny_ti2v.onnx, tiny_ti2v.checkpoint, tiny_ti2v.router, batch=2)
    assert report.passed and len(report.cases) == 7, report
    inputs = {value.name: value for value in onnx.load(tiny_ti2v.onnx, load_external_data=False).graph.input}
    assert [dim.dim_value for dim in inputs["timestep"].type.tensor_type.shape.dim][1:] == [2]


def test_tensorrt_rtx_builds_it(tiny_ti2v: Tiny) -> None:
    shapes = {spec.name: spec.shape for spec in Bundle.open(tiny_ti2v.bundle, runtime=False).manifest.inputs}
    assert tuple(shapes["timestep"][1:]) == (2,) and tuple(shapes["hidden_states"][1:]) == (48, 3, 6, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_is_the_stock_pipelines_bit_for_bit(
    tiny_ti2v: Tiny, kind: str, image: Image.Image, tmp_path: Path
) -> None:
    frames, height, width = tiny_ti2v.size
    given: dict[str, Any] = {"image": image} if kind == KINDS[1] else {}
    model = tiny_ti2v.model()
    with VortaPipeline.from_pretrained(model, strict=True) as pipe:
        video = pipe("a red wall", seed=7, params=FEW, **given)
    (expected,) = stock(tiny_ti2v, kind, VortaTransformer.from_pretrained(model))(
        prompt="a red wall",
        **{"num_frames": frames, "height": height, "width": width, "num_inference_steps": 2, **given},
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).frames
    assert video.frames.shape == (frames, height, width, 3)
    assert np.array_equal(video.frames, (expected * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    file = video.save(tmp_path / "video.mp4")
    assert frame_rate(file) == 24 and len(list(read_frames(file))) == frames


def test_the_size_is_that_of_the_model_and_no_other(tiny_ti2v: Tiny) -> None:
    transformer = VortaTransformer.from_pretrained(tiny_ti2v.model())
    with pytest.raises(ValueError, match="of a video of 9x64x96, but this model was made for 9x96x160"):
        latents(stock(tiny_ti2v, KINDS[0], transformer), 1, num_frames=FRAMES, height=HEIGHT, width=WIDTH)


def test_a_video_has_more_frames_than_images(image: Image.Image) -> None:
    """The latent of a given image takes the place of the first frame's: one frame would be the image."""
    with pytest.raises(
        ValueError, match=r"image: the video has no more frames than images \(1\); make a model of more"
    ):
        read_images({"image": image}, (1, 96, 160), (1, 3, 5))
    assert read_images({"image": image}, (5, 96, 160), (2, 3, 5))["image"].size == (160, 96)
