# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo 1.5, of text and of an image, in diffusers' pipelines, exported, built and generating; small models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vorta_trt.engines import Bundle
from vorta_trt.model import RoutedTransformer
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.frames import read_frames
from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
from vorta_trt.runtime.pipelines.transformer import VortaTransformer
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.verification.verify import verify

from ..kept import Kept
from ..tiny import FRAMES, HEIGHT, WIDTH, Tiny, make_tiny

FAMILY = "hunyuan_video_15"
STEPS = 2
PROMPT = 'a red wall that says "blue"'  # with glyphs


@pytest.fixture(scope="module")
def of_text(kept: Kept) -> Tiny:
    return make_tiny(kept, FAMILY)


@pytest.fixture(scope="module")
def of_image(kept: Kept) -> Tiny:
    """Step-distilled."""
    return make_tiny(kept, f"{FAMILY} i2v")


@pytest.fixture(params=["of_text", "of_image"])
def either(request: pytest.FixtureRequest) -> Tiny:
    tiny: Tiny = request.getfixturevalue(request.param)
    return tiny


def pipeline_of(tiny: Tiny, transformer: Any) -> Any:
    """diffusers' own; it reads these off the transformer that it is made with."""
    pipeline = tiny.pipeline(transformer)
    pipeline.target_size, pipeline.vision_states_dim = (
        transformer.config.target_size,
        transformer.config.image_embed_dim,
    )
    return pipeline


def sizes_of(tiny: Tiny) -> dict[str, Any]:
    """What says the size of a video: the size, or an image of that aspect."""
    return {"image": image()} if tiny.name.endswith("i2v") else {"height": HEIGHT, "width": WIDTH}


def image() -> Any:
    from PIL import Image

    return Image.fromarray(np.arange(100 * 150 * 3, dtype=np.uint32).reshape(100, 150, 3).astype(np.uint8))


def latents(tiny: Tiny, transformer: Any, **changes: Any) -> Tensor:
    arguments = {"prompt": PROMPT, "negative_prompt": "blue", "num_frames": FRAMES, **sizes_of(tiny), **changes}
    generator = torch.Generator().manual_seed(5)
    pipeline = pipeline_of(tiny, transformer)
    sampled: Tensor = pipeline(num_inference_steps=STEPS, generator=generator, output_type="latent", **arguments).frames
    return sampled


# -- in diffusers' pipelines -------------------------------------------------------------------------------------------


