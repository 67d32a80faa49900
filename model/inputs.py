# SPDX-License-Identifier: Apache-2.0
"""Checks of what a routed transformer is called with; each error says what was given, the rule and the remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from vorta_trt.model.boxes import Shape
from vorta_trt.model.constants import ROUTER_DECIDES


def token_grid(hidden_states: Tensor, patch: Shape) -> Shape:
    """The token grid (frames, height, width) of latents [B, C, F, H, W] in patches of that size."""
    if hidden_states.ndim != 5:
        raise ValueError(f"hidden_states of shape {tuple(hidden_states.shape)}: must be latents [B, C, F, H, W]")
    latent = tuple(hidden_states.shape[2:])
    if any(size % side for size, side in zip(latent, patch, strict=True)):
        raise ValueError(
            f"hidden_states with latent frames, height, width {latent}: must be multiples of the patch {patch}; pad or "
            f"resize the video"
        )
    frames, height, width = (size // side for size, side in zip(latent, patch, strict=True))
    return frames, height, width


def check_dtypes(dtype: torch.dtype, **tensors: Tensor) -> None:
    """Raises ValueError unless activations have the dtype of the model."""
    for name, tensor in tensors.items():
        if tensor.dtype != dtype:
            raise ValueError(f"{name} of dtype {tensor.dtype}: must be the model's; use {name}.to({dtype})")


def check_per_sample(**tensors: Tensor) -> None:
    """Raises ValueError unless timesteps and the like are [B]."""
    for name, tensor in tensors.items():
        if tensor.ndim != 1:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)}: must be [B], one per sample")


def check_two_per_sample(**tensors: Tensor) -> None:
    """Raises ValueError unless timesteps are [B, 2]: of the first latent frame and of the others."""
    for name, tensor in tensors.items():
        if tuple(tensor.shape[1:]) != (2,):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)}: must be [B, 2], of the first latent frame and of the others"
            )


def check_valid_first(name: str, valid: Tensor) -> None:
    """Raises ValueError unless valid tokens, bool [B, T], come first.

    On a GPU this waits for `valid`. It is left out where no value can be read: compiled, exported, or captured.
    """
    if torch.compiler.is_compiling() or (valid.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    gaps = (valid[:, 1:] & ~valid[:, :-1]).any(dim=1)  # [B]: a valid token behind one that is not
    if bool(gaps.any()):
        sample = int(gaps.int().argmax())
        raise ValueError(
            f"{name} of sample {sample}: a valid token follows one that is not, but padding must be behind the text; "
            f"pad on the right, as the pipeline's own text encoding does"
        )


def check_route_override(route_override: Tensor | None, layers: int, heads: int) -> None:
    """Raises ValueError unless an override is int32 [L, N]."""
    if route_override is None:
        return
    shape, expected = tuple(route_override.shape), (layers, heads)
    if route_override.dtype != torch.int32 or shape != expected:
        raise ValueError(
            f"route_override of shape {shape}, {route_override.dtype}: must be int32 {expected}, layers and heads; "
            f"use torch.full({expected}, {ROUTER_DECIDES}, dtype=torch.int32) to let the router decide"
        )
