# SPDX-License-Identifier: Apache-2.0
"""Random problems of the kernels, drawn from a number: geometry, strides, types, text, batch and values.

No size has to divide another. Every tensor has a memory layout of its own, between guards and with poison in its gaps.
`studies/fuzz_kernels.py` runs thousands of these problems, the GPU tests run some; random_judge.py says whether a
result is right.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attention_inputs import CHARACTERS, realistic
from .mask_oracle import Pattern

#: What stands around tensors and in their gaps, as the bytes of an int16: NaN in float16 and bfloat16.
GUARD = -1
GUARD_ELEMENTS = 512
#: Entries of query, key and value beyond this would be infinite in float16.
LARGEST = 6e4
#: What is wrong with a problem that must be refused.
MISTAKES = (
    "even window", "window 0", "tile 0", "keep 0", "keep above bucket", "bucket of 65", "negative text", "scale",
    "head_dim", "dtype", "struct size", "no query", "no routes", "misaligned key", "output is query",
    "stride not of 16 bytes", "negative stride", "output rows overlap", "little workspace", "misaligned workspace",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Memory layout of a [B, L, N, D] tensor: axes from outermost to innermost, gaps after each, and repeated axes."""

    order: tuple[int, int, int] = (0, 1, 2)
    room: tuple[int, int, int] = (0, 0, 0)  # elements behind one entry of an axis, multiples of 8
    repeated: tuple[int, ...] = ()  # axes with stride 0

    def strides(self, sizes: tuple[int, int, int], head_dim: int) -> tuple[int, int, int]:
        stride, reach = [0, 0, 0], head_dim
        for axis in reversed(self.order):
            if axis in self.repeated:
                continue
            stride[axis] = reach + self.room[axis]
            reach = stride[axis] * sizes[axis]
        return stride[0], stride[1], stride[2]


@dataclass(frozen=True)
class RandomProblem:
    """One problem. The same number always gives the same problem, values included."""

    number: int
    pattern: Pattern
    routes: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]  # of the text, some of them out of range
    coreset_keys: str
    head_dim: int
    dtype: str
    scale: float  # 0: the default
    layouts: dict[str, Layout] = field(hash=False)
    magnitude: float  # of the query
    value_magnitude: float
    poison: str  # "", "nan", "inf": in some rows
    alike: bool  # tokens of a bucket are equal
    mistake: str  # "" if the problem is a valid one

    @property
    def batch(self) -> int:
        return len(self.routes)

    @property
    def heads(self) -> int:
        return len(self.routes[0])

    @property
    def length(self) -> int:
        return self.pattern.video + self.pattern.text

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def used_scale(self) -> float:
        return self.scale or self.head_dim**-0.5

    @property
    def few_rows(self) -> bool:
        """Whether rows of the output repeat: then a head's error is that of a few rows and does not average out."""
        return self.alike or 1 in self.layouts["query"].repeated

    @property
    def mild(self) -> bool:
        """Whether results in 8 bits can be expected to be within their limits."""
        return self.magnitude == 1 and not self.scale and not self.poison and not self.alike


