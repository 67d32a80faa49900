# SPDX-License-Identifier: Apache-2.0
"""Routed Wan against diffusers' own model, from the same files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vorta_trt.model import AttentionGeometry, RoutedTransformer, routed_attention, routed_attention_reference
from vorta_trt.model.families.wan.transformer import RoutedWanTransformer
from vorta_trt.model.rotary import rotate

from ..running import check_block_ops, check_export_with_dynamic_batch, override, run

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUTER_OFF = 1.1  # a threshold that no score reaches


def diffusers_model(pipeline: Any, dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel.from_pretrained(pipeline.checkpoint, subfolder="transformer", torch_dtype=dtype).eval()


def run_diffusers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    names = ("hidden_states", "timestep", "encoder_hidden_states")
    with torch.no_grad():
        sample: Tensor = model(*(inputs[name] for name in names), return_dict=False)[0]
    return sample


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_are_diffusers_own_in_names_values_and_dtypes(pipeline: Any, dtype: torch.dtype) -> None:
    expected = dict(diffusers_model(pipeline, dtype).named_parameters())
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, dtype=dtype)
    found = dict(routed.named_parameters())
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2])
def test_all_full_gives_diffusers_output(pipeline: Any, dtype: torch.dtype, batch: int, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, dtype=dtype)
    inputs = routed.inputs(batch, seed)
    expected = run_diffusers(diffusers_model(pipeline, dtype), inputs)
    sample, routes = run(routed, inputs, tau=ROUTER_OFF)
    assert sample.dtype == dtype and sample.shape == inputs["hidden_states"].shape
    assert not routes.any()
    if dtype == torch.float32:
        assert (sample - expected).abs().max() <= 1e-6 * expected.abs().max()
    else:  # torch's own attention rounds the probabilities to this dtype, ours does not
        exact = run_diffusers(diffusers_model(pipeline), {name: value.float() for name, value in inputs.items()})
        theirs = (expected.float() - exact).norm()  # not the largest, which is a matter of luck
        assert (sample.float() - exact).norm() <= 1.5 * theirs


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_each_branch_equals_diffusers_with_the_reference_as_its_attention(
    pipeline: Any, branch: int, seed: int
) -> None:
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router)
    inputs = routed.inputs(2, seed)
    geometry = routed.geometry

    class Routed(WanAttnProcessor):
        """diffusers' own processor, with the reference in place of its attention function."""

        def __call__(self, attn: Any, hidden_states: Tensor, *rest: Any) -> Tensor:
            from diffusers.models.transformers import transformer_wan

            def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
                routes = torch.full((query.shape[0], query.shape[2]), branch)
                assert geometry is not None
                return routed_attention_reference(query, key, value, routes, geometry)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(transformer_wan, "dispatch_attention_fn", attend)
                result: Tensor = super().__call__(attn, hidden_states, *rest)
            return result

    model = diffusers_model(pipeline)
    for block in model.blocks:
        block.attn1.set_processor(Routed())
    expected = run_diffusers(model, inputs)
    sample, routes = run(routed, inputs, route_override=override(routed, branch))
    assert (routes == branch).all() and routes.dtype == torch.int32 and routes.shape == (3, 2, 4)
    torch.testing.assert_close(sample, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_the_branches_differ(pipeline: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router)
    inputs = routed.inputs(1, seed)
    full, coreset, sliding = (run(routed, inputs, route_override=override(routed, branch))[0] for branch in (0, 1, 2))
    scale = full.abs().max()
    for one, other in ((full, coreset), (full, sliding), (coreset, sliding)):
        assert (one - other).abs().max() > 1e-3 * scale


def test_router_decides_per_sample_and_override_replaces_it(pipeline: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, tau=0.0)
    inputs = routed.inputs(3, seed)
    inputs["timestep"] = torch.tensor([1000.0, 500.0, 1.0])
    sample, routes = run(routed, inputs)
    assert set(routes.unique().tolist()) == {0, 1, 2}
    assert not torch.equal(routes[:, 0], routes[:, 2])
    expected = routed.route_scores(inputs["timestep"]).argmax(-1)
    assert torch.equal(routes.long(), expected)
    for index in range(3):  # each sample as if it were alone
        alone, _ = run(routed, {name: value[index : index + 1] if value.shape[0] == 3 and "route" not in name else value
                                for name, value in inputs.items()})  # fmt: skip
        torch.testing.assert_close(sample[index : index + 1], alone, rtol=1e-5, atol=1e-5)
    partial = override(routed, -1)
    partial[1] = 2
    _, overridden = run(routed, inputs, route_override=partial)
    assert (
        (overridden[1] == 2).all() and torch.equal(overridden[0], routes[0]) and torch.equal(overridden[2], routes[2])
    )


def test_tau(pipeline: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, tau=0.0)
    inputs = routed.inputs(1, seed)
    best, choice = routed.route_scores(inputs["timestep"]).max(-1)
    for tau in (0.0, 0.3, 0.6, ROUTER_OFF):
        expected = torch.where(best < tau, 0, choice)
        assert torch.equal(run(routed, inputs, tau=tau)[1].long(), expected)
        assert torch.equal(run(routed, inputs, tau=torch.tensor([tau]))[1].long(), expected)
    assert torch.equal(run(routed, inputs, tau=None)[1].long(), choice)


def test_composition_shares_weights_and_patches_nothing(pipeline: Any, seed: int) -> None:
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    forwards = (WanTransformer3DModel.forward, WanTransformerBlock.forward)
    model = diffusers_model(pipeline)
    geometry = pipeline.geometry
    before = set(model.state_dict())
    plain = RoutedTransformer.from_model(model, geometry=geometry)
    inputs = plain.inputs(1, seed)
    expected = run_diffusers(model, inputs)
    state = torch.load(pipeline.router / "ckpt" / "step-000100" / "router.pt", weights_only=True)
    routed = RoutedTransformer.from_model(model, state, geometry, tau=0.0)
    assert run(routed, inputs)[1].any()
    for name, parameter in model.named_parameters():
        assert routed.get_parameter(name) is parameter
    assert (WanTransformer3DModel.forward, WanTransformerBlock.forward) == forwards
    assert set(model.state_dict()) == before and not model.training
    assert torch.equal(run_diffusers(model, inputs), expected)
    with torch.no_grad():
        model.proj_out.bias.add_(1)
    torch.testing.assert_close(run(plain, inputs)[0], run_diffusers(model, inputs), rtol=0, atol=1e-5)


def test_without_a_router_all_heads_are_full_and_geometry_follows_the_latents(pipeline: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint)
    assert routed.geometry is None and not routed.has_router
    with pytest.raises(ValueError, match="geometry None: example inputs need it"):
        routed.inputs()
    model = diffusers_model(pipeline)
    for latent in ((3, 8, 12), (2, 4, 6)):
        generator = torch.Generator().manual_seed(seed)
        inputs = {
            "hidden_states": torch.randn(1, 4, *latent, generator=generator),
            "timestep": torch.tensor([500]),  # an integer, as some schedulers give it
            "encoder_hidden_states": torch.randn(1, 7, 32, generator=generator),
        }
        sample, routes = run(routed, inputs)
        assert not routes.any() and routed.geometry is not None
        assert routed.geometry.grid == (latent[0], latent[1] // 2, latent[2] // 2)
        torch.testing.assert_close(sample, run_diffusers(model, inputs), rtol=0, atol=5e-6)
        assert (run(routed, inputs, route_override=override(routed, 2))[1] == 2).all()


def test_gradients_reach_weights_and_latents(pipeline: Any, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, tau=0.0)
    inputs = routed.inputs(1, seed)
    inputs["hidden_states"].requires_grad_()
    routed(**inputs)[0].square().mean().backward()
    assert inputs["hidden_states"].grad is not None and inputs["hidden_states"].grad.isfinite().all()
    grad = routed.get_parameter("blocks.0.attn1.to_q.weight").grad
    assert grad is not None and grad.isfinite().all() and grad.any()


def test_other_widths_and_depths(tmp_path: Path, seed: int) -> None:
    from diffusers import WanTransformer3DModel

    sizes = {"num_attention_heads": 1, "attention_head_dim": 20, "num_layers": 1, "ffn_dim": 12, "text_dim": 6}
    sizes.update(in_channels=5, out_channels=7, freq_dim=8, cross_attn_norm=False)
    model = WanTransformer3DModel(**sizes).eval()
    # Past `check_config`, which refuses other channels out than in: the blocks do not mind.
    routed = RoutedWanTransformer(model, geometry=AttentionGeometry.for_grid((1, 3, 5))).eval()
    inputs = routed.inputs(1, seed)
    sample, _ = run(routed, inputs)
    assert sample.shape == (1, 7, 1, 6, 10)
    torch.testing.assert_close(sample, run_diffusers(model, inputs), rtol=0, atol=5e-6)


def test_rotation_equals_diffusers_slices() -> None:
    tokens = torch.randn(2, 6, 3, 8)
    cos, sin = torch.randn(1, 6, 1, 4), torch.randn(1, 6, 1, 4)
    expected = torch.empty_like(tokens)
    expected[..., 0::2] = tokens[..., 0::2] * cos - tokens[..., 1::2] * sin
    expected[..., 1::2] = tokens[..., 0::2] * sin + tokens[..., 1::2] * cos
    assert torch.equal(rotate(tokens, cos, sin), expected)


# -- wrong inputs ------------------------------------------------------------------------------------------------------


def test_wrong_inputs(pipeline: Any) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router)
    inputs = routed.inputs()

    def attempt(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            run(routed, inputs, **changes)

    latents = inputs["hidden_states"]
    attempt(r"must be latents \[B, C, F, H, W\]", hidden_states=latents[0])
    attempt(
        r"height, width \(3, 7, 12\): must be multiples of the patch \(1, 2, 2\)", hidden_states=latents[..., 1:, :]
    )
    attempt(
        r"token grid \(2, 4, 6\): must match the model's geometry, grid \(3, 4, 6\)", hidden_states=latents[:, :, 1:]
    )
    attempt(
        r"hidden_states of dtype torch.float16.*use hidden_states.to\(torch.float32\)", hidden_states=latents.half()
    )
    attempt("encoder_hidden_states of dtype", encoder_hidden_states=inputs["encoder_hidden_states"].double())
    attempt(r"timestep of shape \(1, 2\): must be \[B\]", timestep=torch.ones(1, 2))
    attempt(r"route_override of shape \(4, 3\).*must be int32 \(3, 4\)", route_override=inputs["route_override"].T)
    attempt("torch.int64: must be int32", route_override=inputs["route_override"].long())


def test_wrong_models(pipeline: Any) -> None:
    with pytest.raises(TypeError, match="model of type Linear: must be a diffusers transformer"):
        RoutedTransformer.from_model(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="must be a WanTransformer3DModel"):
        RoutedWanTransformer.from_model(nn.Linear(2, 2))
    model = diffusers_model(pipeline)
    with pytest.raises(ValueError, match="geometry with 8 text tokens: must have none"):
        RoutedTransformer.from_model(model, geometry=AttentionGeometry.for_grid((3, 4, 6), text_tokens=8))
    state = torch.load(pipeline.router / "ckpt" / "step-000100" / "router.pt", weights_only=True)
    with pytest.raises(ValueError, match="geometry None: required with a router"):
        RoutedTransformer.from_model(model, state)
    with pytest.raises(ValueError, match="every axis must be at most rope_max_seq_len 1024"):
        RoutedTransformer.from_model(model, geometry=AttentionGeometry.for_grid((1, 4, 1026)))
    for block in model.blocks:
        block.attn1.fuse_projections()
    with pytest.raises(ValueError, match="fused projections are not routed"):
        RoutedTransformer.from_model(model)


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("materialize", [True, False])
def test_torch_export_with_dynamic_batch(pipeline: Any, materialize: bool, seed: int) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, tau=0.0, materialize=materialize)
    check_export_with_dynamic_batch(routed, ("hidden_states", "timestep", "encoder_hidden_states"), seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_on_disk(pipeline: Any, dtype: torch.dtype) -> None:
    held = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, dtype=dtype)
    lazy = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, dtype=dtype, materialize=False)
    assert held.materialized and not lazy.materialized
    values = set()
    for name, parameter in held.named_parameters():
        placeholder = lazy.get_parameter(name)
        assert placeholder.shape == parameter.shape and placeholder.dtype == parameter.dtype, name
        loaded = lazy.parameter_source(name)()
        assert loaded.dtype == parameter.dtype and torch.equal(loaded, parameter), name
        assert torch.equal(held.load_parameter(name), parameter)
        if "router" not in name and "time_embedder" not in name:
            assert placeholder.untyped_storage().nbytes() <= 4
            values.add((placeholder.dtype, float(placeholder.detach().flatten()[0])))
    assert len(values) > 80  # all different, so that no exporter merges them
    assert torch.equal(lazy.load_parameter("rope_cos"), held.load_parameter("rope_cos"))
    timesteps = torch.tensor([900.0, 10.0])
    assert torch.equal(lazy.route_scores(timesteps), held.route_scores(timesteps))
    with pytest.raises(RuntimeError, match="materialize=False: its weights are on disk"):
        run(lazy, lazy.inputs())
    with pytest.raises(KeyError, match="not in this model"):
        lazy.load_parameter("blocks.9.attn1.to_q.weight")


