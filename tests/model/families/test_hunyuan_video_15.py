# SPDX-License-Identifier: Apache-2.0
"""Routed HunyuanVideo 1.5, of text and of an image, against diffusers' own model from the same files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, CheckpointReader, RoutedTransformer, routed_attention_reference
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.families.hunyuan_video_15 import GLYPH_ROWS, IMAGE_ROWS, PROMPT_ROWS
from vorta_trt.model.families.hunyuan_video_15.random import HUNYUAN_VIDEO_15, make_checkpoint
from vorta_trt.model.random_checkpoint import make_router

from ..conftest import Pipeline
from ..running import check_block_ops, override, run
from .test_hunyuan_video import operators

FAMILY = "hunyuan_video_15"
SIZES = {"layers": 2, "heads": 2, "head_dim": 16}
WIDTHS = {"text_dim": 24, "glyph_dim": 16, "image_dim": 8, "channels": 4, "refiner_layers": 1}
PROMPTS, GLYPHS = [9, 40], [0, 5]  # valid rows of two samples
PUBLISHED = {
    "in_channels": 65, "out_channels": 32, "patch_size": 1, "patch_size_t": 1, "qk_norm": "rms_norm",
    "task_type": "t2v", "use_meanflow": False,
}  # fmt: skip


def made(root: Any, **options: Any) -> Pipeline:
    checkpoint = make_checkpoint(root / "model", **SIZES, **WIDTHS, seed=3, **options)
    with CheckpointReader(checkpoint) as reader:
        geometry = AttentionGeometry.for_video(9, 64, 96, FAMILY, config=reader.config)  # grid (3, 4, 6)
    return Pipeline(checkpoint, make_router(root / "router", geometry, FAMILY, seed=4, **SIZES), geometry)


@pytest.fixture(scope="module")
def of_text(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return made(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def of_image(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Step-distilled: it takes the timestep that a step goes to."""
    return made(tmp_path_factory.mktemp("image"), task="i2v", meanflow=True)


@pytest.fixture(params=["of_text", "of_image"])
def either(request: pytest.FixtureRequest) -> Pipeline:
    pipeline: Pipeline = request.getfixturevalue(request.param)
    return pipeline


def routed_model(pipeline: Pipeline, **options: Any) -> RoutedTransformer:
    options = {"router": pipeline.router, "geometry": pipeline.geometry, **options}
    return RoutedTransformer.from_pretrained(pipeline.checkpoint, **options)


