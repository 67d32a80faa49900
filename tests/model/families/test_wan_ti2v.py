# SPDX-License-Identifier: Apache-2.0
"""Wan 2.2 TI2V, a model of two timesteps, against diffusers' own model, which takes the timestep of every token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vorta_trt.model import AttentionGeometry, RoutedTransformer, routed_attention_reference
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.families.training import training_family
from vorta_trt.model.random_checkpoint import make_checkpoint, make_router
from vorta_trt.model.transformer_flops import other_flops

from ..conftest import Pipeline
from ..running import check_block_ops, check_export_with_dynamic_batch, override, run
from .test_wan import DTYPES, ROUTER_OFF, diffusers_model, operators, run_diffusers

CHANNELS = 48
CONFIG: dict[str, Any] = {
    **{"in_channels": CHANNELS, "out_channels": CHANNELS, "patch_size": (1, 2, 2)},
    **dict.fromkeys(("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")),
}
VIDEO = 9, 96, 160  # token grid (3, 3, 5), which no tile divides
FIRST, OTHERS = 3 * 5, 2 * 3 * 5  # tokens of the first latent frame, and of the others


@pytest.fixture(scope="module")
def ti2v(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    root = tmp_path_factory.mktemp("ti2v")
    geometry = AttentionGeometry.for_video(*VIDEO, config=CONFIG)
    sizes = {"layers": 3, "heads": 4, "head_dim": 24}
    make_checkpoint(root / "model", ffn_dim=64, text_dim=32, channels=CHANNELS, freq_dim=32, seed=1, **sizes)
    make_router(root / "router", geometry, seed=2, **sizes)
    return Pipeline(root / "model", root / "router", geometry)


def by_token(timestep: Tensor) -> Tensor:
    """[B, 2] as diffusers' pipeline gives it, [B, S]."""
    first, others = timestep.split(1, dim=1)
    return torch.cat((first.expand(-1, FIRST), others.expand(-1, OTHERS)), dim=1)