def test_export_needs_a_geometry(pipeline: Any) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint)
    inputs = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router).inputs()
    with pytest.raises(ValueError, match="geometry None: must be known before export"):
        torch.export.export(routed, (), inputs, strict=False)


def test_public_attributes(pipeline: Any) -> None:
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, tau=0.25, dtype=torch.bfloat16)
    assert (routed.family, routed.num_layers, routed.num_heads, routed.head_dim) == ("wan", 3, 4, 24)
    assert routed.config["text_dim"] == 32 and routed.tau == 0.25 and routed.dtype == torch.bfloat16
    assert routed.checkpoint == pipeline.checkpoint and not routed.training
    inputs = routed.inputs(2)
    assert list(inputs) == ["hidden_states", "timestep", "encoder_hidden_states", "tau", "route_override"]
    assert {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()} == {
        "hidden_states": ((2, 4, 3, 8, 12), torch.bfloat16),
        "timestep": ((2,), torch.float32),
        "encoder_hidden_states": ((2, 512, 32), torch.bfloat16),
        "tau": ((1,), torch.float32),
        "route_override": ((3, 4), torch.int32),
    }


@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_attention_precision_goes_to_every_layer(
    pipeline: Any, precision: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vorta_trt.model import transformer

    given: list[str] = []

    def attend(*arguments: Any, attention_precision: str, **options: Any) -> Tensor:
        given.append(attention_precision)
        return routed_attention(*arguments, attention_precision=attention_precision, **options)

    monkeypatch.setattr(transformer, "routed_attention", attend)
    plain = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router)
    assert plain.attention_precision == "same"
    options = {"attention_precision": precision}
    for routed in (
        RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, **options),
        RoutedTransformer.from_model(diffusers_model(pipeline), geometry=pipeline.geometry, **options),
        RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, materialize=False, **options),
    ):
        assert routed.attention_precision == precision
        if routed.materialized:
            assert copy.deepcopy(routed).attention_precision == precision
            inputs = routed.inputs(1, seed)
            given.clear()
            sample, _ = run(routed, inputs, route_override=inputs["route_override"].fill_(2))
            assert given == [precision] * routed.num_layers
            plain_sample, _ = run(plain, inputs, route_override=inputs["route_override"])
            assert torch.equal(sample, plain_sample)


