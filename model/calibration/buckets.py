# SPDX-License-Identifier: Apache-2.0
"""Buckets of timesteps: neighbouring steps of a schedule that share their routes.

A bucket is (upper, lower), both included; buckets follow each other from much noise to little. All buckets have the
same number of steps of the schedule, give or take one. The border between two buckets lies halfway between the steps on
either side.

Letters: P denoising steps, K buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Bucket = tuple[float, float]


def make_buckets(timesteps: Sequence[float], count: int) -> tuple[Bucket, ...]:
    """Cuts a schedule's timesteps into `count` buckets.

    Raises:
        ValueError: `count` is below 1, or above the number of different timesteps.
    """
    steps = sorted({float(step) for step in timesteps}, reverse=True)
    if not 1 <= count <= len(steps):
        raise ValueError(
            f"buckets {count}: must be between 1 and the {len(steps)} different timesteps of the schedule; use 5"
        )
    first = [round(bucket * len(steps) / count) for bucket in range(count)]  # index of each bucket's first step
    borders = [steps[0], *((steps[index - 1] + steps[index]) / 2 for index in first[1:]), steps[-1]]
    return tuple(zip(borders, borders[1:], strict=False))


def bucket_of(timesteps: Sequence[float] | Tensor, buckets: Sequence[Bucket]) -> Tensor:
    """Returns the bucket of every timestep, int64 [P]: the nearest one outside of all, the noisier one on a border."""
    steps = torch.as_tensor(timesteps, dtype=torch.float64).cpu().view(-1, 1)  # [P, 1]
    upper, lower = torch.tensor(buckets, dtype=torch.float64).unbind(1)  # [K] each
    outside = torch.maximum(steps - upper, lower - steps).clamp_min(0)  # [P, K], distance to the bucket
    return outside.argmin(dim=1)  # the first of equals
