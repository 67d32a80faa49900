# SPDX-License-Identifier: Apache-2.0
"""The expected results of the kernels, written from the method's definition, with none of the package's code.

Outputs are computed in float64, and also in the kernels' own dtype with torch's attention on gathered tokens: a kernel
may err at most twice as much as torch does.

Letters: B batch, S video tokens, T padded text tokens, N heads, D head dim, G buckets, K tokens
of a whole bucket.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
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
    precision: str = "same"
    profile: str = ""  # of the logits along the keys, see kernel_call.LEVELS

    @property
    def video(self) -> int:
        return math.prod(self.grid)

    @property
    def kept(self) -> int:
        """Video tokens that a coreset head keeps."""
        return int(buckets_of(self).keep.sum())

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
    """The coreset of one head: token ids, one bucket after the other, the centre before the others it keeps."""

    kept_queries: Tensor  # [kept]
    dropped_queries: Tensor  # [S - kept]
    kept_keys: Tensor  # [kept]


@dataclass(frozen=True)
class Buckets:
    """The buckets of a grid in raster order; the last along an axis may be shorter.

    Attributes:
        ids: Token ids of every bucket in raster order, -1 behind the last, [G, K].
        size: Number of tokens of every bucket, [G].
        keep: Number of tokens that every bucket keeps, its centre included, [G].
        centre: Token id of every bucket's centre, [G].
    """

    ids: Tensor
    size: Tensor
    keep: Tensor
    centre: Tensor

    def pad(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """One list of token ids as rows of `counts` [G] ids, -1 behind the last: [sum of counts] -> [G, K]."""
        place = torch.arange(self.ids.shape[1], device=tokens.device)  # [K]
        rows = torch.full_like(self.ids, -1)
        rows[place < counts[:, None]] = tokens
        return rows


def buckets_of(case: Case, device: torch.device | str = "cpu") -> Buckets:
    axes = [torch.arange(extent) for extent in case.grid]
    token = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)  # [S, 3]
    bucket, grid = torch.tensor(case.bucket), torch.tensor(case.grid)
    counts = -(-grid // bucket)  # along each axis
    place = token // bucket  # [S, 3]
    index = (place[:, 0] * counts[1] + place[:, 1]) * counts[2] + place[:, 2]  # [S]
    order, size = index.argsort(stable=True), index.bincount()  # [S], [G]
    ids = nn.utils.rnn.pad_sequence(order.split(size.tolist()), batch_first=True, padding_value=-1)  # [G, K]
    origin = token[ids[:, 0]]  # [G, 3]
    centre = origin + torch.minimum(bucket, grid - origin) // 2  # [G, 3]
    centre_id = (centre[:, 0] * grid[1] + centre[:, 1]) * grid[2] + centre[:, 2]  # [G]
    keep = (size * case.keep // math.prod(case.bucket)).clamp(min=1)  # [G]
    return Buckets(*(tensor.to(device) for tensor in (ids, size, keep, centre_id)))


def select(case: Case, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kept and dropped token ids of one head and the margin of each bucket's decision.

    `tokens` [S, D] -> [kept], [S - kept], [G].
    """
    buckets = buckets_of(case, tokens.device)
    ids, keep = buckets.ids, buckets.keep[:, None]  # [G, K], [G, 1]
    unit = functional.normalize(tokens.double(), dim=-1, eps=1e-12)  # [S, D]
    similarity = (unit[ids] * unit[buckets.centre][:, None]).sum(-1)  # [G, K]
    similarity = similarity.nan_to_num(nan=2.0)  # ranks behind every cosine
    similarity[ids < 0] = 3.0
    similarity[ids == buckets.centre[:, None]] = -math.inf  # stays, and leads its list
    ascending, order = similarity.sort(dim=1, stable=True)  # [G, K]
    ranked = ids.gather(1, order)  # [G, K]
    place = torch.arange(ids.shape[1], device=ids.device)  # [K]
    last_kept, first_dropped = (
        ascending.gather(1, at.clamp(max=ids.shape[1] - 1)).squeeze(1) for at in (keep - 1, keep)
    )  # [G], [G]
    margin = torch.where(buckets.keep < buckets.size, first_dropped - last_kept, 9.0)
    return ranked[place < keep], ranked[(place >= keep) & (ranked >= 0)], margin


def select_head(case: Case, query: Tensor, key: Tensor) -> Selection:
    """The coreset of one head from its [S+T, D] tensors."""
    kept, dropped, _ = select(case, query[: case.video])
    keys = select(case, key[: case.video])[0] if case.coreset_keys == "key" else kept
    return Selection(kept, dropped, keys)


def near_ties(case: Case, tokens: Tensor, kept: Tensor) -> int:
    """Checks `kept` of one head against float64; returns how many near ties fell the other way."""
    wanted, _, margin = select(case, tokens)
    buckets = buckets_of(case, tokens.device)
    ours, theirs = (buckets.pad(ids, buckets.keep).sort(dim=1).values for ids in (kept, wanted))
    differs = (ours != theirs).any(1)  # [G]
    assert not (differs & (margin >= NEAR_TIE)).any(), (
        f"{case}: {int((differs & (margin >= NEAR_TIE)).sum())} buckets of {len(margin)} are decided wrongly, "
        f"margins up to {margin[differs].max():.3g}"
    )
    return int(differs.sum())


def check_selection(case: Case, selection: Selection, query: Tensor, key: Tensor) -> int:
    """Checks the lists of one head with the video tokens `query` and `key` [S, D]; returns its near ties."""
    buckets = buckets_of(case, query.device)
    for kept in (selection.kept_queries, selection.kept_keys):
        assert torch.equal(buckets.pad(kept, buckets.keep)[:, 0], buckets.centre), f"{case}: centre first"
    halves = (
        buckets.pad(selection.kept_queries, buckets.keep),
        buckets.pad(selection.dropped_queries, buckets.size - buckets.keep),
    )
    both = torch.cat(halves, 1).sort(1).values[:, -buckets.ids.shape[1] :]  # [G, K], -1 in front
    assert torch.equal(both, buckets.ids.sort(1).values), f"{case}: kept and dropped tokens make up the bucket"
    ties = near_ties(case, query, selection.kept_queries)
    if case.coreset_keys == "key":
        return ties + near_ties(case, key, selection.kept_keys)
    assert torch.equal(selection.kept_keys, selection.kept_queries)
    return ties


def visible_tiles(tiles: int, window: int, tile: int) -> tuple[int, ...]:
    """Tiles that a query sees along one axis: the window around its tile, moved to lie inside the grid."""
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
        tiles = -(-case.grid[axis] // case.tile[axis])
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
        yield torch.cat([selection.kept_queries, text]), torch.cat([selection.kept_keys, text])
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
    """softmax(Q K^T * scale) V by torch's attention in the inputs' dtype: [q, D], [k, D], [k, D] -> [q, D]."""
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
        buckets = buckets_of(case, query.device)
        centre = buckets.centre.repeat_interleave(buckets.size - buckets.keep)  # [S - kept]
        exact[selection.dropped_queries] = exact[centre]
        by_torch[selection.dropped_queries] = by_torch[centre]
    return exact, by_torch
