# SPDX-License-Identifier: Apache-2.0
"""The block operators on the CPU against formulas in float64, their schemas and fakes, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model.block_operators import quantize_rows
from vorta_trt.model.block_operators.layers import patch_embedding
from vorta_trt.plugins.operator_schema import BLOCK_OPERATORS

BATCH, TOKENS, KEYS, HEADS, HEAD_DIM, OUT, FIRST = 2, 7, 5, 3, 8, 16, 3
WIDTH = HEADS * HEAD_DIM
EPSILON = 1e-6
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms_normed(tokens: Tensor, weight: Tensor) -> Tensor:
    grouped = tokens.double().reshape(BATCH, TOKENS, -1, weight.numel())
    normed = grouped / (grouped.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight.double()
    return normed.reshape(BATCH, TOKENS, HEADS, HEAD_DIM)


def turned(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = torch.view_as_complex(tokens.reshape(*tokens.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos.double(), sin.double())).flatten(-2)


def modulated(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    wide = tokens.double()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + EPSILON).sqrt()
    return normed * by_token(scale) + by_token(shift)


def by_token(modulation: Tensor) -> Tensor:
    rows = [modulation[:, 0 if token < FIRST else -1] for token in range(TOKENS)]
    return torch.stack(rows, dim=1).double()


def gelu(values: Tensor) -> Tensor:
    return values / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))


def modulation(batch: int, rows: int, seed: int) -> Tensor:
    return numbers(batch, rows, WIDTH, seed=seed)


def heads_case(dtype: torch.dtype, group: int) -> dict[str, tuple[Any, ...]]:
    query, key = (numbers(BATCH, TOKENS, WIDTH, seed=seed, dtype=dtype) for seed in (1, 2))
    weights = [numbers(group, seed=seed, dtype=dtype) for seed in (3, 4)]
    angles = numbers(1, TOKENS, 1, HEAD_DIM // 2, seed=5)
    cos, sin = angles.cos(), angles.sin()
    normed = [rms_normed(tokens, weight) for tokens, weight in zip((query, key), weights, strict=True)]
    return {
        "qk_norm_rotary": (
            (query, key, *weights, cos, sin, HEADS, EPSILON),
            tuple(turned(tokens, cos, sin) for tokens in normed),
        ),
        "head_norm": ((query, weights[0], HEADS, EPSILON), (normed[0],)),
    }


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("group", [WIDTH, HEAD_DIM])
@pytest.mark.parametrize("name", ["qk_norm_rotary", "head_norm"])
def test_norms_of_heads(name: str, group: int, dtype: torch.dtype) -> None:
    check(name, *heads_case(dtype, group)[name], dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (BATCH, 1), (BATCH, 2)])
def test_modulated_norms(rows: tuple[int, int], dtype: torch.dtype) -> None:
    tokens, update = (numbers(BATCH, TOKENS, WIDTH, seed=seed, dtype=dtype) for seed in (1, 2))
    scale, shift, gate = modulation(*rows, 3), modulation(1, 1, 4), modulation(BATCH, 3 - rows[1], 5)
    wanted = modulated(tokens, scale, shift)
    check("norm_modulate", (tokens, scale, shift, EPSILON, FIRST), (wanted,), dtype)
    residual = tokens.double() + update.double() * by_token(gate)
    arguments = (tokens, update, gate, scale, shift, EPSILON, FIRST)
    check("residual_norm_modulate", arguments, (residual, modulated(residual.to(dtype), scale, shift)), dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_norms_that_quantise(dtype: torch.dtype) -> None:
    """Bit for bit what quantising their rounded output gives, and so what a layer of that output computes."""
    ops = torch.ops.vorta
    tokens, update = (numbers(BATCH, TOKENS, WIDTH, seed=seed, dtype=dtype) for seed in (1, 2))
    norm = (modulation(BATCH, 2, 3), modulation(1, 1, 4), EPSILON, FIRST)
    normed = ops.norm_modulate(tokens, *norm)
    summed, of_sum = ops.residual_norm_modulate(tokens, update, modulation(BATCH, 1, 5), *norm)
    found, *of_sum_quantised = ops.residual_norm_modulate_quantize(tokens, update, modulation(BATCH, 1, 5), *norm)
    assert torch.equal(found, summed)
    for exact, (quantised, scale) in (
        (normed, ops.norm_modulate_quantize(tokens, *norm)),
        (of_sum, of_sum_quantised),
    ):
        expected, expected_scale = quantize_rows(exact)
        assert torch.equal(quantised.view(torch.uint8), expected.view(torch.uint8))
        assert torch.equal(scale, expected_scale.squeeze(-1)) and scale.shape == (BATCH, TOKENS)
    checks = ("test_faketensor",)
    torch.library.opcheck(ops.norm_modulate_quantize.default, (tokens, *norm), test_utils=checks)
    arguments = (tokens, update, modulation(BATCH, 1, 5), *norm)
    torch.library.opcheck(ops.residual_norm_modulate_quantize.default, arguments, test_utils=checks)
    torch.library.opcheck(ops.quantize.default, (tokens,), test_utils=checks)
    halves = tokens[..., :8], tokens[..., 8:]
    torch.library.opcheck(ops.joined_quantize.default, halves, test_utils=checks)
    for whole, joined in zip(ops.quantize(tokens), ops.joined_quantize(*halves), strict=True):
        assert torch.equal(whole.view(torch.uint8), joined.view(torch.uint8))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu_tanh"])
def test_linear(activation: str, dtype: torch.dtype) -> None:
    tokens = numbers(BATCH, TOKENS, WIDTH, dtype=dtype)
    weight, bias = numbers(OUT, WIDTH, seed=1, dtype=dtype), numbers(OUT, seed=2, dtype=dtype)
    product = tokens.double() @ weight.double().T + bias.double()
    wanted = gelu(product) if activation == "gelu_tanh" else product
    check("linear", (tokens, weight, bias, activation), (wanted,), dtype)
    check("joined_linear", (tokens[..., :8], tokens[..., 8:], weight, bias, activation), (wanted,), dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu_tanh"])
def test_fp8_linear(activation: str, dtype: torch.dtype) -> None:
    """Exact in what it multiplies: the numbers in e4m3, found here without the operator's own function."""
    tokens = numbers(BATCH, TOKENS, WIDTH, dtype=dtype)
    tokens[0, 0] = 0
    weight, weight_scale = quantize_rows(numbers(OUT, WIDTH, seed=1))
    bias = numbers(OUT, seed=2, dtype=dtype)
    scale = tokens.float().abs().amax(-1, keepdim=True) / 448
    scale[0, 0] = 1
    rounded = (tokens.float() / scale).to(torch.float8_e4m3fn)
    product = (rounded.double() * scale) @ (weight.double() * weight_scale).T + bias.double()
    wanted = gelu(product) if activation == "gelu_tanh" else product
    quantized = torch.ops.vorta.quantize(tokens)
    check("fp8_linear", (*quantized, weight, weight_scale.squeeze(1), bias, activation), (wanted,), dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_cross_attention(scale: float, dtype: torch.dtype) -> None:
    query = numbers(BATCH, TOKENS, HEADS, HEAD_DIM, dtype=dtype)
    key, value = (numbers(BATCH, KEYS, HEADS, HEAD_DIM, seed=seed, dtype=dtype) for seed in (1, 2))
    logits = torch.einsum("bxnd,bynd->bnxy", query.double(), key.double()) * (scale or HEAD_DIM**-0.5)
    wanted = torch.einsum("bnxy,bynd->bxnd", logits.softmax(-1), value.double())
    check("cross_attention", (query, key, value, scale), (wanted,), dtype)


def check(name: str, arguments: tuple[Any, ...], wanted: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Compares with what is wanted: one rounding to the type, and the same shape and type."""
    operator = getattr(torch.ops.vorta, name)
    found = operator(*arguments)
    for output, exact in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        assert output.dtype == dtype
        assert output.shape == exact.shape
        assert output.is_contiguous()
        assert (output.double() - exact).norm() <= ROUNDING[dtype] * exact.norm()
    if dtype == torch.bfloat16:
        checks = ("test_schema", "test_faketensor") if name != "fp8_linear" else ("test_faketensor",)
        torch.library.opcheck(operator.default, arguments, test_utils=checks)  # (its own sums have no float8)


@pytest.mark.parametrize(("channels", "patch"), [(16, (1, 2, 2)), (5, (1, 1, 1))])  # 64 and 5 features a patch
def test_patches_are_embedded_as_by_the_convolution(channels: int, patch: tuple[int, int, int]) -> None:
    layer = torch.nn.Conv3d(channels, 24, patch, stride=patch)
    latents = torch.randn(2, channels, 3, 4, 6)
    with torch.no_grad():
        expected = layer(latents).flatten(2).transpose(1, 2)  # [B, S, E]
        torch.testing.assert_close(patch_embedding(layer, latents), expected, rtol=0, atol=1e-6)


def test_patches_that_overlap_are_refused() -> None:
    with pytest.raises(TypeError, match="a stride of its kernel"):
        patch_embedding(torch.nn.Conv3d(16, 24, 3, stride=2), torch.randn(1, 16, 4, 8, 8))


def test_rows_are_quantised_over_their_largest() -> None:
    rows = torch.tensor([[0.0, 0.0], [-896.0, 2.0], [1e-30, 0.0]])
    values, scale = quantize_rows(rows)
    assert scale.flatten().tolist() == pytest.approx([1.0, 2.0, 1e-30 / 448])
    assert values.float().tolist() == [[0.0, 0.0], [-448.0, 1.0], [448.0, 0.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda ops, t: ops.head_norm(t, t[0, 0, :5], HEADS, EPSILON),
            r"weight of shape \(5,\): must be \[E\] or \[D\]",
        ),
        (lambda ops, t: ops.head_norm(t, t[0, 0], 5, EPSILON), r"tokens of shape \(2, 7, 24\): must be \[B, X, E\]"),
        (lambda ops, t: ops.head_norm(t, t[0, 0].half(), HEADS, EPSILON), "weight of dtype torch.float16: must be"),
        (lambda ops, t: ops.head_norm(t, t[0, 0], 0, EPSILON), "heads 0: must be at least 1"),
        (lambda ops, t: ops.norm_modulate(t, t[:, :3], t[:, :1], EPSILON, 0), r"scale of shape \(2, 3, 24\)"),
        (lambda ops, t: ops.norm_modulate(t, t[:, :1].half(), t[:, :1], EPSILON, 0), "scale of dtype torch.float16"),
        (lambda ops, t: ops.norm_modulate(t, t[:, :1], t[:, :1], EPSILON, -1), "first_tokens -1: must be at least 0"),
        (lambda ops, t: ops.linear(t, t[0, :, :5], t[0, :, 0], "none"), r"weight of shape \(7, 5\): must be \[O, K\]"),
        (
            lambda ops, t: ops.joined_linear(t, t[..., :8], t[0], t[0, :, 0], "none"),
            r"weight of shape \(7, 24\): must be \[O, J \+ K\] with B=2, J=24, K=8, X=7",
        ),
        (lambda ops, t: ops.linear(t, t[0], t[0, :, 0], "relu"), "activation 'relu': must be 'none' or 'gelu_tanh'"),
        (
            lambda ops, t: ops.fp8_linear(t, t[..., 0], *quantize_rows(t[0]), t[0, :, 0], "none"),
            "input of dtype torch.float32: must be torch.float8_e4m3fn",
        ),
        (
            lambda ops, t: ops.fp8_linear(*quantize_rows(t), *quantize_rows(t[0]), t[0, :, 0], "none"),
            r"input_scale of shape \(2, 7, 1\): must be \[B, X\]",
        ),
        (lambda ops, t: ops.quantize(ops.quantize(t)[0]), "tokens of dtype torch.float8_e4m3fn: must be float16"),
    ],
)
def test_refuses(call: Callable[[Any, Tensor], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(torch.ops.vorta, numbers(BATCH, TOKENS, WIDTH))


def test_every_operator_of_the_table_is_registered() -> None:
    for operator in BLOCK_OPERATORS:
        schema = getattr(torch.ops.vorta, operator.torch_name).default._schema
        names = [argument.name for argument in schema.arguments]
        assert names == [*operator.inputs, *(attribute.name for attribute in operator.attributes)]
        assert len(schema.returns) == len(operator.outputs)


def test_a_gradient_is_refused() -> None:
    weight = numbers(OUT, WIDTH, seed=1).requires_grad_()
    product = torch.ops.vorta.linear(numbers(1, TOKENS, WIDTH), weight, numbers(OUT, seed=2), "none")
    with pytest.raises(RuntimeError, match="no autograd formula"):
        product.sum().backward()
