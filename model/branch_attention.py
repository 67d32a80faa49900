# SPDX-License-Identifier: Apache-2.0
"""The branches through torch's memory-efficient attention, for training: the soft mixture, and dense attention.

Training needs all three branches of every head and their gradients. Here each is a call of
`scaled_dot_product_attention` on the tokens that the branch is about, with the backend that would write a score matrix
ruled out: full attention as it is, the coreset on the gathered tokens, the sliding branch window by window, since all
tiles that share a window are one dense rectangle. The patterns are the reference's, and so are the results but
for rounding.

Letters: B batch, S video tokens, T padded text tokens, N heads, D head dim, H heads of all samples that are computed
together, V valid text tokens of one sample, C coreset tokens.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.model.operator import check_device, check_tensors, checked_scale
from vorta_trt.model.reference import gather_video, select_coreset, sliding_pattern, spread_coreset, text_lengths

# Every backend of scaled_dot_product_attention but MATH, which holds the score matrix. It is an error if none fits. The
# first one that fits is used: on an H200 cuDNN takes 0.57 of FlashAttention-2's time, forward and backward.
BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def branch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    branch: Branch,
    geometry: AttentionGeometry,
    text_length: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention with one branch for all heads; differentiable in query, key and value.

    The choice of the coreset is a constant of the gradient.

    Args:
        query: [B, S+T, N, D], any float dtype, after QK norm and rotary embedding.
        key: Keys, of the shape and dtype of `query`.
        value: Values, of the shape and dtype of `query`.
        branch: Branch of all heads.
        geometry: Grid, tiles, windows and buckets of the tokens.
        text_length: int32 [B], valid text tokens; required if and only if T > 0.
        scale: Factor of the logits; None is 1/sqrt(D).

    Returns:
        [B, S+T, N, D] in the dtype of `query`; rows of padded text are 0.

    Raises:
        TypeError: An argument has the wrong type, as in `routed_attention`.
        ValueError: An argument breaks another rule of `routed_attention`.
    """
    check_tensors(query, key, value, geometry, text_length)
    scale = checked_scale(scale, query)
    lengths = text_lengths(text_length, geometry, query.shape[0])
    if not query.numel():  # no samples, or no heads
        return query.clone(memory_format=torch.contiguous_format)
    if not geometry.text_tokens:
        return _attend_samples(query, key, value, branch, geometry, 0, scale)  # [B, S, N, D]
    samples = []
    for sample, length in enumerate(lengths):
        valid = geometry.video_tokens + length
        q, k, v = (tensor[sample : sample + 1, :valid] for tensor in (query, key, value))  # [1, S+V, N, D]
        out = _attend_samples(q, k, v, branch, geometry, length, scale)  # [1, S+V, N, D]
        samples.append(functional.pad(out, (0, 0, 0, 0, 0, geometry.tokens - valid)))  # [1, S+T, N, D]
    return torch.cat(samples)  # [B, S+T, N, D]


def full_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    geometry: AttentionGeometry,
    text_length: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Full attention for every head; arguments and output are those of `branch_attention`."""
    return branch_attention(query, key, value, Branch.FULL, geometry, text_length, scale)


def mixed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Tensor,
    geometry: AttentionGeometry,
    text_length: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The soft mixture that routers are trained with: the sum of a head's branch outputs, weighted with its scores.

    Args:
        query: Queries; see `branch_attention`.
        key: Keys, of the shape and dtype of `query`.
        value: Values, of the shape and dtype of `query`.
        scores: float [B, N, 3], what `Router` gives; the sum is in float32.
        geometry: Grid, tiles, windows and buckets of the tokens.
        text_length: int32 [B], valid text tokens; required if and only if T > 0.
        scale: Factor of the logits; None is 1/sqrt(D).

    Returns:
        [B, S+T, N, D] in the dtype of `query`.

    Raises:
        TypeError: An argument has the wrong type; see `branch_attention`.
        ValueError: An argument breaks a rule of `branch_attention`, or the scores have another shape.
    """
    expected = (query.shape[0], query.shape[2], len(Branch))
    if tuple(scores.shape) != expected:
        raise ValueError(f"scores of shape {tuple(scores.shape)}: must be {expected}, as a Router's")
    check_device("scores", scores, query)
    mixed: Tensor | None = None
    for branch in Branch:
        out = branch_attention(query, key, value, branch, geometry, text_length, scale)  # [B, S+T, N, D]
        weighted = scores[:, None, :, int(branch), None] * out  # [B, S+T, N, D]
        mixed = weighted if mixed is None else mixed + weighted
    assert mixed is not None
    return mixed.to(query.dtype)


def _attend_samples(
    query: Tensor, key: Tensor, value: Tensor, branch: Branch, geometry: AttentionGeometry, text: int, scale: float
) -> Tensor:
    """One branch for samples with equally many text tokens: query, key, value, output [B, S+V, N, D]."""
    batch, _, heads, _ = query.shape
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # [H, S+V, D]
    if branch is Branch.SLIDING:
        out = _sliding(q, k, v, geometry, text, scale)  # [H, S+V, D]
    elif branch is Branch.CORESET:
        out = _coreset(q, k, v, geometry, text, scale)  # [H, S+V, D]
    else:
        out = _attend(q, k, v, scale)  # [H, S+V, D]
    split: Tensor = out.unflatten(0, (batch, heads))  # [B, N, S+V, D]
    return split.transpose(1, 2)


def _coreset(query: Tensor, key: Tensor, value: Tensor, geometry: AttentionGeometry, text: int, scale: float) -> Tensor:
    video = geometry.video_tokens
    chosen = select_coreset(query[:, :video], geometry)
    key_kept = chosen.kept if geometry.coreset_keys == "query" else select_coreset(key[:, :video], geometry).kept
    query = gather_video(query, chosen.kept, video)  # [H, C+V, D]
    key, value = gather_video(key, key_kept, video), gather_video(value, key_kept, video)  # [H, C+V, D]
    return spread_coreset(_attend(query, key, value, scale), chosen)  # [H, S+V, D]


def _sliding(query: Tensor, key: Tensor, value: Tensor, geometry: AttentionGeometry, text: int, scale: float) -> Tensor:
    blocks, restore = _pattern_on(geometry, text, query.device)
    remember = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    outputs = []
    for queries, keys in blocks:
        if remember:  # the gathered keys and values of all windows are several times the tensors: gather them again
            out = checkpoint(
                _attend_tokens, query, key, value, queries, keys, scale, use_reentrant=False, preserve_rng_state=False
            )
        else:
            out = _attend_tokens(query, key, value, queries, keys, scale)
        outputs.append(out)
    return torch.cat(outputs, dim=1).index_select(1, restore)  # [H, S+V, D]


def _attend_tokens(query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """The tokens `queries` attend to the tokens `keys`: [H, queries, D]."""
    q, k, v = query.index_select(1, queries), key.index_select(1, keys), value.index_select(1, keys)
    return _attend(q, k, v, scale)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Dense attention without a score matrix: query [H, q, D], key and value [H, k, D] -> [H, q, D]."""
    q, k, v = (tensor.unsqueeze(0) for tensor in (query, key, value))  # the backends take 4 axes
    with sdpa_kernel(BACKENDS, set_priority=True):
        out: Tensor = functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.squeeze(0)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached tensors must be usable in a later backward pass, too
def _pattern_on(
    geometry: AttentionGeometry, text: int, device: torch.device
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The reference's blocks of the sliding branch, their token ids on `device`."""
    blocks, restore = sliding_pattern(geometry, text)
    return [(queries.to(device), keys.to(device)) for queries, keys in blocks], restore.to(device)
