# SPDX-License-Identifier: Apache-2.0
"""Routed Wan of videos that begin or end with an image, against diffusers' own model from the same files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, RoutedTransformer, routed_attention_reference
from vorta_trt.model.families import get_family
from vorta_trt.model.random_checkpoint import make_checkpoint, make_router

from ..conftest import Pipeline
from ..running import check_block_ops, override, run
from .test_wan import ROUTER_OFF, diffusers_model, operators

KINDS = ("channels", "embedding", "first and last")
SIZES = {"layers": 2, "heads": 3, "head_dim": 32}


@pytest.fixture(scope="module", params=KINDS)
def image_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    root = tmp_path_factory.mktemp("image")
    geometry = AttentionGeometry.for_video(9, 64, 96)  # grid (3, 4, 6)
    make_checkpoint(
        root / "model", **SIZES, ffn_dim=64, text_dim=32, channels=4, freq_dim=32, image=request.param, seed=1
    )
    make_router(root / "router", geometry, seed=2, **SIZES)
    return Pipeline(root / "model", root / "router", geometry)


def rows_of(routed: RoutedTransformer) -> int:
    return {"none": 0, "one": 257, "two": 514}[
        "none" if routed.config["image_dim"] is None else "one" if routed.config["pos_embed_seq_len"] is None else "two"
    ]


def run_diffusers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    given = {name: tensor for name, tensor in inputs.items() if name not in ("tau", "route_override")}
    if model.config.pos_embed_seq_len is not None:  # diffusers takes every image as a sample
        given["encoder_hidden_states_image"] = given["encoder_hidden_states_image"].unflatten(1, (2, -1)).flatten(0, 1)
    with torch.no_grad():
        sample: Tensor = model(**given, return_dict=False)[0]
    return sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_full_gives_diffusers_output(image_model: Any, dtype: torch.dtype, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(image_model.checkpoint, image_model.router, dtype=dtype)
    inputs = routed.inputs(2, seed)
    assert inputs["hidden_states"].shape == (2, 12, 3, 8, 12)  # 4 of latents, 4 of the mask, 4 of the image
    if rows := rows_of(routed):
        assert inputs["encoder_hidden_states_image"].shape == (2, rows, 32)
    model = diffusers_model(image_model, dtype)
    expected = run_diffusers(model, inputs)
    sample, routes = run(routed, inputs, tau=ROUTER_OFF)
    assert set(dict(routed.named_parameters())) >= set(dict(model.named_parameters()))
    assert sample.dtype == dtype and sample.shape == (2, 4, 3, 8, 12) and not routes.any()
    if dtype == torch.float32:
        print(f"relative error {float((sample - expected).abs().max() / expected.abs().max()):.1e}")
        assert (sample - expected).abs().max() <= 1e-6 * expected.abs().max()
    else:  # torch's own attention rounds the probabilities to this dtype, ours does not
        wide = {name: value.float() if value.dtype == dtype else value for name, value in inputs.items()}
        exact = run_diffusers(diffusers_model(image_model), wide)
        assert (sample.float() - exact).norm() <= 1.5 * (expected.float() - exact).norm()


def test_mixed_branches_equal_diffusers_with_the_reference_as_its_self_attention(
    image_model: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.transformers import transformer_wan

    routed = RoutedTransformer.from_pretrained(image_model.checkpoint, image_model.router)
    geometry = routed.geometry
    assert geometry is not None
    inputs = routed.inputs(2, seed)
    routes = override(routed, -1)
    generator = torch.Generator().manual_seed(seed)
    routes.copy_(torch.randint(0, 3, routes.shape, generator=generator))
    rows = iter(routes)  # [N] of each block, in running order
    dispatch = transformer_wan.dispatch_attention_fn

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if key.shape[1] != query.shape[1]:  # to text or image
            return dispatch(query, key, value, **options)
        return routed_attention_reference(query, key, value, next(rows).expand(query.shape[0], -1), geometry)

    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", attend)
    expected = run_diffusers(diffusers_model(image_model), inputs)
    sample, taken = run(routed, inputs, route_override=routes)
    assert torch.equal(taken, routes[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(sample, expected, rtol=1e-6, atol=2e-6 * float(expected.abs().max()))


def test_every_condition_is_seen(image_model: Any, seed: int) -> None:
    """The channels behind the latents and CLIP's embeddings change the sample."""
    routed = RoutedTransformer.from_pretrained(image_model.checkpoint, image_model.router)
    inputs = routed.inputs(1, seed)
    sample, _ = run(routed, inputs, tau=ROUTER_OFF)
    changed = inputs | {"hidden_states": inputs["hidden_states"].clone()}
    changed["hidden_states"][:, 4:] += 1
    others = [changed]
    if rows_of(routed):
        others.append(inputs | {"encoder_hidden_states_image": -inputs["encoder_hidden_states_image"]})
    for other in others:
        assert (run(routed, other, tau=ROUTER_OFF)[0] - sample).abs().max() > 1e-3 * sample.abs().max()