def expected_of(pipeline: Any, inputs: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    return run_diffusers(diffusers_model(pipeline, dtype), {**inputs, "timestep": by_token(inputs["timestep"])})


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_full_gives_diffusers_output(ti2v: Any, dtype: torch.dtype, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router, dtype=dtype)
    inputs = routed.inputs(2, seed)
    assert inputs["timestep"].shape == (2, 2) and inputs["timestep"].dtype == torch.float32
    expected = expected_of(ti2v, inputs, dtype)
    sample, routes = run(routed, inputs, tau=ROUTER_OFF)
    assert sample.dtype == dtype and sample.shape == (2, CHANNELS, 3, 6, 10) and not routes.any()
    if dtype == torch.float32:
        print(f"relative error {float((sample - expected).abs().max() / expected.abs().max()):.1e}")
        assert (sample - expected).abs().max() <= 1e-6 * expected.abs().max()
    else:
        exact = expected_of(ti2v, {name: value.float() for name, value in inputs.items()})
        assert (sample.float() - exact).norm() <= 1.5 * (expected.float() - exact).norm()


def test_mixed_branches_equal_diffusers_with_the_reference_as_its_attention(
    ti2v: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.transformers import transformer_wan

    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router)
    inputs = routed.inputs(2, seed)
    inputs["timestep"][:, 0] = 0  # as with an image
    routes = torch.randint(0, 3, (3, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    rows, dense = iter(routes), transformer_wan.dispatch_attention_fn

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if key.shape[1] != FIRST + OTHERS:  # the text
            found: Tensor = dense(query, key, value, **options)
            return found
        assert routed.geometry is not None
        return routed_attention_reference(query, key, value, next(rows).expand(len(query), -1), routed.geometry)

    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", attend)
    expected = expected_of(ti2v, inputs)
    sample, taken = run(routed, inputs, route_override=routes)
    assert torch.equal(taken, routes[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(sample, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_the_router_sees_the_timestep_of_the_other_frames(ti2v: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router, tau=0.0)
    inputs = routed.inputs(3, seed)
    timestep = torch.tensor([1000.0, 500.0, 1.0])
    seen = []
    for first in (torch.zeros(3), timestep):
        inputs["timestep"] = torch.stack((first, timestep), dim=1)
        seen.append(run(routed, inputs))
        assert torch.equal(seen[-1][1].long(), routed.route_scores(timestep).argmax(-1))
    assert not torch.equal(seen[0][0], seen[1][0])


def test_equal_timesteps_are_one(ti2v: Any, seed: int) -> None:
    """Text to video: diffusers' model takes the same timestep for all tokens as [B], too."""
    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, geometry=ti2v.geometry)
    inputs = routed.inputs(2, seed)
    inputs["timestep"] = inputs["timestep"][:, :1].expand(-1, 2)
    expected = run_diffusers(diffusers_model(ti2v), {**inputs, "timestep": inputs["timestep"][:, 0]})
    sample, _ = run(routed, inputs)
    torch.testing.assert_close(sample, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        made = operation(*arguments, **(options or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_no_tensor_has_the_modulation_of_every_token(ti2v: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router)
    inputs = routed.inputs(1, seed)
    modulation = (FIRST + OTHERS) * 6 * 4 * 24  # [S, 6, E]
    model, given = diffusers_model(ti2v), {**inputs, "timestep": by_token(inputs["timestep"])}
    weights = max(parameter.numel() for parameter in model.parameters())
    with Largest() as theirs:
        run_diffusers(model, given)
    with Largest() as ours:
        run(routed, inputs)
    assert theirs.elements >= modulation
    assert ours.elements <= max(weights, 512 * 4 * 24)  # of the text, which is longer than this video


def test_torch_export_with_dynamic_batch(ti2v: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router, tau=0.0)
    check_export_with_dynamic_batch(routed, ("hidden_states", "timestep", "encoder_hidden_states"), seed)


def test_gradients_reach_the_modulation_of_both_timesteps(ti2v: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router, tau=0.0)
    routed.gradient_checkpointing = True
    inputs = routed.inputs(1, seed)
    inputs["timestep"].requires_grad_()
    routed(**inputs | {"route_override": override(routed, 0)})[0].square().mean().backward()
    assert inputs["timestep"].grad is not None and (inputs["timestep"].grad != 0).all()


def test_training_gives_both_frames_the_timestep_of_the_noise(ti2v: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router)
    inputs = routed.inputs(2, seed)
    family = training_family("wan", routed.config)
    conditions = {"prompt_embeds": inputs["encoder_hidden_states"]}
    made = family.model_inputs(inputs["hidden_states"], torch.tensor([900.0, 3.0]), conditions, torch.float32)
    assert made["timestep"].tolist() == [[900.0, 900.0], [3.0, 3.0]]
    assert run(routed, made)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 3), (1, FIRST + OTHERS), (1, 2, 1)])
def test_wrong_timesteps(ti2v: Any, shape: tuple[int, ...]) -> None:
    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router)
    with pytest.raises(ValueError, match=r"timestep of shape .*: must be \[B, 2\], of the first latent frame and of"):
        run(routed, routed.inputs(), timestep=torch.ones(shape))


# -- facts -------------------------------------------------------------------------------------------------------------


def test_published_model() -> None:
    facts = get_family("wan")
    facts.check_config(CONFIG, "published")
    geometry = AttentionGeometry.for_video(121, 704, 1280, config=CONFIG)
    assert geometry.grid == (31, 22, 40) and any(
        side % tile for side, tile in zip(geometry.grid, geometry.tile, strict=True)
    )
    assert facts.latent_shape(CONFIG, geometry.grid) == (CHANNELS, 31, 44, 80)
    assert facts.video_size(CONFIG, 31, 44, 80) == (121, 704, 1280)
    assert facts.frame_rate(CONFIG) == 24 and facts.latent_channels(CONFIG) == CHANNELS
    with pytest.raises(ValueError, match="height 720 of video 121x720x1280: must be a multiple of 32 pixels.*121x704"):
        AttentionGeometry.for_video(121, 720, 1280, config=CONFIG)
    other = {**CONFIG, "in_channels": 16, "out_channels": 16}  # sizes and rate belong to the model, not to the family
    assert AttentionGeometry.for_video(81, 720, 1280, config=other) == AttentionGeometry.for_video(81, 720, 1280)
    assert facts.frame_rate(other) == 16 and facts.compression(other) == facts.compression(None) == (4, 8)


def test_the_vae_must_have_its_factors() -> None:
    facts = get_family("wan")
    vae = {"scale_factor_temporal": 4, "scale_factor_spatial": 16, "z_dim": 1, "latents_mean": [0], "latents_std": [1]}
    facts.check_vae(vae, CONFIG, "vae")
    with pytest.raises(CheckpointError, match="4 frames and 8 pixels a side; this Wan transformer is of 4 and 16"):
        facts.check_vae({**vae, "scale_factor_spatial": 8}, CONFIG, "vae")
    # Its decoder's last blocks have 2 x 256 channels for every 2 x 2 pixels of four frames, in float32.
    vae = {"base_dim": 160, "decoder_base_dim": 256, "patch_size": 2}
    assert facts.decoding_bytes(vae, 121, 704 * 1280) == 2 * 256 * 4 * 352 * 640 * 4


def test_flops_equal_what_torch_counts(ti2v: Any) -> None:
    routed = RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router)
    inputs = routed.inputs(1, 0)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        routed(**inputs)
    assert routed.geometry is not None
    assert sum(other_flops("wan", routed.config, routed.geometry).values()) == counter.get_total_flops()


def test_the_folder_of_a_random_model_is_a_published_one(ti2v: Any) -> None:
    index = Path(ti2v.checkpoint, "model_index.json").read_text()
    assert '"expand_timesteps": true' in index and '"_class_name": "WanPipeline"' in index


def test_block_operators(ti2v: Any, seed: int) -> None:
    def load(dtype: torch.dtype) -> RoutedTransformer:
        return RoutedTransformer.from_pretrained(ti2v.checkpoint, ti2v.router, dtype=dtype)

    check_block_ops(load, load(torch.float32).inputs(2, seed), operators(blocks=3))
