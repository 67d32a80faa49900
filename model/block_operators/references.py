# SPDX-License-Identifier: Apache-2.0
"""The block operators in plain torch: float32 inside, rounded once at each output. What the kernels are held to.

Letters: B batch, X tokens, Y tokens of the keys, N heads, D head dimension, E = N * D, M rows of a modulation (1, or 2
where the first tokens have one of their own), K and O features before and after a product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.rotary import rotate

FLOAT8 = torch.float8_e4m3fn
LARGEST_FLOAT8 = torch.finfo(FLOAT8).max  # 448


def qk_norm_rotary(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Query and key [B, X, E], weights [E] or [D], cos and sin [1, X, 1, D/2] -> both [B, X, N, D]."""
    query_output = rotate(_rms_norm(query, query_weight, heads, epsilon), cos, sin).to(query.dtype)
    key_output = rotate(_rms_norm(key, key_weight, heads, epsilon), cos, sin).to(key.dtype)
    return query_output, key_output


def head_norm(tokens: Tensor, weight: Tensor, heads: int, epsilon: float) -> Tensor:
    """Tokens [B, X, E], weight [E] or [D] -> [B, X, N, D]."""
    return _rms_norm(tokens, weight, heads, epsilon).to(tokens.dtype)


def norm_modulate(tokens: Tensor, scale: Tensor, shift: Tensor, epsilon: float, first_tokens: int) -> Tensor:
    """Tokens [B, X, E], scale and shift [B or 1, M, E] -> [B, X, E]."""
    normed = functional.layer_norm(tokens.float(), tokens.shape[2:], eps=epsilon)  # [B, X, E]
    modulated = normed * _by_token(scale, tokens, first_tokens) + _by_token(shift, tokens, first_tokens)
    return modulated.to(tokens.dtype)


def residual_norm_modulate(
    residual: Tensor, update: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, epsilon: float, first_tokens: int
) -> tuple[Tensor, Tensor]:
    """Residual and update [B, X, E], gate, scale and shift [B or 1, M, E] -> new residual, and its modulated norm."""
    summed = residual.float() + update.float() * _by_token(gate, residual, first_tokens)  # [B, X, E]
    residual_output = summed.to(residual.dtype)
    return residual_output, norm_modulate(residual_output, scale, shift, epsilon, first_tokens)


def linear(input: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Input [B, X, K], weight [O, K], bias [O] -> [B, X, O]."""
    product = functional.linear(input.float(), weight.float(), bias.float())  # [B, X, O]
    return _activated(product, activation).to(input.dtype)


def quantize(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, X, E] -> e4m3 [B, X, E], and a scale for each token, float32 [B, X]."""
    quantized, scale = quantize_rows(tokens)
    return quantized, scale.squeeze(-1)


def joined_quantize(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize` of first [B, X, J] and second [B, X, K] side by side."""
    return quantize(torch.cat((first, second), dim=2))


def norm_modulate_quantize(
    tokens: Tensor, scale: Tensor, shift: Tensor, epsilon: float, first_tokens: int
) -> tuple[Tensor, Tensor]:
    """`quantize` of what `norm_modulate` gives."""
    return quantize(norm_modulate(tokens, scale, shift, epsilon, first_tokens))


def residual_norm_modulate_quantize(
    residual: Tensor, update: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, epsilon: float, first_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The new residual of `residual_norm_modulate`, and `quantize` of its modulated norm."""
    summed, modulated = residual_norm_modulate(residual, update, gate, scale, shift, epsilon, first_tokens)
    return summed, *quantize(modulated)


def joined_linear(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """First [B, X, J], second [B, X, K], weight [O, J + K], bias [O] -> [B, X, O]."""
    return linear(torch.cat((first, second), dim=2), weight, bias, activation)


def fp8_linear(
    input: Tensor, input_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, activation: str
) -> Tensor:
    """Input e4m3 [B, X, K], scale [B, X], weight e4m3 [O, K], scale [O], bias [O] -> [B, X, O], dtype of the bias."""
    sums = functional.linear(input.float(), weight.float())  # [B, X, O]
    product = sums * input_scale.unsqueeze(-1) * weight_scale  # [B, X, O]
    return _activated(product + bias.float(), activation).to(bias.dtype)


def cross_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Query [B, X, N, D], key and value [B, Y, N, D], scale of the logits or 0 for 1/sqrt(D) -> [B, X, N, D]."""
    rows, keys, values = (tensor.float().transpose(1, 2) for tensor in (query, key, value))  # [B, N, X or Y, D]
    attended = functional.scaled_dot_product_attention(rows, keys, values, scale=scale or None)  # [B, N, X, D]
    return attended.transpose(1, 2).to(query.dtype).contiguous()


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises rows to e4m3, each row with its own scale.

    Args:
        rows: [..., K], of any float dtype.

    Returns:
        The quantised rows, e4m3 [..., K], and the scales that multiply them back, float32 [..., 1]. A row of zeros has
        scale 1.
    """
    wide = rows.float()
    largest = wide.abs().amax(dim=-1, keepdim=True)  # [..., 1]
    scale = torch.where(largest > 0, largest / LARGEST_FLOAT8, torch.ones_like(largest))
    return (wide / scale).clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8).to(FLOAT8), scale


def _rms_norm(tokens: Tensor, weight: Tensor, heads: int, epsilon: float) -> Tensor:
    """RMS norm over groups of as many features as the weight has: [B, X, E] -> float32 [B, X, N, D]."""
    grouped = tokens.float().unflatten(2, (-1, weight.shape[0]))  # [B, X, E / group, group]
    normed = functional.rms_norm(grouped, weight.shape, weight.float(), epsilon)
    in_heads: Tensor = normed.flatten(2).unflatten(2, (heads, -1))
    return in_heads


def _by_token(modulation: Tensor, tokens: Tensor, first_tokens: int) -> Tensor:
    """Expands a modulation [B or 1, M, E] to broadcast over tokens [B, X, E]: [B or 1, 1 or X, E]."""
    if modulation.shape[1] == 1:
        return modulation
    is_first = (torch.arange(tokens.shape[1], device=tokens.device) < first_tokens).unsqueeze(1)  # [X, 1]
    return torch.where(is_first, modulation[:, :1], modulation[:, 1:])


def _activated(product: Tensor, activation: str) -> Tensor:
    return functional.gelu(product, approximate="tanh") if activation == "gelu_tanh" else product
