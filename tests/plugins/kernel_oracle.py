# SPDX-License-Identifier: Apache-2.0
"""What the kernels should give, written a second time from the method's definition, with none of the package's code.

Outputs are computed in float64, and beside them in the kernels' own dtype with torch's attention on gathered tokens: a
kernel may err at most twice as much as torch does.

Letters: B batch, S video tokens, T padded text tokens, N heads, D head dim, G buckets, K tokens of a bucket.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Triple = tuple[int, int, int]

FULL, CORESET, SLIDING = 0, 1, 2
#: A bucket whose last kept and first dropped similarity are closer than this may fall either way: similarities are
#: rounded to float32. Wider gaps must be decided as float64 decides them.
NEAR_TIE = 1e-6


@dataclass(frozen=True)
class Case:
    """One problem. `routes` and `lengths` (valid text tokens) have one entry a sample."""

    name: str
    grid: Triple
    tile: Triple
    window: Triple
    bucket: Triple
    keep: int
    routes: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...] = ()
    text: int = 0
    coreset_keys: str = "query"
    head_dim: int = 64
    dtype: str = "bfloat16"
    layout: str = "contiguous"
    magnitude: float = 1.0
    profile: str = ""  # of the logits along the keys, see kernel_call.LEVELS

    @property
    def video(self) -> int:
        return math.prod(self.grid)

    @property
    def batch(self) -> int:
        return len(self.routes)

    @property
    def heads(self) -> int:
        return len(self.routes[0])

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def valid(self, sample: int) -> int:
        """Tokens of a sample that are not padding."""
        return self.video + (self.lengths[sample] if self.text else 0)

    def __str__(self) -> str:
        return f"{self.name}-{self.dtype}-D{self.head_dim}"


@dataclass(frozen=True)
class Selection:
    """The coreset of one head: token ids, bucket by bucket."""

    kept_queries: Tensor  # [G, keep]
    dropped_queries: Tensor  # [G, K - keep]
    kept_keys: Tensor  # [G, keep]


def bucket_ids(grid: Triple, bucket: Triple) -> Tensor:
    """Token ids of every bucket in raster order, [G, K]."""
    ids = torch.arange(math.prod(grid)).view(grid)
    blocks = ids.unfold(0, bucket[0], bucket[0]).unfold(1, bucket[1], bucket[1]).unfold(2, bucket[2], bucket[2])
    return blocks.reshape(-1, math.prod(bucket))  # [G, K]


def select(case: Case, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kept and dropped token ids of one head and the margin of each bucket's decision.

    `tokens` [S, D] -> [G, keep], [G, K - keep], [G].
    """
    ids = bucket_ids(case.grid, case.bucket).to(tokens.device)  # [G, K]
    t, h, w = case.bucket
    centre = (t // 2 * h + h // 2) * w + w // 2
    unit = functional.normalize(tokens.double(), dim=-1, eps=1e-12)[ids]  # [G, K, D]
    similarity = (unit * unit[:, centre : centre + 1]).sum(-1)  # [G, K]
    similarity[:, centre] = -math.inf  # stays, and leads its list
    ascending, order = similarity.sort(dim=1, stable=True)  # [G, K]
    ranked = ids.gather(1, order)  # [G, K]
    dropping = case.keep < ids.shape[1]
    margin = (
        ascending[:, case.keep] - ascending[:, case.keep - 1] if dropping else torch.full_like(ascending[:, 0], 9.0)
    )
    return ranked[:, : case.keep], ranked[:, case.keep :], margin


def select_head(case: Case, query: Tensor, key: Tensor) -> Selection:
    """The coreset of one head from its [S+T, D] tensors."""
    kept, dropped, _ = select(case, query[: case.video])
    keys = select(case, key[: case.video])[0] if case.coreset_keys == "key" else kept
    return Selection(kept, dropped, keys)


def near_ties(case: Case, tokens: Tensor, kept: Tensor) -> int:
    """Checks `kept` [G, keep] of one head against float64; returns how many near ties fell the other way."""
    wanted, _, margin = select(case, tokens)
    differs = (kept.sort(dim=1).values != wanted.sort(dim=1).values).any(1)  # [G]
    assert not (differs & (margin >= NEAR_TIE)).any(), (
        f"{case}: {int((differs & (margin >= NEAR_TIE)).sum())} buckets of {len(kept)} are decided wrongly, "
        f"margins up to {margin[differs].max():.3g}"
    )
    return int(differs.sum())


def visible_tiles(tiles: int, window: int, tile: int) -> tuple[int, ...]:
    """Along one axis: the window around its centre, which is the query's tile clamped away from the border."""
    if window >= tiles:
        return tuple(range(tiles))
    centre = min(max(tile, window // 2), tiles - 1 - window // 2)
    return tuple(range(centre - window // 2, centre + window // 2 + 1))


def sliding_blocks(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (video queries, video keys): all queries of a pair see all its keys, and nothing else."""
    coordinates = torch.stack(torch.meshgrid(*map(torch.arange, case.grid), indexing="ij"), -1).view(-1, 3)  # [S, 3]
    tile_of = coordinates // torch.tensor(case.tile)  # [S, 3]
    axes = []
    for axis in range(3):
        tiles = case.grid[axis] // case.tile[axis]
        groups: dict[tuple[int, ...], list[int]] = {}
        for tile in range(tiles):
            groups.setdefault(visible_tiles(tiles, case.window[axis], tile), []).append(tile)
        axes.append([
            (torch.isin(tile_of[:, axis], torch.tensor(own)), torch.isin(tile_of[:, axis], torch.tensor(seen)))
            for seen, own in groups.items()
        ])  # fmt: skip
    for parts in itertools.product(*axes):
        queries, keys = (parts[0][i] & parts[1][i] & parts[2][i] for i in (0, 1))  # [S], [S]
        yield queries.nonzero().flatten(), keys.nonzero().flatten()


def blocks(
    case: Case, route: int, valid: int, selection: Selection, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (query token ids, key token ids) that make up one head."""
    everything = torch.arange(valid, device=device)
    text = everything[case.video :]
    if route == CORESET:
        yield torch.cat([selection.kept_queries.flatten(), text]), torch.cat([selection.kept_keys.flatten(), text])
    elif route == SLIDING:
        for queries, keys in sliding_blocks(case):
            yield queries.to(device), torch.cat([keys.to(device), text])
        if len(text):
            yield text, everything
    else:
        yield everything, everything


def attend_exactly(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(Q K^T * scale) V in float64, at most 2 GiB of logits at a time: [q, D], [k, D], [k, D] -> [q, D]."""
    key, value = key.double(), value.double()
    step = max(1, (2 << 30) // (8 * len(key)))
    return torch.cat([torch.softmax(part.double() @ key.T * scale, 1) @ value for part in query.split(step)])


def attend_torch(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The same through torch's attention in the inputs' dtype."""
    inputs = (tensor[None, None] for tensor in (query, key, value))  # [1, 1, tokens, D]
    return functional.scaled_dot_product_attention(*inputs, scale=scale)[0, 0]


def expected(
    case: Case, sample: int, head: int, inputs: tuple[Tensor, Tensor, Tensor], selection: Selection
) -> tuple[Tensor, Tensor]:
    """Output of one head, exact (float64) and by torch in the dtype: [S+T, D] each."""
    query, key, value = (tensor[sample, :, head] for tensor in inputs)  # [S+T, D]
    exact = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    by_torch = torch.zeros_like(query)
    scale = 1 / math.sqrt(case.head_dim)
    route = case.routes[sample][head]
    for q, k in blocks(case, route, case.valid(sample), selection, query.device):
        exact[q] = attend_exactly(query[q], key[k], value[k], scale)
        by_torch[q] = attend_torch(query[q], key[k], value[k], scale)
    if route == CORESET:
        centre = selection.kept_queries[:, :1].expand_as(selection.dropped_queries)
        exact[selection.dropped_queries] = exact[centre]
        by_torch[selection.dropped_queries] = by_torch[centre]
    return exact, by_torch
