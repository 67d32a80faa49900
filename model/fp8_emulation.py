# SPDX-License-Identifier: Apache-2.0
"""Attention as the 8-bit kernels compute it, in torch, for machines without such a GPU: how large are its errors?

It rounds what the kernels round: Q and K to int8, with a scale for every query row and every 32 keys, after the
transforms that change no output (means of K and V, balanced channels, a sign-Hadamard matrix; see docs/kernels.md);
weights and V to e4m3. The outcome is not that of the kernels bit for bit: chunks follow the order in which the
reference has the keys, means come from the keys of a block, the shift of a row is its maximum, and sums are exact.

Letters: H heads computed together, q queries, k keys, D head dim, C chunks.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 32  # keys that share a scale
LARGEST_INT8 = 127.0
LARGEST_E4M3 = 448.0
LARGEST_WEIGHT = 8.0  # largest softmax weight of a row, before rounding
LARGEST_BALANCE = 12.0  # log2
TINY = 1e-30
#: Transforms before the rounding; none changes the output of exact attention.
TRANSFORMS = frozenset({"mean of K", "mean of V", "balance", "Hadamard"})


def attend_in_fp8(
    query: Tensor, key: Tensor, value: Tensor, scale: float, transforms: Collection[str] = TRANSFORMS
) -> Tensor:
    """Softmax attention with 8-bit products.

    Args:
        query: [H, q, D], float32.
        key: [H, k, D].
        value: [H, k, D].
        scale: Factor of the logits.
        transforms: Which of `TRANSFORMS` are applied; the kernels apply all.

    Returns:
        [H, q, D]
    """
    if "mean of K" in transforms:
        key = key - _significant_mean(key)
    if "balance" in transforms:
        balance = _balance(query, key)  # [H, 1, D]
        query, key = query / balance, key * balance
    if "Hadamard" in transforms:
        # The matrix has a power of two of rows; further channels of zeros do no harm.
        width = 1 << (query.shape[-1] - 1).bit_length()
        hadamard = _sign_hadamard(width, query)  # [D, D]
        query, key = (functional.pad(rows, (0, width - rows.shape[-1])) @ hadamard for rows in (query, key))
    rounded_query = _to_int8(query)
    rounded_key = _to_int8(_in_chunks(key)).view(len(key), -1, key.shape[2])[:, : key.shape[1]]
    mean = torch.zeros_like(value[:, :1])  # [H, 1, D]
    if "mean of V" in transforms:
        mean = _on_lattice(_significant_mean(value), value)
    logits = rounded_query @ rounded_key.transpose(1, 2) * scale  # [H, q, k]

    scales = _value_scales(value - mean)  # [H, 1, k]
    rounded_value = _to_e4m3((value - mean) / scales.transpose(1, 2))
    shifted = logits + scales.log()
    weights = (shifted - shifted.amax(-1, keepdim=True)).exp() * LARGEST_WEIGHT  # of the values in their scales
    sums = (weights / scales).sum(-1, keepdim=True)  # [H, q, 1]
    return _to_e4m3(weights) @ rounded_value / sums + mean


def _significant_mean(rows: Tensor) -> Tensor:
    """The mean of each channel, 0 where it is no more than two standard errors: [H, k, D] -> [H, 1, D]."""
    mean = rows.mean(1, keepdim=True)
    error = rows.std(1, keepdim=True, correction=0) / rows.shape[1] ** 0.5
    return torch.where(mean.abs() >= 2 * error, mean, 0)


def _on_lattice(mean: Tensor, rows: Tensor) -> Tensor:
    """The mean as a multiple of two steps of bfloat16 values around it, so that their rounding stays even."""
    largest = mean.abs() + 2 * rows.std(1, keepdim=True, correction=0)
    step = (largest.clamp_min(TINY).log2().floor() - 6).exp2()
    return (mean / step).round() * step


def _balance(query: Tensor, key: Tensor) -> Tensor:
    """Powers of two that make the channels of both equally large: [H, 1, D]."""
    squares = [tensor.square().mean(1, keepdim=True) for tensor in (query, key)]
    exponents = (squares[0].clamp_min(TINY) / squares[1].clamp_min(TINY)).log2() / 4
    return exponents.round().clamp(-LARGEST_BALANCE, LARGEST_BALANCE).exp2()


def _sign_hadamard(width: int, like: Tensor) -> Tensor:
    """Orthogonal Hadamard matrix [D, D], whose rows have random signs from a fixed seed."""
    matrix = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    while matrix.shape[0] < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (width, 1), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.mul(matrix, signs.to(like)).div(math.sqrt(width))


def _to_int8(rows: Tensor) -> Tensor:
    """Rows rounded to 255 steps, with a scale for every row."""
    step = rows.abs().amax(-1, keepdim=True).clamp_min(TINY) / LARGEST_INT8
    return (rows / step).round() * step


def _in_chunks(rows: Tensor) -> Tensor:
    """[H, k, D] -> [H, C, 32 * D], with zeros after the last key."""
    padded = functional.pad(rows, (0, 0, 0, -rows.shape[1] % CHUNK))
    return padded.view(rows.shape[0], -1, CHUNK * rows.shape[2])


def _value_scales(values: Tensor) -> Tensor:
    """Scale of every chunk, a power of two, repeated for each of its keys: [H, k, D] -> [H, 1, k]."""
    largest = _in_chunks(values).abs().amax(-1).clamp_min(TINY)  # [H, C]
    scales = (largest / LARGEST_E4M3).log2().ceil().exp2()
    return scales.repeat_interleave(CHUNK, 1)[:, None, : values.shape[1]]


def _to_e4m3(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float8_e4m3fn).to(tensor.dtype)
