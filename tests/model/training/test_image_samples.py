# SPDX-License-Identifier: Apache-2.0
"""Models whose videos begin with an image: samples are what diffusers' own pipeline gives its transformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vorta_trt.model import RoutedTransformer
from vorta_trt.model.calibration import CalibrationSettings, calibrate_routes, passes
from vorta_trt.model.families.training import TrainingFamily, training_family
from vorta_trt.model.geometry import Branch
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.training import DataError, LossWeights, TrainingSettings, prepare_data, train_router
from vorta_trt.model.training.clips import read_video
from vorta_trt.model.training.data import LatentDataset
from vorta_trt.model.training.objective import RouterObjective, attach_routers
from vorta_trt.model.training.prepare import _picture

from ...kept import Kept
from ...tiny import SIZE, Tiny, make_tiny
from ..calibration.schedulers import scheduler_of
from .videos import write_video

CAPTION = "a red wall"
NAMES = ("wan embedding", "hunyuan_video latent_concat", "hunyuan_video token_replace", "hunyuan_video_15 i2v")
SEEN = ("hidden_states", "image_embeds", "encoder_hidden_states_image", "encoder_hidden_states")


class Prepared:
    """Data of one video for a tiny model."""

    def __init__(self, tiny: Tiny, root: Path) -> None:
        self.tiny, self.data, self.videos = tiny, root / "data", root / "videos"
        self.videos.mkdir(parents=True)
        family = tiny_family(tiny)
        self.rate = int(family.facts.frame_rate(family.config))
        self.file = write_video(self.videos / "wall.mp4", [25 * frame for frame in range(SIZE[0])], rate=self.rate)
        (self.videos / "wall.txt").write_text(CAPTION)
        self.prepare()

    def prepare(self) -> Any:
        return prepare_data(self.tiny.checkpoint, self.videos, self.data, SIZE, precision="fp32", device="cpu")

    def dataset(self) -> LatentDataset:
        family = tiny_family(self.tiny)
        return LatentDataset(self.data, family, family.facts.sample_shape(family.config, self.tiny.geometry.grid))


def tiny_family(tiny: Tiny) -> TrainingFamily:
    return training_family(tiny.family, json.loads((tiny.checkpoint / "transformer/config.json").read_text()))


@pytest.fixture(scope="module", params=NAMES)
def prepared(request: pytest.FixtureRequest, kept: Kept, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(make_tiny(kept, request.param), tmp_path_factory.mktemp("images"))


def first_call(prepared: Prepared, noise: Tensor) -> tuple[dict[str, Any], Tensor]:
    """What diffusers' pipeline gives diffusers' transformer at the first step, and gets."""
    tiny = prepared.tiny
    model = tiny_family(tiny).facts.diffusers_transformer()
    pipeline = tiny.pipeline(model.from_pretrained(tiny.checkpoint, subfolder="transformer").eval())
    if tiny_family(tiny).facts.tiled_vae:
        pipeline.vae.enable_tiling()
    if hasattr(pipeline, "guider"):
        pipeline.guider.guidance_scale = 1.0
    calls: list[tuple[dict[str, Any], Tensor]] = []
    pipeline.transformer.register_forward_hook(
        lambda _, args, given, made: calls.append((given, made[0])), with_kwargs=True
    )
    frames, height, width = SIZE
    images = {"image": _picture(read_video(prepared.file, SIZE, prepared.rate)[:, 0])}
    size = {} if tiny.name == "hunyuan_video_15 i2v" else {"height": height, "width": width}
    if not size:
        pipeline.video_processor.calculate_default_height_width = lambda *_, **__: (height, width)
    scale = {} if hasattr(pipeline, "guider") else {"guidance_scale": 1.0}
    pipeline(
        prompt=CAPTION, num_frames=frames, num_inference_steps=1, latents=noise, output_type="latent", **images, **size,
        **scale,
    )  # fmt: skip
    return calls[0]


def test_a_sample_is_what_the_pipeline_gives_its_transformer(prepared: Prepared, seed: int, tmp_path: Path) -> None:
    """So diffusers' prediction is the routed model's with full heads, and the loss of such routers is that of none."""
    stored = load_file(prepared.data / "latents/wall.safetensors")
    assert set(stored) == {"latents", *prepared.dataset().family.image_names}
    assert prepared.prepare().kept_files == 2  # and nothing is made again

    dataset = prepared.dataset()
    family = dataset.family
    latents, conditions = dataset.batch([0])  # [1, C, F, H, W]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    given, expected = first_call(prepared, noise)
    timestep = given["timestep"].float()
    inputs = family.model_inputs(family.first_latents(noise, conditions), timestep, conditions, torch.float32)
    if "timestep_r" in inputs:
        inputs["timestep_r"] = given["timestep_r"]
    if "guidance" in inputs:
        inputs["guidance"] = given["guidance"]
    for name, tensor in family.facts.model_arguments(given).items():
        if name in inputs and name in SEEN:
            wanted = tensor.flatten(0, 1)[None] if name == "encoder_hidden_states_image" else tensor
            found = inputs[name][:, : wanted.shape[1]]  # a prompt is padded to as many rows as the model takes
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
            assert not inputs[name][:, wanted.shape[1] :].any()
    model = RoutedTransformer.from_pretrained(prepared.tiny.checkpoint, geometry=prepared.tiny.geometry)
    with torch.no_grad():
        sample, _ = model(**inputs)
    assert (sample - expected).abs().max() <= 1e-5 * expected.abs().max()

    attach_routers(model, seed)
    for name, parameter in model.named_parameters():
        if name.endswith(".router.linear.bias"):
            parameter.data.view(-1, 3)[:, int(Branch.FULL)] = 1e4
    losses = RouterObjective(model, family, LossWeights())(latents, noise, torch.tensor([700.0]), conditions)
    assert losses["distillation"] <= 1e-10 and losses["diffusion"] > 0
    losses["total"].backward()

    settings = TrainingSettings(steps=1, batch_size=1, precision="fp32")
    report = train_router(prepared.tiny.checkpoint, prepared.data, tmp_path / "run", settings, device="cpu")
    assert report is not None and report.step == 1


def test_routes_are_calibrated_on_it(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """With the image of the sample; a step goes to the next timestep of the schedule, the last one to 0."""
    seen: list[dict[str, Any]] = []
    measure = passes.measure_branches

    def note(model: RoutedTransformer, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        seen.append(inputs)
        return measure(model, inputs)

    monkeypatch.setattr(passes, "measure_branches", note)
    scheduler = scheduler_of(prepared.tiny.checkpoint)
    calibrate_routes(
        prepared.tiny.checkpoint,
        tmp_path / "routes.json",
        scheduler,
        CalibrationSettings(dtype="fp32", buckets=2, seed=seed),
        data=prepared.data,
        steps=2,
        device="cpu",
    )
    timesteps = [float(step) for step in scheduler(2).timesteps]
    dataset = prepared.dataset()
    _, conditions = dataset.batch([0])
    noise = torch.zeros(1, *dataset.shape or ())
    for inputs, timestep, following in zip(seen, timesteps, [timesteps[1], 0.0], strict=True):
        wanted = dataset.family.model_inputs(noise, torch.tensor([timestep]), conditions, torch.float32)
        of_image = wanted["hidden_states"] != 0  # the noise is 0
        assert torch.equal(inputs["hidden_states"][of_image], wanted["hidden_states"][of_image])
        assert float(inputs["timestep"]) == timestep and of_image.any()
        assert float(inputs.get("timestep_r", following)) == following
    RouteCalibration.load(tmp_path / "routes.json")


def test_an_image_condition_of_another_model(prepared: Prepared, tmp_path: Path) -> None:
    latents = prepared.data / "latents/wall.safetensors"
    before, stored = latents.read_bytes(), load_file(latents)
    name, damaged = "image_condition", {"latents": stored["latents"]}
    cases = [
        (damaged, rf"sample 'wall': .*wall.safetensors has no tensor '{name}'"),
        (stored | {name: stored[name][:-1].clone()}, rf"sample 'wall': {name} has shape .*, must have . channels"),
        (stored | {name: stored[name] / 0}, rf"sample 'wall': {name} has \d+ values that are NaN"),
    ]
    try:
        for tensors, message in cases:
            save_file(tensors, latents)
            with pytest.raises(DataError, match=message):
                train_router(prepared.tiny.checkpoint, prepared.data, tmp_path / "run", device="cpu")
    finally:
        latents.write_bytes(before)
    assert not (tmp_path / "run").exists()


def test_the_image_of_another_video_is_encoded_again(prepared: Prepared) -> None:
    """Where the text encoder sees it, so is the caption; it comes last, for the data are others then."""
    sees = prepared.dataset().family.text_sees_image
    write_video(prepared.file, [240] * (SIZE[0] + 1), rate=prepared.rate)
    assert prepared.prepare().kept_files == (0 if sees else 1)


def test_data_of_a_model_with_other_conditions_are_made_anew(kept: Kept, tmp_path: Path) -> None:
    """Both take the first frame; one of them CLIP's embeddings besides."""
    prepared = Prepared(make_tiny(kept, "wan channels"), tmp_path)
    prepared.tiny = make_tiny(kept, "wan embedding")
    assert prepared.prepare().kept_files == 1  # the caption
    assert not prepared.dataset().find_bad(lambda *_: None)