def test_unknown_attention_precision(pipeline: Any) -> None:
    message = "attention_precision 'fp4': must be 'same' or 'fp8'"
    with pytest.raises(ValueError, match=message):
        RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, attention_precision="fp4")
    with pytest.raises(ValueError, match=message):
        RoutedTransformer.from_model(diffusers_model(pipeline), attention_precision="fp4")
    routed = RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router)
    with pytest.raises(ValueError, match=message):
        routed.attention_precision = "fp4"
    routed.attention_precision = "fp8"
    assert routed.attention_precision == "fp8"


def operators(blocks: int, image: bool = False) -> dict[str, int]:
    """How often each block operator is called: norms once for each norm of the model, across blocks."""
    return {
        "norm_modulate": 1,
        "residual_norm_modulate": 3 * blocks,
        "qk_norm_rotary": blocks,
        "head_norm": (3 if image else 2) * blocks,
        "cross_attention": (2 if image else 1) * blocks,
        "linear": (12 if image else 10) * blocks + 1,  # with the embedding of patches
    }


def test_block_operators(pipeline: Any, seed: int) -> None:
    def load(dtype: torch.dtype) -> RoutedTransformer:
        return RoutedTransformer.from_pretrained(pipeline.checkpoint, pipeline.router, dtype=dtype)

    check_block_ops(load, load(torch.float32).inputs(2, seed), operators(blocks=3))


def test_unknown_block_operators_are_refused(pipeline: Any) -> None:
    with pytest.raises(ValueError, match="block_ops 'fast': must be 'native' or 'plugin'"):
        RoutedTransformer.from_pretrained(pipeline.checkpoint, block_ops="fast")
