# SPDX-License-Identifier: Apache-2.0
"""What is measured: video sizes of the models, their heads, and the routes of each kind of call.

Letters: B batch (always 1 here), S video tokens, T padded text tokens, V valid ones, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, Branch
from vorta_trt.model.precision import torch_dtype

FULL_SHARE = 0.002  # of the heads that the published routers send to the full branch
BRANCHES = ("full", "coreset", "sliding", "mixed")
OUTLIER_CHANNELS, OUTLIER_FACTOR = 4, 16.0


@dataclass(frozen=True)
class Subject:
    """A token grid with the head counts and valid text lengths that are measured on it unless others are asked for."""

    geometry: AttentionGeometry
    heads: tuple[int, ...]
    text_lengths: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Case:
    """One problem, B = 1; every branch and every peer is measured on the same tensors."""

    name: str
    geometry: AttentionGeometry
    heads: int
    text_length: int
    head_dim: int = 128
    dtype: str = "bf16"
    inputs: str = "normal"

    @property
    def valid(self) -> int:
        """S + V: tokens that are no padding."""
        return self.geometry.video_tokens + self.text_length

    def flops(self, branch: str) -> int:
        """Useful FLOPs of a call: both products over the pairs that the branches need, all heads."""
        return sum(
            count * self.geometry.attention_flops(kind, self.head_dim, self.text_length)
            for kind, count in head_counts(branch, self.heads).items()
        )

    def __str__(self) -> str:
        grid = "x".join(map(str, self.geometry.grid))
        text = f", {self.text_length} of {self.geometry.text_tokens} text tokens" if self.geometry.text_tokens else ""
        inputs = "" if self.inputs == "normal" else f", inputs with {self.inputs}"
        return f"{self.name}: grid {grid}{text}, N={self.heads}, D={self.head_dim}, {self.dtype}{inputs}"


@dataclass(frozen=True)
class Inputs:
    """Tensors of a case: query, key, value [1, S+T, N, D]; text_length int32 [1], or None without text."""

    query: Tensor
    key: Tensor
    value: Tensor
    text_length: Tensor | None

    def head(self, head: int, dtype: torch.dtype | None = None) -> Inputs:
        """One head, [1, S+T, 1, D] each, in `dtype`."""
        query, key, value = (tensor[:, :, head : head + 1].to(dtype) for tensor in (self.query, self.key, self.value))
        return Inputs(query, key, value, self.text_length)

    def heads(self, heads: Sequence[int]) -> Inputs:
        """Copies of some heads, [1, S+T, len(heads), D] each."""
        query, key, value = (tensor[:, :, list(heads)] for tensor in (self.query, self.key, self.value))
        return Inputs(query, key, value, self.text_length)

    def heads_first(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """[1, N, tokens, D] views of the first `tokens` tokens: torch's layout, without a copy."""
        query, key, value = (tensor[:, :tokens].transpose(1, 2) for tensor in (self.query, self.key, self.value))
        return query, key, value


Shape = tuple[int, int, int]


def _geometry(
    grid: Shape, tile: Shape, bucket: Shape = (2, 3, 2), keys: str = "query", text: int = 0
) -> AttentionGeometry:
    """A geometry that keeps 6 of a bucket's 12 tokens; fixed shapes keep the results of all versions comparable."""
    return AttentionGeometry(grid, tile, (3, 3, 3), bucket, 6, keys, text)


SUBJECTS = {
    "wan-1.3b": Subject(_geometry((21, 30, 52), (7, 15, 4), (3, 2, 2)), (12,)),
    "wan-14b": Subject(_geometry((20, 45, 80), (5, 9, 8)), (8, 40)),
    "hunyuan": Subject(_geometry((30, 45, 80), (6, 9, 8), keys="key", text=256), (8, 24), (77, 256)),
    # tiles of 384 = 3 x 128 tokens: the one grid here on which flash-attn-4's block lists can express the window
    "aligned": Subject(_geometry((30, 48, 80), (6, 8, 8)), (8,)),
}
#: Wan-like grids of about 1,000 to 10,000 tokens, N of Wan 1.3B.
SMALL = {
    "small-4x18x16": Subject(_geometry((4, 18, 16), (4, 3, 4)), (12,)),
    "small-6x20x20": Subject(_geometry((6, 20, 20), (6, 4, 4), (3, 2, 2)), (12,)),
    "small-6x24x32": Subject(_geometry((6, 24, 32), (6, 4, 8)), (12,)),
    "small-8x24x40": Subject(_geometry((8, 24, 40), (8, 8, 5)), (12,)),
    "small-6x30x52": Subject(_geometry((6, 30, 52), (6, 5, 13)), (12,)),
}
#: Sizes that tile and bucket do not divide, each followed by the nearest grid that they divide: what does it cost?
RAGGED = {
    "ragged-31x44x80": Subject(_geometry((31, 44, 80), (8, 15, 5)), (8,)),  # 121x704x1280
    "whole-32x45x80": Subject(_geometry((32, 45, 80), (8, 15, 5)), (8,)),
    "ragged-31x30x53": Subject(_geometry((31, 30, 53), (8, 6, 6)), (8,)),  # 121x480x848
    "whole-32x30x54": Subject(_geometry((32, 30, 54), (8, 6, 6)), (8,)),
    "ragged-21x45x80": Subject(_geometry((21, 45, 80), (7, 12, 5)), (8,)),  # 81x720x1280
    "whole-21x48x80": Subject(_geometry((21, 48, 80), (7, 12, 5), (3, 2, 2)), (8,)),
    "ragged-31x45x80": Subject(_geometry((31, 45, 80), (11, 9, 5), keys="key", text=256), (8,), (77,)),  # 121x720x1280
    "whole-33x45x80": Subject(_geometry((33, 45, 80), (11, 9, 5), (3, 1, 4), keys="key", text=256), (8,), (77,)),
}


