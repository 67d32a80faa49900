# SPDX-License-Identifier: Apache-2.0
"""Routed attention in plain, differentiable torch: what every kernel and every exported graph is measured against.

Letters: B batch, S video tokens, T padded text tokens, N heads, D head dim, H heads computed together, V valid text
tokens of one sample, C coreset tokens, q / k queries and keys of one block.

Every branch is the same computation over a different list of blocks. A block is a pair (queries, keys) of token ids:
all of these queries attend to all of these keys, and a softmax row never spans two blocks. So there is one softmax, and
memory is bounded by one block: no S x S matrix exists, neither forward nor backward (each block is checkpointed).

Similarities, logits, softmax and sums are computed in float32 from the given dtype (float64 stays float64); the output
is cast back. The method: VORTA, arXiv 2505.18809.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vorta_trt.model.boxes import box_centre
from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.model.indices import bucket_tables, window_groups

# Most bytes of one block's logits: large enough for full speed of a GEMM, small beside the tensors of a real model.
LOGITS_BYTES = 64 << 20
HEADS_BYTES = 256 << 20  # most bytes of float32 query, key and value of the heads that are computed together

TokenIds = Tensor | slice
Block = tuple[TokenIds, TokenIds]
Softmax = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Attends: query [H, q, D], key and value [H, k, D], scale of the logits -> [H, q, D]."""