def test_dense_latents_are_the_stock_pipelines(either: Tiny) -> None:
    from diffusers import HunyuanVideo15Transformer3DModel

    stock = HunyuanVideo15Transformer3DModel.from_pretrained(either.checkpoint, subfolder="transformer").eval()
    expected = latents(either, stock)
    ours = latents(either, VortaTransformer.from_pretrained(RoutedTransformer.from_model(stock)))
    assert expected.shape == (1, 4, 3, 4, 6)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_guiders_two_calls_share_a_launch(of_text: Tiny) -> None:
    transformer = VortaTransformer.from_pretrained(of_text.model())
    expected = latents(of_text, transformer)
    scheduler = pipeline_of(of_text, transformer).scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, STEPS + 1)[:-1])
    with transformer.request(transformer.plan(scheduler.timesteps), guidance=GuidanceMode.BATCHED) as request:
        batched = latents(of_text, transformer)
    assert dict(request.launches) == {"cond": 1, "uncond": 1, "cond + uncond": STEPS - 1}
    torch.testing.assert_close(batched, expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_text_takes_no_image_and_one_of_images_needs_it(of_text: Tiny, of_image: Tiny) -> None:
    model = VortaTransformer.from_pretrained(of_text.model())
    inputs = {name: value for name, value in model.model.inputs().items() if name not in ("tau", "route_override")}
    with pytest.raises(
        VortaError, match="image_embeds: this model takes hidden_states, timestep, encoder_hidden_states"
    ):
        model(**inputs, image_embeds=torch.ones(1, 729, 8))
    zeros = model(**inputs, image_embeds=torch.zeros(1, 729, 8))
    assert torch.equal(zeros.sample, model(**inputs).sample)
    short = {"encoder_hidden_states_2": torch.ones(1, 3, 16), "encoder_attention_mask_2": torch.ones(1, 3)}
    with pytest.raises(ValueError, match=r"encoder_hidden_states_2 of shape \(1, 3, 16\): must be \(1, 256, 16\)"):
        model(**inputs | short)
    with pytest.raises(ValueError, match=r"encoder_attention_mask_2 of shape \(1, 3\): must be \(1, 256\), one entry"):
        model(**inputs | {"encoder_attention_mask_2": torch.ones(1, 3)})
    model = VortaTransformer.from_pretrained(of_image.model())
    inputs = {name: value for name, value in model.model.inputs().items() if name not in ("tau", "route_override")}
    with pytest.raises(ValueError, match="image_embeds None: the model needs it"):
        model(**inputs | {"image_embeds": torch.zeros(1, 729, 8)})
    with pytest.raises(ValueError, match="timestep_r None: the model needs it"):
        model(**{name: value for name, value in inputs.items() if name != "timestep_r"})


# -- exported, built, generating ---------------------------------------------------------------------------------------


def test_the_exported_file_gives_the_same(either: Tiny) -> None:
    report = verify(either.onnx, either.checkpoint, either.router, cases=["mixed override"], layers=True)
    assert report.passed, report
    assert report.layers is not None and report.layers.note == "no module departs"


def test_a_bundle(of_image: Tiny) -> None:
    """Of text to video the demo builds one."""
    manifest = Bundle.open(of_image.bundle).manifest
    assert (manifest.family, manifest.precision) == (FAMILY, "fp16")
    assert manifest.plugin is not None and manifest.plugin.layers == 2
    assert manifest.geometry is not None and manifest.geometry["text_tokens"] == 1985
    assert [list(spec.shape[1:]) for spec in manifest.inputs][2:8] == [
        [],
        [1000, 32],
        [1000],
        [256, 16],
        [256],
        [729, 8],
    ]


def test_generate_is_the_stock_pipeline_with_the_engine(either: Tiny, tmp_path: Path) -> None:
    """Guidance is that of the folder's guider, and of the request."""
    images = {"image": image()} if either.name.endswith("i2v") else {}
    with VortaPipeline.from_pretrained(either.onnx, either.checkpoint, strict=True) as pipe:
        result = pipe(PROMPT, negative_prompt="blue", num_inference_steps=STEPS, seed=5, **images)
        unguided = pipe(PROMPT, num_inference_steps=STEPS, seed=5, guidance_scale=1.0, **images)
    assert (result.launches, unguided.launches, result.frames_per_second) == (2 * STEPS, STEPS, 24)
    result.save(tmp_path / "video.mp4")
    assert np.stack(list(read_frames(tmp_path / "video.mp4"))).shape == (FRAMES, HEIGHT, WIDTH, 3)
    pipeline = pipeline_of(either, VortaTransformer.from_pretrained(either.onnx))
    frames = pipeline(
        prompt=PROMPT,
        negative_prompt="blue",
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
        **sizes_of(either),
    ).frames[0]  # [F, 3, H, W]
    assert np.array_equal(result.frames, (frames * 255).round().byte().permute(0, 2, 3, 1).numpy())
    assert not np.array_equal(result.frames, unguided.frames)


def test_plans_round_the_timesteps_as_the_pipeline_does(of_text: Tiny) -> None:
    """Its latents begin in the model's type, which every scheduler keeps: a strict request finds what it planned."""
    model = of_text.model(dtype=torch.bfloat16)
    with VortaPipeline.from_pretrained(model, of_text.checkpoint, strict=True) as pipe:
        result = pipe("a red wall", num_inference_steps=STEPS, scheduler="unipc", flow_shift=5.0, guidance_scale=1.0)
    assert result.launches == STEPS and result.fallbacks == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": 0.5}, "only a ClassifierFreeGuidance of every step is planned; give guidance_scale"),
        ({"_class_name": "AdaptiveProjectedGuidance"}, "AdaptiveProjectedGuidance with"),
        ({"guidance_scale": None}, "is no guider's config"),
    ],
)
def test_other_guiders_are_refused(of_text: Tiny, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    facts = get_family(FAMILY)
    options: dict[str, Any] = {"guidance_scale_2": None, "true_cfg_scale": 1.0, "negative_prompt": None}
    options |= {"distilled": False, "checkpoint": tmp_path}
    shutil.copytree(of_text.checkpoint / "guider", tmp_path / "guider")
    file = tmp_path / "guider" / "guider_config.json"
    content = json.loads(file.read_text())
    assert facts.guidance({}, guidance_scale=None, **options).passes == 2
    file.write_text(json.dumps(content | {"guidance_scale": 1.0}))  # of a model whose guidance is distilled
    assert facts.guidance({}, guidance_scale=None, **options).passes == 1
    file.write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=message):
        facts.guidance({}, guidance_scale=None, **options)
    assert facts.guidance({}, guidance_scale=4.0, **options).arguments["guidance_scale"] == 4.0
    with pytest.raises(ValueError, match="guidance_scale 0.5: must be at least 1"):
        facts.guidance({}, guidance_scale=0.5, **options)
