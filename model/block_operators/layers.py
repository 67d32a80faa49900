# SPDX-License-Identifier: Apache-2.0
"""Layers of diffusers' blocks, computed by the block operators.

Letters: B batch, X tokens, E inner dimension, K and O features before and after a product, M rows of a modulation, P
its parts (shifts, scales, gates).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_trt.model.fp8_linear import Fp8Linear, QuantizedTokens

GELU = "gelu_tanh"
NO_ACTIVATION = "none"
Tokens = Tensor | QuantizedTokens  # [B, X, E], as linear layers take them
PRODUCT_FEATURES = 8  # `Linear` takes multiples of it


class Norm(NamedTuple):
    """A LayerNorm without weight, and the modulation (scale and shift) that follows it.

    Attributes:
        scale: Float32 [B or 1, M, E], the whole factor: 1 plus the model's scale.
        shift: Float32 [B or 1, M, E].
        epsilon: Added to the variance.
        first_tokens: How many tokens, the first ones, take the first row of a modulation with two rows; this holds for
            the gate of `of_sum`, too.
        quantize: Whether the normed tokens are quantised. Then only layers with fp8 products may read them.
    """

    scale: Tensor
    shift: Tensor
    epsilon: float
    first_tokens: int = 0
    quantize: bool = False

    def of(self, tokens: Tensor) -> Tokens:
        """Tokens [B, X, E], normed and modulated."""
        arguments = (tokens, self.scale, self.shift, self.epsilon, self.first_tokens)
        if self.quantize:
            values, scale = torch.ops.vorta.norm_modulate_quantize(*arguments)
            return QuantizedTokens(values, scale, tokens.dtype)
        normed: Tensor = torch.ops.vorta.norm_modulate(*arguments)
        return normed

    def of_sum(self, residual: Tensor, update: Tensor, gate: Tensor) -> tuple[Tensor, Tokens]:
        """The sum residual + update * gate of tokens [B, X, E], and its modulated norm; gate [B or 1, M, E]."""
        arguments = (residual, update, gate, self.scale, self.shift, self.epsilon, self.first_tokens)
        if self.quantize:
            summed, values, scale = torch.ops.vorta.residual_norm_modulate_quantize(*arguments)
            return summed, QuantizedTokens(values, scale, residual.dtype)
        summed, normed = torch.ops.vorta.residual_norm_modulate(*arguments)
        return summed, normed


def all_fp8(*layers: nn.Module) -> bool:
    """Whether every layer has fp8 products: then the norm before them may quantise what they read."""
    return all(isinstance(layer, Fp8Linear) for layer in layers)


def linears(layers: Iterable[nn.Module], tokens: Tokens) -> list[Tensor]:
    """Outputs of several linear layers for the same tokens; layers with fp8 products share one quantisation of them."""
    layers, quantized = list(layers), tokens
    if isinstance(tokens, Tensor) and any(isinstance(layer, Fp8Linear) for layer in layers):
        quantized = QuantizedTokens.of(tokens)
    return [linear(layer, quantized if isinstance(layer, Fp8Linear) else tokens) for layer in layers]


def linear(layer: nn.Module, tokens: Tokens, activation: str = NO_ACTIVATION) -> Tensor:
    """A linear layer followed by an activation: [B, X, K] -> [B, X, O]."""
    if type(layer) is nn.Linear and isinstance(tokens, Tensor):
        bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
        product: Tensor = torch.ops.vorta.linear(tokens, layer.weight, bias, activation)
        return product
    if isinstance(layer, Fp8Linear):
        product = layer(tokens, activation)
        return product
    raise TypeError(
        f"layer of type {type(layer).__name__}: block operators take nn.Linear and Fp8Linear; fuse adapters into the "
        f'weights, or use block_ops="native"'
    )


def patch_embedding(layer: nn.Conv3d, latents: Tensor) -> Tensor:
    """A convolution over patches that do not overlap, as the product of a linear layer.

    cuDNN and TensorRT write the convolution's output with its channels first, and copy it into rows of tokens; at
    72,000 tokens of 5120 features that takes longer than the product. Here the latents are reordered instead, which are
    80 times smaller.

    Args:
        layer: Kernel and stride are the patch, without padding.
        latents: [B, C, F, H, W].

    Returns:
        Tokens [B, S, E] in raster order.
    """
    patch, features = layer.kernel_size, layer.out_channels
    if layer.stride != patch or layer.groups != 1 or any(layer.padding) or layer.bias is None:
        raise TypeError(f"patch embedding {layer}: must be a convolution with a stride of its kernel, without padding")
    grid = [size // step for size, step in zip(latents.shape[2:], patch, strict=True)]
    split = [size for pair in zip(grid, patch, strict=True) for size in pair]
    voxels = latents.reshape(*latents.shape[:2], *split)  # [B, C, f, pf, h, ph, w, pw]
    patches = voxels.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # [B, S, C * patch voxels]
    weight = layer.weight.reshape(features, -1)  # [E, C * patch voxels]
    if missing := -weight.shape[1] % PRODUCT_FEATURES:  # e.g. 65 channels and patches of one voxel
        patches, weight = (functional.pad(rows, (0, missing)) for rows in (patches, weight))
    tokens: Tensor = torch.ops.vorta.linear(patches, weight, layer.bias, NO_ACTIVATION)
    return tokens


def joined_linear(layer: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """A linear layer of two inputs whose features lie side by side: [B, X, J] and [B, X, K] -> [B, X, O]."""
    if type(layer) is not nn.Linear:
        return linear(layer, QuantizedTokens.of_both(first, second))
    bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
    product: Tensor = torch.ops.vorta.joined_linear(first, second, layer.weight, bias, NO_ACTIVATION)
    return product


def feed_forward(layer: Any, tokens: Tokens) -> Tensor:
    """A diffusers FeedForward with the tanh form of GELU: [B, X, E] -> [B, X, E]."""
    first, *_, last = layer.net
    if getattr(first, "approximate", None) != "tanh":
        raise TypeError(f"activation {first}: block operators have the tanh form of GELU alone; use block_ops='native'")
    return linear(last, linear(first.proj, tokens, GELU))


def head_norm(norm: Any, tokens: Tensor, heads: int) -> Tensor:
    """An RMS norm over all heads together or over each head: [B, X, E] -> [B, X, N, D]."""
    normed: Tensor = torch.ops.vorta.head_norm(tokens, norm.weight, heads, norm.eps)
    return normed


def qk_norm_rotary(
    norms: tuple[Any, Any], query: Tensor, key: Tensor, rope: tuple[Tensor, Tensor], heads: int
) -> tuple[Tensor, Tensor]:
    """RMS norms of query and key [B, X, E], rotated by rope, cos and sin [1, X, 1, D/2] -> both [B, X, N, D]."""
    of_query, of_key = norms
    if of_query.eps != of_key.eps:
        raise ValueError(f"epsilon {of_query.eps} of queries and {of_key.eps} of keys: must be the same")
    weights = of_query.weight, of_key.weight
    query, key = torch.ops.vorta.qk_norm_rotary(query, key, *weights, *rope, heads, of_query.eps)
    return query, key


def ones_of_scales(parts: int, scale: int, rows: int, device: torch.device) -> Tensor:
    """The summand that turns a modulation's scales into factors: 1 for every third part from `scale` on, else 0.

    Args:
        parts: P.
        scale: The first part that is a scale; modulations are (shift, scale, gate) once or more.
        rows: M.
        device: Device of the result.

    Returns:
        Float32 [1, P * M, 1].
    """
    part = torch.arange(parts * rows, device=device) // rows  # [P * M]
    return (part % 3 == scale).float().reshape(1, -1, 1)


def parts_of(modulation: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Splits a modulation into its parts: [B, P * M, E], the rows of a part contiguous -> P tensors [B, M, E]."""
    return modulation.chunk(parts, dim=1)