def attend_exactly(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The softmax: query [H, q, D], key and value [H, k, D] -> [H, q, D]."""
    logits = (query * scale) @ key.transpose(1, 2)  # [H, q, k]
    return torch.softmax(logits, dim=-1) @ value


def routed_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    geometry: AttentionGeometry,
    text_length: Tensor | None = None,
    scale: float | None = None,
    softmax: Softmax = attend_exactly,
) -> Tensor:
    """Attention with a branch per sample and head.

    Args:
        query: [B, S+T, N, D], any float dtype, after QK norm and rotary embedding.
        key: Keys, of the shape and dtype of `query`.
        value: Values, of the shape and dtype of `query`.
        routes: int32 [B, N], ids of `Branch`; any other id is full attention.
        geometry: Grid, tiles, windows and buckets of the tokens.
        text_length: int32 [B], valid text tokens, 0..T; required if and only if T > 0. Text rows beyond it are neither
            read nor computed: their output is 0.
        scale: Factor of the logits; None is 1/sqrt(D).
        softmax: Computes the attention of one block; another function changes the arithmetic, not the pattern.

    Returns:
        [B, S+T, N, D], contiguous, in the dtype of `query`.
    """
    batch, _, heads, head_dim = query.shape
    if not batch or not heads:
        return (query * key * value).contiguous()  # no elements, but the graph of all three
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    lengths = text_lengths(text_length, geometry, batch)
    if not query.numel():  # no samples, or no heads
        return query.clone(memory_format=torch.contiguous_format)
    branches = routes.tolist()  # [B][N]
    chunk = max(1, HEADS_BYTES // (3 * 4 * geometry.tokens * head_dim))

    samples = []
    for sample, length in enumerate(lengths):
        valid = geometry.video_tokens + length
        outputs: list[Tensor | None] = [None] * heads
        for branch, members in _heads_by_branch(branches[sample]).items():
            for start in range(0, len(members), chunk):
                chosen = members[start : start + chunk]
                q, k, v = (_head_major(tensor[sample, :valid], chosen) for tensor in (query, key, value))  # [H, S+V, D]
                out = _attend_branch(branch, q, k, v, geometry, length, scale, softmax)  # [H, S+V, D]
                for head, rows in zip(chosen, out.to(query.dtype).unbind(0), strict=True):
                    outputs[head] = rows
        stacked = torch.stack([rows for rows in outputs if rows is not None], dim=1)  # [S+V, N, D]
        samples.append(functional.pad(stacked, (0, 0, 0, 0, 0, geometry.tokens - valid)))  # [S+T, N, D]
    return torch.stack(samples)  # [B, S+T, N, D]


class Coreset(NamedTuple):
    """The tokens that a coreset keeps.

    Attributes:
        kept: int64 [..., C], raster token ids. The tokens of a bucket are contiguous: its centre first, then the
            others, the least similar first; of equally similar tokens the first in raster order is kept.
        rows: int64 [..., S], position among the kept tokens from which each video token takes its output: its own
            position, or, if it was dropped, that of its bucket's centre.
    """

    kept: Tensor
    rows: Tensor


def select_coreset(tokens: Tensor, geometry: AttentionGeometry) -> Coreset:
    """Chooses the tokens that every bucket keeps, by cosine similarity with the bucket's centre.

    Similarities are float32, here and in the kernels. The authors' code computes them in the type of the tokens, so a
    bfloat16 run keeps other tokens than theirs: 0.1 to 41 % of them, by how alike the tokens of a bucket are (cosine
    similarities from 0 to 0.996).

    Args:
        tokens: [..., S, D], video tokens in raster order.
        geometry: Grid and buckets of the tokens.

    Returns:
        The coreset; its leading axes are those of `tokens`.
    """
    unit = functional.normalize(_exact(tokens.detach()), dim=-1, eps=1e-12)  # [..., S, D]
    rows = torch.empty(tokens.shape[:-1], dtype=torch.int64, device=tokens.device)  # [..., S]
    kept_ids: list[Tensor] = []
    count = 0
    for kind, table in bucket_tables(geometry):
        keep = geometry.keep_of(kind.tokens)
        kept, dropped = _rank(unit, table.to(tokens.device), box_centre(kind.shape)).split(
            [keep, kind.tokens - keep], dim=-1
        )  # [..., G, keep], [..., G, K-keep]
        places = torch.arange(count, count + kind.boxes * keep, device=tokens.device).view(kind.boxes, keep)
        rows.scatter_(-1, kept.flatten(-2), places.expand_as(kept).flatten(-2))
        rows.scatter_(-1, dropped.flatten(-2), places[:, :1].expand_as(dropped).flatten(-2))
        kept_ids.append(kept.flatten(-2))
        count += kind.boxes * keep
    return Coreset(torch.cat(kept_ids, dim=-1), rows)


def _rank(unit: Tensor, table: Tensor, centre: int) -> Tensor:
    """Token ids of every bucket: its centre, then the others, the least similar to it first.

    Args:
        unit: [..., S, D], video tokens of length 1.
        table: [G, K], token ids of the buckets.
        centre: Column of the centres.

    Returns:
        [..., G, K]
    """
    others = torch.cat([table[:, :centre], table[:, centre + 1 :]], dim=1)  # [G, K-1]
    similarity = (unit[..., others, :] @ unit[..., table[:, centre], :].unsqueeze(-1)).squeeze(-1)  # [..., G, K-1]
    order = similarity.argsort(dim=-1, stable=True)  # [..., G, K-1], least similar first
    centres = table[:, centre].expand(order.shape[:-1]).unsqueeze(-1)  # [..., G, 1]
    return torch.cat([centres, others.expand_as(order).gather(-1, order)], dim=-1)


def _attend_branch(
    branch: Branch,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    geometry: AttentionGeometry,
    text: int,
    scale: float,
    softmax: Softmax,
) -> Tensor:
    """One branch for heads that share it: query, key, value, output [H, S+V, D]."""
    if branch is Branch.SLIDING:
        groups, restore = sliding_pattern(geometry, text)
        return _attend_blocks(query, key, value, groups, scale, softmax)[:, restore.to(query.device)]
    if branch is Branch.CORESET:
        video = geometry.video_tokens
        chosen = select_coreset(query[:, :video], geometry)
        key_kept = chosen.kept if geometry.coreset_keys == "query" else select_coreset(key[:, :video], geometry).kept
        query = gather_video(query, chosen.kept, video)  # [H, C+V, D]
        key, value = gather_video(key, key_kept, video), gather_video(value, key_kept, video)  # [H, C+V, D]
        pattern = _dense_pattern(geometry.coreset_tokens + text)
        out = _attend_blocks(query, key, value, pattern, scale, softmax)  # [H, C+V, D]
        return spread_coreset(out, chosen)
    return _attend_blocks(query, key, value, _dense_pattern(query.shape[1]), scale, softmax)


def _attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float, softmax: Softmax
) -> Tensor:
    """Outputs of all blocks' queries, in the blocks' order: [H, queries, D]."""
    remember = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    outputs = []
    for queries, keys in blocks:
        block_key, block_value = key[:, keys], value[:, keys]  # [H, k, D]
        rows = max(1, LOGITS_BYTES // (block_key.element_size() * block_key.shape[0] * block_key.shape[1]))
        for part in _split(queries, rows):
            if remember:
                out = checkpoint(_attend, query, block_key, block_value, part, scale, softmax, use_reentrant=False)
            else:
                out = _attend(query, block_key, block_value, part, scale, softmax)
            outputs.append(out)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor, queries: TokenIds, scale: float, softmax: Softmax) -> Tensor:
    """Attends from `queries` of query [H, *, D] to key, value [H, k, D] -> [H, q, D]."""
    return softmax(query[:, queries], key, value, scale)


def _split(queries: TokenIds, rows: int) -> Iterator[TokenIds]:
    """`queries` in parts of at most `rows`."""
    if isinstance(queries, slice):
        for start in range(queries.start, queries.stop, rows):
            yield slice(start, min(start + rows, queries.stop))
    else:
        yield from queries.split(rows)


def _dense_pattern(tokens: int) -> list[Block]:
    """One block, in which all tokens attend to all tokens."""
    return [(slice(0, tokens), slice(0, tokens))]


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached tensors must be usable in a later backward pass, too
def sliding_pattern(geometry: AttentionGeometry, text: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Blocks of the sliding branch over video and `text` valid text tokens.

    The second result is the permutation that turns the blocks' order back into the order of the tokens.
    """
    video = geometry.video_tokens
    text_ids = torch.arange(video, video + text)  # [V]
    pairs = [(queries, torch.cat([keys, text_ids])) for queries, keys in window_groups(geometry)]
    if text:
        pairs.append((text_ids, torch.arange(video + text)))  # text queries see everything valid
    restore = torch.cat([queries for queries, _ in pairs]).argsort()  # [S+V]
    return pairs, restore


def gather_video(tokens: Tensor, kept: Tensor, video: int) -> Tensor:
    """Kept video tokens, then all text tokens: [H, S+V, D], [H, C] -> [H, C+V, D]."""
    ids = kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])  # [H, C, D]
    return torch.cat([tokens[:, :video].gather(1, ids), tokens[:, video:]], dim=1)


