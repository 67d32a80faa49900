# SPDX-License-Identifier: Apache-2.0
"""Routed HunyuanVideo that begins with an image, both kinds, against diffusers' own model from the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vorta_trt.model import AttentionGeometry, RoutedTransformer, routed_attention_reference
from vorta_trt.model.calibration.calibrate import calibrate_routes
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.families.hunyuan_video.training import HunyuanVideoTraining
from vorta_trt.model.random_checkpoint import make_checkpoint, make_router
from vorta_trt.model.training.prepare import prepare_data
from vorta_trt.model.training.train import train_router
from vorta_trt.model.transformer_flops import other_flops

from ..conftest import Pipeline
from ..running import check_block_ops, override, run
from .test_hunyuan_video import (
    DTYPES,
    ROUTER_OFF,
    TEXT,
    diffusers_model,
    mask_of,
    mixed,
    operators,
    routed_model,
    run_diffusers,
)

KINDS = ("latent_concat", "token_replace")


@pytest.fixture(scope="module", params=KINDS)
def image_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    root = tmp_path_factory.mktemp(request.param)
    geometry = AttentionGeometry.for_video(9, 64, 96, "hunyuan_video", text_tokens=TEXT)  # grid (3, 4, 6)
    sizes = {"layers": 2, "single_layers": 1, "heads": 4, "head_dim": 16}
    others = {"text_dim": 32, "pooled_dim": 20, "channels": 4, "seed": 3, "image": request.param}
    make_checkpoint(root / "model", "hunyuan_video", **sizes, **others)
    make_router(root / "router", geometry, "hunyuan_video", seed=4, **sizes)
    return Pipeline(root / "model", root / "router", geometry)


def kind_of(routed: RoutedTransformer) -> str:
    return str(routed.config["image_condition_type"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_full_gives_diffusers_output(image_model: Any, dtype: torch.dtype, seed: int) -> None:
    routed = routed_model(image_model, dtype=dtype)
    inputs = routed.inputs(2, seed) | {"encoder_attention_mask": mask_of([5, TEXT])}
    model = diffusers_model(image_model, dtype)
    expected = run_diffusers(model, inputs)
    sample, routes = run(routed, inputs, tau=ROUTER_OFF)
    assert set(dict(routed.named_parameters())) >= set(dict(model.named_parameters()))
    assert inputs["hidden_states"].shape == (2, 9 if kind_of(routed) == "latent_concat" else 4, 3, 8, 12)
    assert sample.dtype == dtype and sample.shape == (2, 4, 3, 8, 12) and not routes.any()
    if dtype == torch.float32:
        print(f"relative error {float((sample - expected).abs().max() / expected.abs().max()):.1e}")
        assert (sample - expected).abs().max() <= 1e-6 * expected.abs().max()
    else:
        wide = {name: value.float() if value.dtype == dtype else value for name, value in inputs.items()}
        exact = run_diffusers(diffusers_model(image_model), wide)
        assert (sample.float() - exact).norm() <= 1.5 * (expected.float() - exact).norm()


def test_mixed_branches_equal_diffusers_with_the_reference_as_its_attention(
    image_model: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.transformers import transformer_hunyuan_video

    routed = routed_model(image_model)
    inputs = routed.inputs(2, seed) | {"encoder_attention_mask": mask_of([7, 2])}
    routes = mixed(routed, seed)
    rows = iter(routes)  # [N] of each block, in running order

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        assert routed.geometry is not None
        row = next(rows).expand(query.shape[0], -1)  # [B, N]
        return routed_attention_reference(query, key, value, row, routed.geometry, torch.tensor([7, 2]))

    monkeypatch.setattr(transformer_hunyuan_video, "dispatch_attention_fn", attend)
    expected = run_diffusers(diffusers_model(image_model), inputs)
    sample, taken = run(routed, inputs, route_override=routes)
    assert torch.equal(taken, routes[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(sample, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_only_the_first_frame_is_modulated_by_timestep_zero(image_model: Any, seed: int) -> None:
    """With no attention between the frames, the sample of a replaced first frame does not follow the timestep."""
    routed = routed_model(image_model)
    for block in routed.routed_blocks():  # what follows the attention stays, and so do the modulated feed forwards
        for weight in block.output_weights():
            weight.data.zero_()
        if hasattr(block.attn, "to_out") and block.attn.to_out is not None:
            block.attn.to_out[0].bias.data.zero_()
    routed.norm_out.linear.weight.data.zero_()  # the last norm's modulation follows the timestep in all frames
    inputs = routed.inputs(1, seed)
    early, late = (run(routed, inputs, timestep=torch.tensor([at]), tau=ROUTER_OFF)[0] for at in (20.0, 900.0))
    changed = (early - late).abs().amax(dim=(0, 1, 3, 4)) > 1e-4  # [F]
    assert changed.tolist() == [kind_of(routed) == "latent_concat", True, True]


def test_gradients_reach_the_modulation(image_model: Any, seed: int) -> None:
    routed = routed_model(image_model, tau=0.0)
    routed.gradient_checkpointing = True
    inputs = routed.inputs(1, seed)
    run_override = override(routed, 0)
    routed(**inputs | {"route_override": run_override})[0].square().mean().backward()
    for name in ("transformer_blocks.1.norm1.linear.weight", "single_transformer_blocks.0.norm.linear.weight"):
        grad = routed.get_parameter(name).grad
        assert grad is not None and grad.isfinite().all() and grad.any(), name


def test_flops_are_those_that_torch_counts(image_model: Any) -> None:
    """torch does not know the custom operator, so what it counts is everything but the routed attention."""
    routed = routed_model(image_model)
    assert routed.geometry is not None
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run(routed, routed.inputs(1, 0))
    assert sum(other_flops("hunyuan_video", routed.config, routed.geometry).values()) == counter.get_total_flops()


def test_a_family_that_does_not_say_what_its_samples_have_of_images(
    image_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that misses its image would be measured in vain."""
    monkeypatch.setattr(HunyuanVideoTraining, "image_names", ())
    output, checkpoint = tmp_path / "output", image_model.checkpoint
    for attempt in (
        lambda: calibrate_routes(
            checkpoint, output, lambda steps: None, prompts=["a red wall"], video_size=(9, 64, 96)
        ),
        lambda: prepare_data(checkpoint, tmp_path, output, (9, 64, 96)),
        lambda: train_router(checkpoint, tmp_path, output),
    ):
        with pytest.raises(CheckpointError, match="its model takes image beside the text, and routers are trained and"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_published_models() -> None:
    """540 rows of text: 252 of the prompt and every second of 576 image tokens."""
    facts = get_family("hunyuan_video")
    for kind, channels in (("latent_concat", 33), ("token_replace", 16), (None, 16)):
        sizes = {"in_channels": channels, "out_channels": 16, "patch_size": 2, "patch_size_t": 1}
        config = {"image_condition_type": kind, **sizes}
        geometry = AttentionGeometry.for_video(129, 720, 1280, "hunyuan_video", config=config)
        assert (geometry.grid, geometry.text_tokens) == ((33, 45, 80), 540 if kind else 256)
        facts.check_config(config, "published")
        assert facts.latent_channels(config) == 16


def test_block_operators(image_model: Any, seed: int) -> None:
    def load(dtype: torch.dtype) -> RoutedTransformer:
        return routed_model(image_model, dtype=dtype)

    inputs = load(torch.float32).inputs(2, seed) | {"encoder_attention_mask": mask_of([5, TEXT])}
    check_block_ops(load, inputs, operators(dual=2, single=1))
