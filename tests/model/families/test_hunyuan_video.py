# SPDX-License-Identifier: Apache-2.0
"""Routed HunyuanVideo against diffusers' own model, from the same files."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vorta_trt.model import AttentionGeometry, RoutedTransformer, RouteTable, load_router, routed_attention_reference
from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.families.hunyuan_video.random import make_checkpoint as make_hunyuan_video_checkpoint
from vorta_trt.model.families.hunyuan_video.transformer import RoutedHunyuanVideoTransformer
from vorta_trt.model.random_checkpoint import make_router

from ..running import CountedOperators, check_block_ops, check_export_with_dynamic_batch, override, run

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUTER_OFF = 1.1  # a threshold that no score reaches
TEXT = 13  # padded text tokens of the fixture
OWN = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections", "guidance")


def diffusers_model(pipeline: Any, dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    options = {"subfolder": "transformer", "torch_dtype": dtype}
    return HunyuanVideoTransformer3DModel.from_pretrained(pipeline.checkpoint, **options).eval()


def run_diffusers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        sample: Tensor = model(**{name: inputs.get(name) for name in OWN}, return_dict=False)[0]
    return sample


def routed_model(pipeline: Any, **options: Any) -> RoutedTransformer:
    options = {"router": pipeline.router, "geometry": pipeline.geometry, **options}
    return RoutedTransformer.from_pretrained(pipeline.checkpoint, **options)


def mixed(routed: RoutedTransformer, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (routed.num_layers, routed.num_heads), generator=generator, dtype=torch.int32)


def mask_of(lengths: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    return (torch.arange(TEXT) < torch.tensor(lengths)[:, None]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_are_diffusers_own_in_names_values_and_dtypes(hunyuan_video: Any, dtype: torch.dtype) -> None:
    expected = dict(diffusers_model(hunyuan_video, dtype).named_parameters())
    found = dict(RoutedTransformer.from_pretrained(hunyuan_video.checkpoint, dtype=dtype).named_parameters())
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[TEXT], [1], [5, TEXT, 1]])
def test_all_full_gives_diffusers_output(hunyuan_video: Any, dtype: torch.dtype, lengths: list[int], seed: int) -> None:
    routed = routed_model(hunyuan_video, dtype=dtype)
    inputs = routed.inputs(len(lengths), seed) | {"encoder_attention_mask": mask_of(lengths)}
    expected = run_diffusers(diffusers_model(hunyuan_video, dtype), inputs)
    sample, routes = run(routed, inputs, tau=ROUTER_OFF)
    assert sample.dtype == dtype and sample.shape == inputs["hidden_states"].shape
    assert not routes.any()
    if dtype == torch.float32:
        print(f"relative error {float((sample - expected).abs().max() / expected.abs().max()):.1e}")
        assert (sample - expected).abs().max() <= 1e-6 * expected.abs().max()
    else:  # torch's own attention rounds the probabilities to this dtype, ours does not
        wide = {name: value.float() if value.dtype == dtype else value for name, value in inputs.items()}
        exact = run_diffusers(diffusers_model(hunyuan_video), wide)
        theirs = (expected.float() - exact).norm()  # not the largest, which is a matter of luck
        assert (sample.float() - exact).norm() <= 1.5 * theirs


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_each_branch_equals_diffusers_with_the_reference_as_its_attention(
    hunyuan_video: Any, branch: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.transformers import transformer_hunyuan_video

    routed = routed_model(hunyuan_video)
    lengths = [7, 2]
    inputs = routed.inputs(2, seed) | {"encoder_attention_mask": mask_of(lengths)}

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        routes = torch.full((query.shape[0], query.shape[2]), branch)
        assert routed.geometry is not None
        return routed_attention_reference(query, key, value, routes, routed.geometry, torch.tensor(lengths))

    monkeypatch.setattr(transformer_hunyuan_video, "dispatch_attention_fn", attend)
    expected = run_diffusers(diffusers_model(hunyuan_video), inputs)
    sample, routes = run(routed, inputs, route_override=override(routed, branch))
    assert (routes == branch).all() and routes.dtype == torch.int32 and routes.shape == (3, 2, 4)
    torch.testing.assert_close(sample, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_the_branches_differ(hunyuan_video: Any, seed: int) -> None:
    routed = routed_model(hunyuan_video)
    assert routed.geometry is not None and routed.geometry.coreset_keys == "key"
    inputs = routed.inputs(1, seed)
    full, coreset, sliding = (run(routed, inputs, route_override=override(routed, branch))[0] for branch in (0, 1, 2))
    scale = full.abs().max()
    for one, other in ((full, coreset), (full, sliding), (coreset, sliding)):
        assert (one - other).abs().max() > 1e-4 * scale


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_padded_text_reaches_nothing(hunyuan_video: Any, poison: float, seed: int) -> None:
    routed = routed_model(hunyuan_video)
    inputs = routed.inputs(2, seed) | {"encoder_attention_mask": mask_of([4, 9])}
    routes = mixed(routed, seed)
    expected, _ = run(routed, inputs, route_override=routes)
    text = inputs["encoder_hidden_states"].clone()
    text[0, 4:] = poison
    text[1, 9:] = poison
    sample, _ = run(routed, inputs, route_override=routes, encoder_hidden_states=text)
    assert sample.isfinite().all() and torch.equal(sample, expected)


def test_padded_rows_come_out_of_the_attention_as_zeros(
    hunyuan_video: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vorta_trt.model import transformer as module

    outputs: list[Tensor] = []
    attend = module.routed_attention

    def record(*arguments: Any, **options: Any) -> Tensor:
        outputs.append(attend(*arguments, **options))
        return outputs[-1]

    monkeypatch.setattr(module, "routed_attention", record)
    routed = routed_model(hunyuan_video)
    inputs = routed.inputs(2, seed) | {"encoder_attention_mask": mask_of([4, TEXT])}
    run(routed, inputs, route_override=mixed(routed, seed))
    video = hunyuan_video.geometry.video_tokens
    assert len(outputs) == 3
    for output in outputs:
        assert not output[0, video + 4 :].any() and output[0, : video + 4].any(dim=-1).all()
        assert output[1].any(dim=-1).all()


def test_padding_may_be_longer(hunyuan_video: Any, seed: int) -> None:
    short = routed_model(hunyuan_video)
    geometry = AttentionGeometry.for_video(9, 64, 96, "hunyuan_video", text_tokens=TEXT + 6)
    long = routed_model(hunyuan_video, geometry=geometry)
    inputs = short.inputs(2, seed)
    routes = mixed(short, seed)
    expected, _ = run(short, inputs, route_override=routes)
    padded = dict(inputs)
    padded["encoder_hidden_states"] = nn.functional.pad(inputs["encoder_hidden_states"], (0, 0, 0, 6), value=3.0)
    padded["encoder_attention_mask"] = nn.functional.pad(inputs["encoder_attention_mask"], (0, 6))
    sample, _ = run(long, padded, route_override=routes)
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)
    unpadded, _ = run(long, inputs, route_override=routes)  # the model pads
    assert torch.equal(unpadded, sample)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_masks_of_any_type(hunyuan_video: Any, dtype: torch.dtype, seed: int) -> None:
    routed = routed_model(hunyuan_video)
    inputs = routed.inputs(2, seed)
    expected, _ = run(routed, inputs)
    sample, _ = run(routed, inputs, encoder_attention_mask=inputs["encoder_attention_mask"].to(dtype))
    assert torch.equal(sample, expected)


def test_text_length_changes_the_sample_and_may_be_zero(hunyuan_video: Any, seed: int) -> None:
    routed = routed_model(hunyuan_video)
    inputs = routed.inputs(1, seed)
    routes = mixed(routed, seed)
    samples = [
        run(routed, inputs, encoder_attention_mask=mask_of([length]), route_override=routes)[0]
        for length in (0, 1, 8, TEXT)
    ]
    assert all(sample.isfinite().all() for sample in samples)
    for one, other in zip(samples, samples[1:], strict=False):
        assert not torch.allclose(one, other, atol=1e-4)


# -- router ------------------------------------------------------------------------------------------------------------


def test_router_decides_per_sample_and_override_replaces_it(hunyuan_video: Any, seed: int) -> None:
    routed = routed_model(hunyuan_video, tau=0.0)
    inputs = routed.inputs(3, seed)
    inputs["timestep"] = torch.tensor([1000.0, 500.0, 1.0])
    sample, routes = run(routed, inputs)
    assert set(routes.unique().tolist()) == {0, 1, 2}
    assert not torch.equal(routes[:, 0], routes[:, 2])
    assert torch.equal(routes.long(), routed.route_scores(inputs["timestep"]).argmax(-1))
    for index in range(3):  # each sample as if it were alone
        alone, _ = run(routed, {name: value[index : index + 1] if name in OWN else value
                                for name, value in inputs.items()})  # fmt: skip
        torch.testing.assert_close(sample[index : index + 1], alone, rtol=1e-5, atol=1e-5)
    partial = override(routed, -1)
    partial[1] = 2
    _, overridden = run(routed, inputs, route_override=partial)
    assert (overridden[1] == 2).all()
    assert torch.equal(overridden[0], routes[0]) and torch.equal(overridden[2], routes[2])


def test_router_sees_neither_text_nor_guidance(hunyuan_video: Any, seed: int) -> None:
    routed = routed_model(hunyuan_video, tau=0.0)
    inputs, other = routed.inputs(2, seed), routed.inputs(2, seed + 1)
    other["timestep"] = inputs["timestep"]
    assert torch.equal(run(routed, inputs)[1], run(routed, other)[1])


def test_router_scores_are_those_of_the_bare_timestep_embedding(hunyuan_video: Any, seed: int) -> None:
    model = diffusers_model(hunyuan_video)
    state = load_router(hunyuan_video.router).state_dict
    routed = routed_model(hunyuan_video)
    timestep = torch.rand(4, generator=torch.Generator().manual_seed(seed)) * 1000
    embedder = model.time_text_embed
    bare = embedder.timestep_embedder(embedder.time_proj(timestep))
    names = ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0"]
    for scores, name in zip(routed.route_scores(timestep), names, strict=True):
        weight, bias = (state[f"{name}.router.linear.{part}"].float() for part in ("weight", "bias"))
        logits = nn.functional.silu(bare) @ weight.T + bias
        torch.testing.assert_close(scores, logits.unflatten(1, (4, 3)).softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_router_path_is_float32(hunyuan_video: Any, dtype: torch.dtype, seed: int) -> None:
    """From the rounded weights, but without another rounding, which no two runtimes do alike."""
    half = routed_model(hunyuan_video, dtype=dtype)
    exact = copy.deepcopy(half).double()
    timestep = torch.rand(4, generator=torch.Generator().manual_seed(seed)) * 1000
    embedding = half.timestep_embedding(timestep)
    embedder = exact.time_text_embed
    expected = embedder.timestep_embedder(embedder.time_proj(timestep).double())
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.double(), expected, rtol=1e-5, atol=1e-5)


def test_tau(hunyuan_video: Any, seed: int) -> None:
    routed = routed_model(hunyuan_video, tau=0.0)
    inputs = routed.inputs(1, seed)
    best, choice = routed.route_scores(inputs["timestep"]).max(-1)
    for tau in (0.0, 0.3, 0.6, ROUTER_OFF):
        expected = torch.where(best < tau, 0, choice)
        assert torch.equal(run(routed, inputs, tau=tau)[1].long(), expected)
        assert torch.equal(run(routed, inputs, tau=torch.tensor([tau]))[1].long(), expected)
    assert torch.equal(run(routed, inputs, tau=None)[1].long(), choice)


def test_route_table(hunyuan_video: Any, seed: int) -> None:
    routed = routed_model(hunyuan_video, tau=0.4)
    timesteps = [1000.0, 600.0, 20.0]
    table = RouteTable.from_model(routed, timesteps)
    assert table.routes.shape == (3, 3, 4)
    inputs = routed.inputs(3, seed)
    inputs["timestep"] = torch.tensor(timesteps)
    assert torch.equal(table.routes.int(), run(routed, inputs, tau=0.4)[1].transpose(0, 1))


def test_a_router_on_disk(hunyuan_video: Any, tmp_path: Path) -> None:
    loaded = load_router(hunyuan_video.router)
    assert loaded.family == "hunyuan_video" and loaded.layers == 3
    geometry = loaded.geometry()
    assert geometry is not None and geometry.coreset_keys == "key" and geometry.text_tokens == 256
    assert RoutedTransformer.from_pretrained(hunyuan_video.checkpoint, hunyuan_video.router).geometry == geometry

    def attempt(message: str, family: str = "hunyuan_video", **sizes: Any) -> None:
        shutil.rmtree(tmp_path / "router", ignore_errors=True)
        sizes = {"layers": 2, "single_layers": 1, "heads": 4, "head_dim": 16, **sizes}
        router = make_router(tmp_path / "router", hunyuan_video.geometry, family, **sizes)
        with pytest.raises(CheckpointError, match=message):
            routed_model(hunyuan_video, router=router)

    model = r"a hunyuan_video model with 2 \+ 1 layers, 4 heads"
    attempt(f"routes 4 layers of single_transformer_blocks, but belongs to {model}", single_layers=4)
    attempt(f"routes 3 layers of transformer_blocks, but belongs to {model}", layers=3)
    attempt("lacks 2 of 6 tensors, first 'transformer_blocks.1.router.linear.weight'", layers=1)
    attempt(r"has shape \(15, 80\), must be \(12, 64\)", heads=5)
    attempt("key 'blocks.0.router.linear.bias' belongs to another model family", family="wan")


# -- composition -------------------------------------------------------------------------------------------------------


def test_composition_shares_weights_and_patches_nothing(hunyuan_video: Any, seed: int) -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    forward = HunyuanVideoTransformer3DModel.forward
    model = diffusers_model(hunyuan_video)
    before = set(model.state_dict())
    state = load_router(hunyuan_video.router).state_dict
    plain = RoutedTransformer.from_model(model, geometry=hunyuan_video.geometry)
    inputs = plain.inputs(1, seed)
    expected = run_diffusers(model, inputs)
    routed = RoutedTransformer.from_model(model, state, hunyuan_video.geometry, tau=0.0)
    assert isinstance(routed, RoutedHunyuanVideoTransformer) and run(routed, inputs)[1].any()
    for name, parameter in model.named_parameters():
        assert routed.get_parameter(name) is parameter
    assert HunyuanVideoTransformer3DModel.forward is forward
    assert set(model.state_dict()) == before and not model.training
    assert torch.equal(run_diffusers(model, inputs), expected)


def test_without_a_router_all_heads_are_full_and_geometry_follows_latents_and_text(
    hunyuan_video: Any, seed: int
) -> None:
    routed = RoutedTransformer.from_pretrained(hunyuan_video.checkpoint)
    assert routed.geometry is None and not routed.has_router
    model = diffusers_model(hunyuan_video)
    for latent, text in (((3, 8, 12), 5), ((2, 4, 6), 5), ((2, 4, 6), 9)):
        generator = torch.Generator().manual_seed(seed)
        inputs = {
            "hidden_states": torch.randn(1, 4, *latent, generator=generator),
            "timestep": torch.tensor([500]),  # an integer, as some schedulers give it
            "encoder_hidden_states": torch.randn(1, text, 32, generator=generator),
            "encoder_attention_mask": torch.ones(1, text, dtype=torch.int64),
            "pooled_projections": torch.randn(1, 20, generator=generator),
            "guidance": torch.tensor([6000.0]),
        }
        sample, routes = run(routed, inputs)
        assert not routes.any() and routed.geometry is not None
        assert (routed.geometry.grid, routed.geometry.text_tokens) == (
            (latent[0], latent[1] // 2, latent[2] // 2),
            text,
        )
        torch.testing.assert_close(sample, run_diffusers(model, inputs), rtol=0, atol=5e-6)
        assert (run(routed, inputs, route_override=override(routed, 2))[1] == 2).all()


def test_gradients_reach_weights_and_latents(hunyuan_video: Any, seed: int) -> None:
    routed = routed_model(hunyuan_video, tau=0.0)
    inputs = routed.inputs(1, seed)
    inputs["hidden_states"].requires_grad_()
    routed(**inputs)[0].square().mean().backward()
    assert inputs["hidden_states"].grad is not None and inputs["hidden_states"].grad.isfinite().all()
    for name in ("transformer_blocks.0.attn.add_q_proj.weight", "single_transformer_blocks.0.attn.to_q.weight"):
        grad = routed.get_parameter(name).grad
        assert grad is not None and grad.isfinite().all() and grad.any(), name


def test_without_guidance_and_other_widths(tmp_path: Path, seed: int) -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    sizes = {"num_attention_heads": 1, "attention_head_dim": 18, "num_layers": 1, "num_single_layers": 2}
    sizes.update(num_refiner_layers=1, text_embed_dim=6, pooled_projection_dim=5, in_channels=3, out_channels=7)
    model = HunyuanVideoTransformer3DModel(**sizes, rope_axes_dim=(2, 6, 10), guidance_embeds=False, patch_size_t=2)
    geometry = AttentionGeometry.for_grid((2, 3, 5), "hunyuan_video", text_tokens=1)
    # Past `check_config`, which refuses other channels out than in: the blocks do not mind.
    routed = RoutedHunyuanVideoTransformer(model.eval(), geometry=geometry).eval()
    inputs = routed.inputs(1, seed)
    assert "guidance" not in inputs and inputs["hidden_states"].shape == (1, 3, 4, 6, 10)
    sample, _ = run(routed, inputs)
    assert sample.shape == (1, 7, 4, 6, 10)
    torch.testing.assert_close(sample, run_diffusers(model, inputs), rtol=0, atol=5e-6)
    assert torch.equal(run(routed, inputs, guidance=torch.ones(1))[0], sample)  # as diffusers: not used


# -- wrong inputs and models -------------------------------------------------------------------------------------------


def test_wrong_inputs(hunyuan_video: Any) -> None:
    routed = routed_model(hunyuan_video)
    inputs = routed.inputs()
    text, latents = inputs["encoder_hidden_states"], inputs["hidden_states"]

    def attempt(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            run(routed, inputs, **changes)

    attempt(
        "encoder_hidden_states with 15 tokens: must be at most the geometry's 13; shorten it",
        encoder_hidden_states=torch.cat((text, text[:, :2]), dim=1),
        encoder_attention_mask=torch.ones(1, 15),
    )
    attempt(r"of shape \(13, 32\): must be \[B, T, text_embed_dim\]", encoder_hidden_states=text[0])
    attempt(r"encoder_attention_mask of shape \(1, 12\): must be \(1, 13\)", encoder_attention_mask=mask_of([3])[:, 1:])
    left_padded = mask_of([4]).flip(1)
    attempt("sample 0: a valid token follows one that is not.*pad on the right", encoder_attention_mask=left_padded)
    attempt("pooled_projections of dtype torch.float16", pooled_projections=inputs["pooled_projections"].half())
    attempt("guidance None: required, the config has guidance_embeds", guidance=None)
    attempt(r"guidance of shape \(\): must be \[B\]", guidance=torch.tensor(6.0))
    attempt(r"timestep of shape \(1, 2\): must be \[B\]", timestep=torch.ones(1, 2))
    attempt(r"token grid \(2, 4, 6\): must match the model's geometry", hidden_states=latents[:, :, 1:])
    attempt(r"must be multiples of the patch \(1, 2, 2\)", hidden_states=latents[..., 1:, :])
    attempt(r"route_override of shape \(4, 3\).*must be int32 \(3, 4\)", route_override=inputs["route_override"].T)


def test_wrong_models(hunyuan_video: Any, pipeline: Any) -> None:
    from diffusers import WanTransformer3DModel

    model = diffusers_model(hunyuan_video)
    with pytest.raises(
        ValueError, match="geometry with 0 text tokens: must have some, its self-attention is over video and text"
    ):
        RoutedTransformer.from_model(model, geometry=AttentionGeometry.for_grid((3, 4, 6)))
    state = load_router(hunyuan_video.router).state_dict
    with pytest.raises(ValueError, match="geometry None: required with a router"):
        RoutedTransformer.from_model(model, state)
    wan = WanTransformer3DModel.from_pretrained(pipeline.checkpoint, subfolder="transformer")
    with pytest.raises(TypeError, match="model WanTransformer3DModel: must be a HunyuanVideoTransformer3DModel"):
        RoutedHunyuanVideoTransformer.from_model(wan)
    with pytest.raises(CheckpointError, match="key .*transformer_blocks.0.* belongs to another model family"):
        RoutedTransformer.from_model(wan, state, pipeline.geometry)
    for block in model.transformer_blocks:
        block.attn.fuse_projections()
    with pytest.raises(ValueError, match="fused projections are not routed"):
        RoutedTransformer.from_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_condition_type": "latent_concat"},
            "in_channels 4 and out_channels 4; with image_condition_type 'latent_concat' the input is latents, image "
            "and a mask, 9 channels",
        ),
        (
            {"in_channels": 9},
            "in_channels 9 and out_channels 4; with image_condition_type None the input is latents al",
        ),
        ({"image_condition_type": "crossfade"}, "image_condition_type 'crossfade'; must be null, 'latent_concat' or"),
        ({"qk_norm": "layer_norm"}, "qk_norm 'layer_norm'; must be 'rms_norm'"),
    ],
)
def test_configs_that_are_not_routed(hunyuan_video: Any, change: dict[str, Any], message: str) -> None:
    model = diffusers_model(hunyuan_video)
    with pytest.raises(CheckpointError, match=message):
        get_family("hunyuan_video").check_config({**model.config, **change}, "checkpoint x")


def test_head_dim_of_random_checkpoints(tmp_path: Path) -> None:
    for head_dim, use in ((4, 6), (15, 16)):
        with pytest.raises(ValueError, match=f"head_dim {head_dim}: must be even and at least 6.*{use}"):
            make_hunyuan_video_checkpoint(tmp_path, head_dim=head_dim)
    for head_dim, axes in ((128, [16, 56, 56]), (16, [4, 6, 6]), (6, [2, 2, 2])):
        make_hunyuan_video_checkpoint(tmp_path, layers=1, single_layers=0, heads=1, head_dim=head_dim, text_dim=4)
        assert json.loads((tmp_path / "transformer" / "config.json").read_text())["rope_axes_dim"] == axes


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("materialize", [True, False])
def test_torch_export_with_dynamic_batch(hunyuan_video: Any, materialize: bool, seed: int) -> None:
    routed = routed_model(hunyuan_video, tau=0.0, materialize=materialize)
    check_export_with_dynamic_batch(routed, OWN, seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_on_disk(hunyuan_video: Any, dtype: torch.dtype) -> None:
    held = routed_model(hunyuan_video, dtype=dtype)
    lazy = routed_model(hunyuan_video, dtype=dtype, materialize=False)
    assert held.materialized and not lazy.materialized
    for name, parameter in held.named_parameters():
        placeholder = lazy.get_parameter(name)
        assert placeholder.shape == parameter.shape and placeholder.dtype == parameter.dtype, name
        assert torch.equal(lazy.load_parameter(name), parameter), name
        if "router" not in name and not name.startswith("time_text_embed.timestep_embedder"):
            assert placeholder.untyped_storage().nbytes() <= 4
    timesteps = torch.tensor([900.0, 10.0])
    assert torch.equal(lazy.route_scores(timesteps), held.route_scores(timesteps))
    with pytest.raises(RuntimeError, match="materialize=False: its weights are on disk"):
        run(lazy, lazy.inputs())


def test_public_attributes(hunyuan_video: Any) -> None:
    routed = routed_model(hunyuan_video, tau=0.25, dtype=torch.bfloat16)
    assert (routed.family, routed.num_layers, routed.num_heads, routed.head_dim) == ("hunyuan_video", 3, 4, 16)
    assert routed.tau == 0.25 and routed.dtype == torch.bfloat16 and routed.checkpoint == hunyuan_video.checkpoint
    inputs = routed.inputs(2)
    assert list(inputs) == [*OWN, "tau", "route_override"]
    assert {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()} == {
        "hidden_states": ((2, 4, 3, 8, 12), torch.bfloat16),
        "timestep": ((2,), torch.float32),
        "encoder_hidden_states": ((2, TEXT, 32), torch.bfloat16),
        "encoder_attention_mask": ((2, TEXT), torch.int32),
        "pooled_projections": ((2, 20), torch.bfloat16),
        "guidance": ((2,), torch.float32),
        "tau": ((1,), torch.float32),
        "route_override": ((3, 4), torch.int32),
    }


@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_attention_precision_goes_to_every_layer(
    hunyuan_video: Any, precision: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vorta_trt.model import transformer as module

    given: list[str] = []
    attend = module.routed_attention

    def record(*arguments: Any, attention_precision: str, **options: Any) -> Tensor:
        given.append(attention_precision)
        return attend(*arguments, attention_precision=attention_precision, **options)

    monkeypatch.setattr(module, "routed_attention", record)
    routed = routed_model(hunyuan_video, attention_precision=precision)
    assert copy.deepcopy(routed).attention_precision == precision
    run(routed, routed.inputs(1, seed))
    assert given == [precision] * 3


def test_published_size() -> None:
    geometry = AttentionGeometry.for_video(117, 720, 1280, "hunyuan_video")
    config = {"num_layers": 20, "num_single_layers": 40}
    assert sum(get_family("hunyuan_video").stacks(config).values()) == 60
    assert (geometry.grid, geometry.tile, geometry.text_tokens) == ((30, 45, 80), (6, 9, 8), 256)


def test_diffusers_loads_the_pipeline(hunyuan_video: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline

    absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = HunyuanVideoPipeline.from_pretrained(hunyuan_video.checkpoint, **absent)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler) and pipe.scheduler.config.shift == 7.0
    assert pipe.transformer.config.num_single_layers == 1


def operators(dual: int, single: int) -> dict[str, int]:
    """How often each block operator is called; without single-stream blocks nothing reads the last text."""
    return {
        "norm_modulate": 2,
        "residual_norm_modulate": 4 * dual + single - (0 if single else 2),
        "qk_norm_rotary": dual + single,
        "head_norm": 2 * dual,
        "linear": 12 * dual + 5 * single + (1 if single else -2),  # with the embedding of patches
    }


def test_block_operators(hunyuan_video: Any, seed: int) -> None:
    def load(dtype: torch.dtype) -> RoutedTransformer:
        return routed_model(hunyuan_video, dtype=dtype)

    inputs = load(torch.float32).inputs(2, seed) | {"encoder_attention_mask": mask_of([5, TEXT])}
    check_block_ops(load, inputs, operators(dual=2, single=1))


def test_attention_and_feed_forward_as_two_inputs(hunyuan_video: Any, seed: int) -> None:
    """The same numbers as side by side, without the copy."""
    model = routed_model(hunyuan_video, dtype=torch.float32)
    inputs = model.inputs(2, seed) | {"encoder_attention_mask": mask_of([5, TEXT])}
    model.block_ops = "plugin"
    samples, counts = [], []
    for joins in (False, True):
        for block in model.single_transformer_blocks:
            block.joins = joins
        with CountedOperators() as counted:
            samples.append(run(model, inputs)[0])
        counts.append(counted.calls)
    assert (samples[1] - samples[0]).norm() <= 1e-6 * samples[0].norm()
    assert counts[1] == counts[0] | {"linear": counts[0]["linear"] - 1, "joined_linear": 1}
