# SPDX-License-Identifier: Apache-2.0
"""Is it right? Errors of one head against the reference in float32, and torch's own errors in the same type.

Both sides compute block by block, so that 108,000 tokens fit beside the tensors of a real model.

Letters: S video tokens, T padded text tokens, V valid ones, D head dim, C kept tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.benchmarks.cases import Case, Inputs
from vorta_trt.model import Branch, routed_attention_reference
from vorta_trt.model.indices import window_groups
from vorta_trt.model.reference import select_coreset

FACTOR = 2.0  # times the error of torch's attention in the same type: the bound of flash-attention's own tests
FP8_BOUND = 5e-2  # relative error with attention_precision="fp8" on unit-normal inputs
LOGITS_BYTES = 1 << 30  # of a block of `dense_exactly`
SELECTION_BOUND = 2e-2  # of the same algorithm in float32, where a few near ties of the coreset fall otherwise


@dataclass(frozen=True)
class Expected:
    """One head of one branch: its output in float32 [1, S+T, 1, D], and torch's relative error in the case's type."""

    output: Tensor
    torch_error: float


def relative_error(output: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of `wanted`, in float64; infinite if anything is not finite."""
    if not bool(output.isfinite().all()):
        return float("inf")
    difference, norm = (output.double() - wanted.double()).norm(), wanted.double().norm()
    return float(difference / norm)


def expected(case: Case, inputs: Inputs, branch: str, head: int) -> Expected:
    """The expected output of head `head` on `branch`."""
    one = inputs.head(head)  # [1, S+T, 1, D]
    exact = one.head(0, torch.float32)
    if branch == "full":
        output = torch.zeros_like(exact.query)
        query, key, value = (tensor[0, : case.valid, 0] for tensor in (exact.query, exact.key, exact.value))  # [S+V, D]
        output[0, : case.valid, 0] = dense_exactly(query, key, value)
    else:
        route = torch.full((1, 1), int(Branch[branch.upper()]), dtype=torch.int32, device=one.query.device)  # [B, 1]
        output = routed_attention_reference(exact.query, exact.key, exact.value, route, case.geometry, one.text_length)
    return Expected(output, relative_error(by_torch(case, one, branch), output))


def dense_exactly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V in the inputs' type: [q, D], [k, D], [k, D] -> [q, D].

    The reference's computation in larger blocks, for a large GPU: in the reference's own blocks, 100,000 tokens take
    ten times as long as what is measured.
    """
    rows = max(1, LOGITS_BYTES // (key.element_size() * len(key)))
    scale = 1 / math.sqrt(query.shape[1])
    return torch.cat([torch.softmax(part * scale @ key.T, dim=1) @ value for part in query.split(rows)])


def by_torch(case: Case, one: Inputs, branch: str) -> Tensor:
    """The branch through torch's attention in the inputs' own type, on gathered tokens: [1, S+T, 1, D]."""
    geometry, valid = case.geometry, case.valid
    query, key, value = (tensor[0, :valid, 0] for tensor in (one.query, one.key, one.value))  # [S+V, D]
    output = torch.zeros_like(one.query)  # [1, S+T, 1, D]
    rows = output[0, :, 0]  # [S+T, D]
    text = torch.arange(geometry.video_tokens, valid, device=query.device)  # [V]
    if branch == "sliding":
        for queries, keys in window_groups(geometry):
            seen = torch.cat([keys.to(query.device), text])
            rows[queries.to(query.device)] = _attend(query[queries.to(query.device)], key[seen], value[seen])
        if len(text):
            rows[text] = _attend(query[text], key, value)
    elif branch == "coreset":
        video = geometry.video_tokens
        chosen = select_coreset(query[:video], geometry)
        keys = chosen.kept if geometry.coreset_keys == "query" else select_coreset(key[:video], geometry).kept  # [C]
        own, seen = torch.cat([chosen.kept, text]), torch.cat([keys, text])  # [C+V]
        out = _attend(query[own], key[seen], value[seen])  # [C+V, D]
        rows[:video], rows[video:valid] = out[chosen.rows], out[len(keys) :]
    else:
        rows[:valid] = _attend(query, key, value)
    return output


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by torch: [q, D], [k, D], [k, D] -> [q, D]."""
    output: Tensor = functional.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None])
    return output[0, 0]


def padding_is_zero(case: Case, output: Tensor) -> bool:
    """Rows of padded text are 0 in every head: output [1, S+T, N, D]."""
    return not bool(output[:, case.valid :].any())