def select_cases(
    names: Sequence[str] = (),
    heads: Sequence[int] = (),
    text_lengths: Sequence[int] = (),
    *,
    small: bool = False,
    head_dim: int = 128,
    dtype: str = "bf16",
    inputs: str = "normal",
) -> list[Case]:
    """The cases of a run: `names` (default: the models' or the small set), each at its own heads and text lengths.

    Raises ValueError for an unknown name, or a number that is out of range.
    """
    known = {**SUBJECTS, **SMALL, **RAGGED}
    chosen = list(names) or list(SMALL if small else SUBJECTS)
    for name in chosen:
        if name not in known:
            raise ValueError(f"geometry {name!r}: must be one of {', '.join(known)}")
    for count in heads:
        if count < 1:
            raise ValueError(f"heads {count}: must be at least 1; use e.g. 8")
    if head_dim % 8 or not 8 <= head_dim <= 256:
        raise ValueError(f"head dimension {head_dim}: must be a multiple of 8 from 8 to 256; use 128")
    cases = []
    for name in chosen:
        subject = known[name]
        for count in heads or subject.heads:
            for length in _lengths(subject, text_lengths):
                cases.append(Case(name, subject.geometry, count, length, head_dim, dtype, inputs))
    return cases


def _lengths(subject: Subject, wanted: Sequence[int]) -> Iterator[int]:
    text = subject.geometry.text_tokens
    for length in wanted if text and wanted else subject.text_lengths:
        if not 0 <= length <= text:
            raise ValueError(f"text length {length}: must be between 0 and the geometry's {text} text tokens")
        yield length


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Normal numbers; with `outliers`, four channels of the query and four others of the key are 16 times as large."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (1, case.geometry.tokens, case.heads, case.head_dim)
    dtype = torch_dtype(case.dtype)
    query, key, value = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    if case.inputs == "outliers":
        query[..., :OUTLIER_CHANNELS] *= OUTLIER_FACTOR
        key[..., OUTLIER_CHANNELS : 2 * OUTLIER_CHANNELS] *= OUTLIER_FACTOR
    length = None
    if case.geometry.text_tokens:
        length = torch.full((1,), case.text_length, dtype=torch.int32, device=device)  # [B]
    return Inputs(query, key, value, length)  # [B, S+T, N, D] each


def route_ids(branch: str, heads: int) -> list[int]:
    """The branch of every head. mixed: 0.2 % full, at least one head, then coreset and sliding in turn."""
    if branch not in BRANCHES:
        raise ValueError(f"branch {branch!r}: must be one of {', '.join(BRANCHES)}")
    if branch != "mixed":
        return [int(Branch[branch.upper()])] * heads
    full = max(1, round(FULL_SHARE * heads))
    sparse = (int(Branch.CORESET), int(Branch.SLIDING))
    return [int(Branch.FULL)] * full + [sparse[index % 2] for index in range(heads - full)]


def head_counts(branch: str, heads: int) -> dict[str, int]:
    """How many heads of a call take each of the three branches; those that none takes are left out."""
    ids = route_ids(branch, heads)
    counts = {kind.name.lower(): ids.count(int(kind)) for kind in Branch}
    return {kind: count for kind, count in counts.items() if count}


def checked_head(branch: str, heads: int) -> int:
    """The head that is checked for `branch`: the same one whether all heads take the branch or the routes are mixed."""
    ids = route_ids("mixed", heads)
    wanted = int(Branch[branch.upper()])
    return ids.index(wanted) if wanted in ids else heads - 1