def spread_coreset(out: Tensor, chosen: Coreset) -> Tensor:
    """Outputs of all tokens from those of the kept video tokens and the text: [H, C+V, D] -> [H, S+V, D]."""
    video, text = out.tensor_split([chosen.kept.shape[1]], dim=1)  # [H, C, D], [H, V, D]
    ids = chosen.rows.unsqueeze(-1).expand(-1, -1, out.shape[-1])  # [H, S, D]
    return torch.cat([video.gather(1, ids), text], dim=1)


def _exact(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _head_major(tensor: Tensor, heads: list[int]) -> Tensor:
    """[S+V, N, D] -> [H, S+V, D], exact and contiguous."""
    return _exact(tensor[:, heads].transpose(0, 1)).contiguous()


def _heads_by_branch(routes: list[int]) -> dict[Branch, list[int]]:
    known = set(Branch)
    members: dict[Branch, list[int]] = {}
    for head, route in enumerate(routes):
        members.setdefault(Branch(route) if route in known else Branch.FULL, []).append(head)
    return members


def text_lengths(text_length: Tensor | None, geometry: AttentionGeometry, batch: int) -> list[int]:
    """Valid text tokens of each sample; ValueError unless each lies between 0 and T."""
    if text_length is None:
        if geometry.text_tokens:
            raise ValueError(
                f"text_length None: required, the geometry has {geometry.text_tokens} text tokens; pass int32 [B]"
            )
        return [0] * batch
    lengths: list[int] = text_length.tolist()
    for length in lengths:
        if not 0 <= length <= geometry.text_tokens:
            raise ValueError(
                f"text_length {lengths}: every entry must be between 0 and the geometry's {geometry.text_tokens} "
                f"text tokens"
            )
    return lengths
