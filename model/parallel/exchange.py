# SPDX-License-Identifier: Apache-2.0
"""`HeadExchange`: from a rank's tokens with all heads to all tokens with the rank's heads, and back.

Queries, keys and values go together, in one all-to-all of each sample. What is sent is packed with the heads in the
order in which ranks take them, so a permutation of heads costs nothing. What is received needs no unpacking: its tokens
lie in order, with query, key and value side by side, and the attention reads them where they are. On the way back the
attention's output is sent as it is, and heads return to their own places as it is unpacked.

Every rank has all text rows. It computes its own heads for them, and an all-gather gives every rank the other heads.

Bytes of one exchange, of 16-bit elements and B = 1: a rank packs 6 R N D, sends and receives 6 R N D (P-1)/P; of the
output it sends and receives 2 R N D (P-1)/P, and unpacks 2 R N D.

Letters: P ranks, B batch, S video tokens, T text tokens, N heads, n = N / P heads of a rank, D head dim, R rows of a
shard, r video tokens of this rank (R without padding), C features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vorta_trt.model.parallel.shards import TokenShards

PARTS = 3  # query, key, value
_WIDEST = torch.complex128  # 16 bytes, the widest element that one thread copies


@dataclass(frozen=True)
class HeadExchange:
    """Moves heads and tokens between the ranks of a group.

    Attributes:
        group: P processes; all of them call the same methods in the same order.
        shards: Which video tokens each rank has.
        order: Int64 [N], a permutation of the heads; rank p takes those from p * n on. If it has fewer than all heads,
            only these are moved: N below is their number, except in the caller's tensors of tokens.
    """

    group: dist.ProcessGroup
    shards: TokenShards
    order: Tensor

    @property
    def own(self) -> Tensor:
        """The heads that this rank takes: int64 [n]."""
        own: Tensor = self._by_rank()[self.shards.rank]
        return own

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gives this rank's heads of all tokens.

        Args:
            query: [B, R + T, N, D], this rank's rows, and after them all text rows.
            key: Keys, of the shape and dtype of `query`.
            value: Values, of the shape and dtype of `query`.

        Returns:
            Query, key and value, [B, S + T, n, D] each, which share one block of memory.
        """
        shards, order = self.shards, self._by_rank()
        batch, rows, _, dim = query.shape
        text, count = rows - shards.rows, shards.count
        sizes = (PARTS, order.shape[1], dim)
        packed = query.new_empty(batch, shards.ranks, count, *sizes)  # [B, P, r, 3, n, D]
        whole = query.new_empty(batch, shards.tokens + text, *sizes)  # [B, S + T, 3, n, D]
        for part, tensor in enumerate((query, key, value)):
            _pick_heads(tensor[:, :count], order, packed[:, :, :, part].transpose(1, 2))
            if text:
                _pick_heads(tensor[:, shards.rows :], order[shards.rank], whole[:, shards.tokens :, part])
        for sample in range(batch):
            received, sent = whole[sample, : shards.tokens], packed[sample].flatten(0, 1)
            self._all_to_all(received, sent, shards.counts, (count,) * shards.ranks)
        query, key, value = whole.unbind(2)  # [B, S + T, n, D] each
        return query, key, value

    def to_tokens(self, attended: Tensor, heads: Tensor) -> None:
        """Gathers this rank's rows of all ranks' [B, S + T, n, D] into `heads` [B, R + T, N, D]; padding is 0."""
        shards, order = self.shards, self._by_rank()
        batch, tokens, own, dim = attended.shape
        text, count = tokens - shards.tokens, shards.count
        received = attended.new_empty(batch, shards.ranks, count, own, dim)  # [B, P, r, n, D]
        for sample in range(batch):
            sent = attended[sample, : shards.tokens].contiguous()  # [S, n, D]
            self._all_to_all(received[sample].flatten(0, 1), sent, (count,) * shards.ranks, shards.counts)
        _place_heads(received.transpose(1, 2), order, heads[:, :count])
        heads[:, count : shards.rows] = 0
        if text:
            of_text = attended[:, shards.tokens :].contiguous()  # [B, T, n, D]
            gathered = gather(of_text, self.group)  # [P, B, T, n, D]
            _place_heads(gathered.permute(1, 2, 0, 3, 4), order, heads[:, shards.rows :])

    def _by_rank(self) -> Tensor:
        return self.order.view(self.shards.ranks, -1)  # [P, n]

    def _all_to_all(
        self, received: Tensor, sent: Tensor, received_rows: tuple[int, ...], sent_rows: tuple[int, ...]
    ) -> None:
        """Exchanges rows with every rank; the ranks' rows lie one after the other."""
        even = len(set(self.shards.counts)) == 1  # NCCL's equal form
        of_received, of_sent = (None, None) if even else (list(received_rows), list(sent_rows))
        dist.all_to_all_single(received, sent, of_received, of_sent, group=self.group)


def gather(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Gathers a tensor of equal shape from every rank: [...] contiguous -> [P, ...]."""
    gathered = tensor.new_empty(group.size(), *tensor.shape)
    dist.all_gather(list(gathered.unbind(0)), tensor, group=group)  # its one-tensor form has two names, by version
    return gathered


def gather_shards(rows: Tensor, tokens: int, group: dist.ProcessGroup) -> Tensor:
    """The tokens of all ranks' shards without their padding: [B, R, C] -> [B, S, C] for S `tokens`."""
    return gather(rows.contiguous(), group).transpose(0, 1).flatten(1, 2)[:, :tokens]


def _pick_heads(tokens: Tensor, heads: Tensor, picked: Tensor) -> None:
    """picked[b, s, *i] = tokens[b, s, heads[*i]], for tokens [B, s, N, D] and any shape of heads, in one pass."""
    tokens, picked = _wide(tokens, picked)
    torch.ops.aten.index.Tensor_out(tokens, [None, None, heads], out=picked)


def _place_heads(picked: Tensor, heads: Tensor, tokens: Tensor) -> None:
    """The inverse: tokens[b, s, heads[p, i]] = picked[b, s, p, i], for tokens [B, s, N, D] and heads [P, n]."""
    tokens, picked = _wide(tokens, picked)
    tokens[:, :, heads] = picked


def _wide(*tensors: Tensor) -> list[Tensor]:
    """Views of the tensors with elements of 16 bytes, if heads of all of them are multiples of 16 bytes."""
    fits = all(tensor.shape[-1] * tensor.element_size() % _WIDEST.itemsize == 0 for tensor in tensors)
    return [tensor.view(_WIDEST) for tensor in tensors] if fits else list(tensors)