def draw(number: int) -> RandomProblem:
    """Draws the problem of a number."""
    pick = random.Random(number)
    large, many = pick.random() < 0.01, pick.random() < 0.03
    most = 4000 if large else (100 if many else pick.choice((60, 500, 1200)))
    while True:
        grid = pick.randint(1, 12), pick.randint(1, 24), pick.randint(1, 32)
        if most // 16 <= math.prod(grid) <= most:
            break
    tile, bucket = (
        tuple(pick.randint(1, extent + 2 if pick.random() < 0.3 else max(1, extent // 2)) for extent in grid)
        for _ in range(2)
    )
    while math.prod(bucket) > 64 or (math.prod(bucket) > 16 and pick.random() < 0.6):
        bucket = tuple(max(1, entry - pick.randint(0, 2)) for entry in bucket)
    keep = pick.choice((1, math.prod(bucket), (math.prod(bucket) + 1) // 2, pick.randint(1, math.prod(bucket))))
    text = pick.choice((0, 0, pick.randint(1, 8), pick.randint(1, 300)))
    batch, heads = (1, 1) if large else ((pick.randint(1, 2), pick.randint(30, 45)) if many else (0, 0))
    if not batch:
        batch = pick.choice((1, 1, 2, 3))
        heads = pick.randint(1, max(1, 8 // batch))
    weights = [1, 1, 1] if pick.random() < 0.8 else [pick.random() for _ in range(3)]
    routes = tuple(
        tuple(pick.choice((0, -1, 3, 9)) if route == 0 and pick.random() < 0.1 else route
              for route in pick.choices((0, 1, 2), weights, k=heads))
        for _ in range(batch)
    )  # fmt: skip
    lengths = tuple(
        pick.choice((0, text, pick.randint(0, text), pick.randint(-5, text + 50))) if text else 0 for _ in range(batch)
    )
    head_dim = pick.choice((64, 128)) if pick.random() < 0.7 else 8 * pick.randint(1, 32)
    harsh = pick.random() < 0.4
    return RandomProblem(
        number=number,
        pattern=Pattern(grid, tile, tuple(pick.choice((1, 3, 3, 5, 7)) for _ in range(3)), bucket, keep, text),  # type: ignore[arg-type]
        routes=routes,
        lengths=lengths,
        coreset_keys=pick.choice(("query", "key")),
        head_dim=head_dim,
        dtype=pick.choice(("bfloat16", "float16")),
        scale=pick.uniform(0.02, 0.5) if harsh and pick.random() < 0.4 else 0.0,
        layouts={name: _draw_layout(pick, name) for name in ("query", "key", "value", "output")},
        magnitude=pick.choice((0.0, 0.01, 5.0, 50.0, 1000.0)) if harsh and pick.random() < 0.5 else 1.0,
        value_magnitude=pick.choice((1e-3, 1.0, 30.0)) if harsh else 1.0,
        poison=pick.choice(("nan", "inf")) if harsh and pick.random() < 0.4 else "",
        alike=harsh and pick.random() < 0.15,
        mistake=pick.choice(MISTAKES) if pick.random() < 0.03 else "",
    )


def _draw_layout(pick: random.Random, name: str) -> Layout:
    if pick.random() < 0.4:
        return Layout()
    order = [0, 1, 2]
    pick.shuffle(order)
    room = tuple(8 * pick.choice((0, 0, 1, 3, 17)) for _ in range(3))
    repeated = () if name == "output" or pick.random() < 0.85 else tuple(pick.sample(range(3), pick.randint(1, 2)))
    return Layout((order[0], order[1], order[2]), (room[0], room[1], room[2]), repeated)


@dataclass
class Placed:
    """A tensor in the middle of a guarded allocation."""

    memory: Tensor  # int16, flat
    tensor: Tensor  # [B, L, N, D]

    def untouched(self) -> Tensor:
        """Whether the guards and the gaps are as they were, a bool on the device. The tensor's elements are reset."""
        self.tensor.view(torch.int16).fill_(GUARD)
        return (self.memory == GUARD).all()


def place(problem: RandomProblem, name: str) -> Placed:
    """Memory for the tensor of this name, all of it poison."""
    sizes = problem.batch, problem.length, problem.heads
    stride = problem.layouts[name].strides(sizes, problem.head_dim)
    reach = problem.head_dim + sum((size - 1) * step for size, step in zip(sizes, stride, strict=True))
    memory = torch.full((reach + 2 * GUARD_ELEMENTS,), GUARD, dtype=torch.int16, device="cuda")
    tensor = memory.view(problem.torch_dtype).as_strided((*sizes, problem.head_dim), (*stride, 1), GUARD_ELEMENTS)
    return Placed(memory, tensor)


def make_values(problem: RandomProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B, L, N, D] in float32; repeated axes are repeated, padded text is NaN."""
    generator = torch.Generator("cuda").manual_seed(problem.number)
    characters = CHARACTERS if problem.magnitude <= 1 else ("normal",)
    shape = (problem.batch, problem.length, problem.heads, problem.head_dim)
    query, key, value = realistic(shape, generator, characters)
    query *= problem.magnitude
    value *= problem.value_magnitude
    pick = random.Random(problem.number + 1)
    if problem.alike:
        step = pick.randint(2, 9)
        for tensor in (query, key):
            tensor[:, : problem.pattern.video] = tensor[:, ::step][:, :1].expand_as(tensor[:, : problem.pattern.video])
            tensor[:, : problem.pattern.video : step] = 0
    if problem.poison:
        for tensor in pick.sample((query, key, value), pick.randint(1, 3)):
            for _ in range(pick.randint(1, 3)):
                row = tuple(pick.randrange(size) for size in shape[:3])
                tensor[row] = float(problem.poison) * pick.choice((1, -1))
    tensors = []
    for name, tensor in zip(("query", "key", "value"), (query, key, value), strict=True):
        tensor = torch.where(tensor.isfinite(), tensor.clamp(-LARGEST, LARGEST), tensor)
        for axis in problem.layouts[name].repeated:
            tensor = tensor.narrow(axis, 0, 1).expand_as(tensor)
        tensor = tensor.clone()
        if 1 not in problem.layouts[name].repeated and 0 not in problem.layouts[name].repeated:
            for sample, length in enumerate(problem.lengths):
                tensor[sample, problem.pattern.video + min(max(length, 0), problem.pattern.text) :] = torch.nan
        tensors.append(tensor)
    return tensors[0], tensors[1], tensors[2]