def test_embeddings_that_a_model_does_not_have_or_need(image_model: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(image_model.checkpoint, image_model.router)
    inputs = routed.inputs(1, seed)
    if rows_of(routed):
        missing = {name: value for name, value in inputs.items() if name != "encoder_hidden_states_image"}
        with pytest.raises(ValueError, match="encoder_hidden_states_image None: this model has image_dim 32; give the"):
            run(routed, missing)
        with pytest.raises(ValueError, match=r"encoder_hidden_states_image of dtype torch.float16.*\.to\(torch.float"):
            run(routed, inputs | {"encoder_hidden_states_image": inputs["encoder_hidden_states_image"].half()})
    else:
        with pytest.raises(ValueError, match=r"encoder_hidden_states_image \(1, 257, 32\): this model has .*leave it"):
            run(routed, inputs | {"encoder_hidden_states_image": torch.zeros(1, 257, 32)})


@pytest.mark.parametrize(
    ("changes", "pipeline", "components", "images", "optional"),
    [
        ({}, "WanPipeline", (), (), ()),
        ({"in_channels": 36}, "WanImageToVideoPipeline", (), ("image",), ("last_image",)),
        (
            {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
            "WanImageToVideoPipeline",
            ("image_encoder", "image_processor"),
            ("image",),
            (),
        ),
        (
            {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514},
            "WanImageToVideoPipeline",
            ("image_encoder", "image_processor"),
            ("image", "last_image"),
            (),
        ),
    ],
    ids=["2.1 T2V", "2.2 I2V A14B", "2.1 I2V", "2.1 FLF2V"],
)
def test_the_published_configs(
    changes: dict[str, Any], pipeline: str, components: tuple[str, ...], images: tuple[str, ...], optional: Any
) -> None:
    """Which pipeline runs them, with which components and images."""
    from pathlib import Path

    from vorta_trt.model.configs import typed_config

    family = get_family("wan")
    config = typed_config(family.diffusers_transformer(), changes, Path("config.json"))
    family.check_config(config, "x")
    (kind,) = family.pipeline_kinds(config)
    assert kind.pipeline == pipeline
    assert kind.components == ("text_encoder", "tokenizer", "vae", *components)
    assert (kind.images, kind.optional_images) == (images, optional)
    assert family.latent_channels(config) == 16
    inputs = {spec.name: spec.sizes for spec in family.inputs(config)}
    rows = config["pos_embed_seq_len"] or 257
    assert inputs.get("encoder_hidden_states_image") == ((rows, 1280) if components else None)
    attentions, what = family.dense_attentions(config)
    assert attentions == (80 if components else 40) and ("image" in what) == bool(components)
    flops = family.other_flops(config, 32760, 0)
    plain = family.other_flops(typed_config(family.diffusers_transformer(), {}, Path("config.json")), 32760, 0)
    more = {name for name in flops if flops[name] > plain[name]}
    assert more == ({"patches"} if images else set()) | ({"cross_attention", "conditioning"} if components else set())


def test_block_operators(image_model: Any, seed: int) -> None:
    def load(dtype: torch.dtype) -> RoutedTransformer:
        return RoutedTransformer.from_pretrained(image_model.checkpoint, image_model.router, dtype=dtype)

    routed = load(torch.float32)
    check_block_ops(load, routed.inputs(2, seed), operators(blocks=2, image=rows_of(routed) > 0))
