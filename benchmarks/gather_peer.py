# SPDX-License-Identifier: Apache-2.0
"""The coreset branch in torch, the way the published implementation does it: gather, attention, scatter.

All heads at once, bucket by bucket: similarities in the type of the inputs, argsort, gather of the kept tokens, one
attention, scatter of the outputs and of the copies for the dropped tokens.

Letters: N heads, S video tokens, V valid text tokens, D head dim, G buckets, K tokens of a bucket, C = G * keep.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vorta_trt.benchmarks.cases import Case, Inputs
from vorta_trt.benchmarks.peer import Prepared, Unavailable
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.boxes import box_centre
from vorta_trt.model.indices import bucket_tables


class GatheredAttention:
    """Index tables of one geometry on one device, made once and not timed."""

    def __init__(self, geometry: AttentionGeometry, text_length: int, device: torch.device) -> None:
        (kind, ids), *shorter = bucket_tables(geometry)
        if shorter:
            raise Unavailable(f"the bucket {geometry.bucket} does not divide the grid {geometry.grid}")
        table, centre = ids.to(device), box_centre(kind.shape)  # [G, K]
        self._centre = table[:, centre]  # [G]
        self._others = torch.cat([table[:, :centre], table[:, centre + 1 :]], dim=1)  # [G, K-1]
        self._stay = geometry.keep - 1
        self._keys_choose = geometry.coreset_keys == "key"
        self._video, self._text = geometry.video_tokens, text_length

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[1, N, S+V, D] each -> [1, N, S+V, D]."""
        chosen = self._choose(query)  # [1, N, G, K-1]
        key_chosen = self._choose(key) if self._keys_choose else chosen
        compact = (self._gather(query, chosen), self._gather(key, key_chosen), self._gather(value, key_chosen))
        output = functional.scaled_dot_product_attention(*compact)  # [1, N, C+V, D]
        return self._scatter(output, chosen)

    def _choose(self, tokens: Tensor) -> Tensor:
        """The other tokens of every bucket, from the least similar to the centre on: [1, N, G, K-1]."""
        centre = functional.normalize(tokens[:, :, self._centre], dim=-1)  # [1, N, G, D]
        others = functional.normalize(tokens[:, :, self._others], dim=-1)  # [1, N, G, K-1, D]
        return torch.einsum("bngd,bngkd->bngk", centre, others).argsort(dim=-1, stable=True)

    def _ids(self, chosen: Tensor) -> Tensor:
        """Positions among the others -> token ids."""
        return self._others.expand(*chosen.shape[:2], -1, -1).gather(-1, chosen)

    def _gather(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """The centres, the kept others, the valid text: [1, N, C+V, D]."""
        kept = self._ids(chosen[..., : self._stay]).flatten(2)  # [1, N, G * (keep-1)]
        others = tokens.gather(2, kept.unsqueeze(-1).expand(-1, -1, -1, tokens.shape[-1]))
        text = tokens[:, :, self._video : self._video + self._text]
        return torch.cat([tokens[:, :, self._centre], others, text], dim=2)

    def _scatter(self, output: Tensor, chosen: Tensor) -> Tensor:
        """Inverse of `_gather`; a dropped token gets its centre's output."""
        batch, heads, _, head_dim = output.shape
        buckets, kept = len(self._centre), len(self._centre) * self._stay
        centre, others, text = output.split([buckets, kept, self._text], dim=2)
        dropped = self._ids(chosen[..., self._stay :])  # [1, N, G, K-keep]
        copies = centre.unsqueeze(3).expand(-1, -1, -1, dropped.shape[-1], -1).flatten(2, 3)
        result = output.new_empty(batch, heads, self._video + self._text, head_dim)
        for ids, rows in (
            (self._centre.expand(batch, heads, -1), centre),
            (self._ids(chosen[..., : self._stay]).flatten(2), others),
            (dropped.flatten(2), copies),
        ):
            result.scatter_(2, ids.unsqueeze(-1).expand(-1, -1, -1, head_dim), rows)
        result[:, :, self._video :] = text
        return result


def prepare(case: Case, inputs: Inputs, backend: SDPBackend | None) -> Prepared:
    """Prepares the peer; with `backend` None, torch chooses the backend."""
    attention = GatheredAttention(case.geometry, case.text_length, inputs.query.device)
    tensors = inputs.heads_first(case.valid)  # [1, N, S+V, D]

    def run() -> Tensor:
        chosen: AbstractContextManager[None] = nullcontext() if backend is None else sdpa_kernel(backend)
        with chosen:
            return attention(*tensors)

    def exact(one: Inputs) -> Tensor:
        return attention(*one.heads_first(case.valid)).transpose(1, 2)  # [1, S+V, 1, D]

    note = f"similarities in {case.dtype}: near ties may fall otherwise; checked in fp32"
    return Prepared(run, lambda result: result.transpose(1, 2), note, exact)