def diffusers_model(pipeline: Pipeline, dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    options: dict[str, Any] = {"subfolder": "transformer", "torch_dtype": dtype}
    return HunyuanVideo15Transformer3DModel.from_pretrained(pipeline.checkpoint, **options).eval()


def run_diffusers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """As its pipelines call it: without an image it gets one of zeros, and timesteps have the latents' type."""
    given = {name: value for name, value in inputs.items() if name not in ("tau", "route_override")}
    latents = given["hidden_states"]
    given |= {name: value.to(latents.dtype) for name, value in given.items() if name.startswith("timestep")}
    given.setdefault("image_embeds", latents.new_zeros(len(latents), IMAGE_ROWS, WIDTHS["image_dim"]))
    with torch.no_grad():
        sample: Tensor = model(**given, return_dict=False)[0]
    return sample


def inputs_of(routed: RoutedTransformer, seed: int) -> dict[str, Tensor]:
    """Two samples, the first without glyphs; whole timesteps, which bf16 holds."""
    inputs = routed.inputs(2, seed)
    inputs |= {"encoder_attention_mask": mask_of(PROMPTS, PROMPT_ROWS)}
    inputs |= {"encoder_attention_mask_2": mask_of(GLYPHS, GLYPH_ROWS)}
    inputs |= {name: value.bfloat16().float() for name, value in inputs.items() if name.startswith("timestep")}
    return inputs


def mask_of(lengths: list[int], rows: int) -> Tensor:
    return (torch.arange(rows) < torch.tensor(lengths)[:, None]).to(torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_full_gives_diffusers_output(either: Pipeline, dtype: torch.dtype, seed: int) -> None:
    routed = routed_model(either, dtype=dtype)
    model = diffusers_model(either, dtype)
    theirs, ours = dict(model.named_parameters()), dict(routed.named_parameters())
    assert {name for name in ours if ".router." not in name} == set(theirs)
    assert all(ours[name].dtype == value.dtype and torch.equal(ours[name], value) for name, value in theirs.items())
    inputs = inputs_of(routed, seed)
    expected = run_diffusers(model, inputs)
    sample, routes = run(routed, inputs, tau=1.1)
    assert inputs["hidden_states"].shape == (2, 9, 3, 4, 6) and sample.shape == (2, 4, 3, 4, 6)
    assert sample.dtype == dtype and not routes.any()
    if dtype == torch.float32:
        print(f"relative error {float((sample - expected).abs().max() / expected.abs().max()):.1e}")
        assert (sample - expected).abs().max() <= 1e-6 * expected.abs().max()
    else:  # torch's own attention rounds the probabilities to this dtype, ours does not
        wide = {name: value.float() if value.dtype == dtype else value for name, value in inputs.items()}
        exact = run_diffusers(diffusers_model(either), wide)
        assert (sample.float() - exact).norm() <= 1.5 * (expected.float() - exact).norm()


def test_mixed_branches_equal_diffusers_with_the_reference_as_its_attention(
    either: Pipeline, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.transformers import transformer_hunyuan_video15

    routed = routed_model(either)
    inputs = inputs_of(routed, seed)
    image = IMAGE_ROWS if "image_embeds" in inputs else 0
    lengths = torch.tensor([image + sum(counts) for counts in zip(PROMPTS, GLYPHS, strict=True)])
    # diffusers has place for an image that is not there, behind what is valid.
    geometry = replace(either.geometry, text_tokens=PROMPT_ROWS + GLYPH_ROWS + IMAGE_ROWS)
    routes = torch.tensor([[0, 1], [2, 1]], dtype=torch.int32)  # [L, N]
    rows = iter(routes)

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        row = next(rows).expand(query.shape[0], -1)  # [B, N]
        return routed_attention_reference(query, key, value, row, geometry, lengths)

    monkeypatch.setattr(transformer_hunyuan_video15, "dispatch_attention_fn", attend)
    expected = run_diffusers(diffusers_model(either), inputs)
    sample, taken = run(routed, inputs, route_override=routes)
    assert torch.equal(taken, routes[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(sample, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_padding_of_either_text_reaches_nothing(of_text: Pipeline, poison: float, seed: int) -> None:
    routed = routed_model(of_text)
    inputs = inputs_of(routed, seed)
    expected, _ = run(routed, inputs, route_override=override(routed, 1))
    spoilt = {name: inputs[name].clone() for name in ("encoder_hidden_states", "encoder_hidden_states_2")}
    for sample, (prompt, glyphs) in enumerate(zip(PROMPTS, GLYPHS, strict=True)):
        spoilt["encoder_hidden_states"][sample, prompt:] = poison
        spoilt["encoder_hidden_states_2"][sample, glyphs:] = poison
    sample, _ = run(routed, inputs, route_override=override(routed, 1), **spoilt)
    assert sample.isfinite().all() and torch.equal(sample, expected)


def test_routers_see_the_bare_timestep(of_image: Pipeline, seed: int) -> None:
    """Neither the texts nor where the step goes to, which both change the sample."""
    routed = routed_model(of_image, tau=0.0)
    inputs, other = inputs_of(routed, seed), inputs_of(routed, seed + 1)
    sample, routes = run(routed, inputs)
    assert torch.equal(run(routed, other | {"timestep": inputs["timestep"]})[1], routes)
    elsewhere, same = run(routed, inputs, timestep_r=inputs["timestep_r"] / 2)
    assert torch.equal(same, routes) and not torch.allclose(elsewhere, sample, atol=1e-4)
    embedder = diffusers_model(of_image).time_embed
    bare = embedder.timestep_embedder(embedder.time_proj(inputs["timestep"]))
    torch.testing.assert_close(routed.timestep_embedding(inputs["timestep"]), bare)


def test_gradients_reach_the_texts_through_recomputed_blocks(of_text: Pipeline, seed: int) -> None:
    routed = routed_model(of_text, tau=0.0)
    routed.gradient_checkpointing = True
    routed(**inputs_of(routed, seed))[0].square().mean().backward()
    for name in ("context_embedder_2.linear_1.weight", "cond_type_embed.weight", "transformer_blocks.0.ff.net.2.bias"):
        grad = routed.get_parameter(name).grad
        assert grad is not None and grad.isfinite().all() and grad.any(), name


def test_wrong_inputs(of_text: Pipeline, of_image: Pipeline) -> None:
    routed = routed_model(of_text)
    inputs = routed.inputs()

    def attempt(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            run(routed, inputs, **changes)

    gap = mask_of([4], GLYPH_ROWS).flip(1)
    attempt("encoder_attention_mask_2 of sample 0: a valid token follows one that is not", encoder_attention_mask_2=gap)
    attempt(r"encoder_attention_mask_2 of shape \(1, 255\): must be \(1, 256\)", encoder_attention_mask_2=gap[:, 1:])
    attempt(r"encoder_hidden_states of shape \(1000, 24\): must be", encoder_hidden_states=torch.zeros(1000, 24))
    attempt("hidden_states of dtype torch.float16", hidden_states=inputs["hidden_states"].half())
    attempt(r"timestep of shape \(1, 2\): must be \[B\]", timestep=torch.ones(1, 2))
    image = torch.ones(1, IMAGE_ROWS, WIDTHS["image_dim"])
    attempt("image_embeds given: not of this model, whose config has task_type 't2v'", image_embeds=image)
    attempt("timestep_r given: not of this model", timestep_r=torch.ones(1))
    longer = {"encoder_hidden_states": torch.zeros(1, 1001, 24), "encoder_attention_mask": mask_of([3], 1001)}
    attempt("encoder_hidden_states with 1257 tokens: must be at most the geometry's 1256", **longer)
    routed, inputs = routed_model(of_image), routed_model(of_image).inputs()
    attempt("image_embeds None: required, whose config has task_type 'i2v', use_meanflow True", image_embeds=None)
    attempt("timestep_r None: required", timestep_r=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 98}, r"in_channels 98 and out_channels 32; must be .* 2 x out_channels \+ 1; others are of s"),
        ({"in_channels": 32}, "in_channels 32 and out_channels 32"),
        ({"task_type": "v2v"}, "task_type 'v2v'; must be 't2v' or 'i2v'"),
        ({"qk_norm": "layer_norm"}, "qk_norm 'layer_norm'; must be 'rms_norm'"),
    ],
)
def test_configs_that_are_not_routed(change: dict[str, Any], message: str) -> None:
    facts = get_family(FAMILY)
    facts.check_config(PUBLISHED, "checkpoint x")
    with pytest.raises(CheckpointError, match=message):
        facts.check_config({**PUBLISHED, **change}, "checkpoint x")


def test_published_models() -> None:
    facts = get_family(FAMILY)
    for task, text, pipeline in (
        ("t2v", 1256, "HunyuanVideo15Pipeline"),
        ("i2v", 1985, "HunyuanVideo15ImageToVideoPipeline"),
    ):
        widths = {"text_embed_dim": 3584, "text_embed_2_dim": 1472, "image_embed_dim": 1152}
        config = {**PUBLISHED, **widths, "task_type": task}
        geometry = AttentionGeometry.for_video(121, 720, 1280, FAMILY, config=config)
        assert (geometry.grid, geometry.video_tokens, geometry.text_tokens) == ((31, 45, 80), 111_600, text)
        assert AttentionGeometry.for_video(121, 480, 848, FAMILY, config=config).grid == (31, 30, 53)
        assert (facts.latent_channels(config), facts.pipeline_kinds(config)[0].pipeline) == (32, pipeline)
        steps = [spec.name for spec in facts.inputs({**config, "use_meanflow": True}) if spec.step]
        assert steps == ["hidden_states", "timestep", *(["timestep_r"] if task == "i2v" else [])]
    assert HUNYUAN_VIDEO_15["layers"] == 54 and HUNYUAN_VIDEO_15["heads"] * HUNYUAN_VIDEO_15["head_dim"] == 2048


def test_an_image_of_zeros_is_none() -> None:
    facts = get_family(FAMILY)
    image = torch.zeros(1, IMAGE_ROWS, 8)
    assert facts.model_arguments({"image_embeds": image, "timestep": 1}) == {"timestep": 1}
    image[0, 3, 1] = 1e-3
    assert facts.model_arguments({"image_embeds": image}) == {"image_embeds": image}


def test_block_operators(either: Any, seed: int) -> None:
    def load(dtype: torch.dtype) -> RoutedTransformer:
        return routed_model(either, dtype=dtype)

    check_block_ops(load, load(torch.float32).inputs(2, seed), operators(dual=SIZES["layers"], single=0))
