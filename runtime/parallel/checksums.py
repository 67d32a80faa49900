# SPDX-License-Identifier: Apache-2.0
"""Checksums of tensors. Ranks compare them to notice when they no longer compute the same values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vorta_trt.runtime.parallel.errors import ParallelError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MULTIPLIER = 0x9E3779B1  # odd, so that no bit of a position is lost


class RankDifferenceError(ParallelError):
    """Ranks that should hold the same values do not."""


def checksum(tensor: Tensor) -> int:
    """Checksum of a tensor's bits and their order; waits for the GPU.

    Two tensors that differ in exactly one element have different checksums.
    """
    bits = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()]).flatten().to(torch.int64)
    places = torch.arange(1, bits.numel() + 1, device=bits.device, dtype=torch.int64) * MULTIPLIER
    return int((bits * (places | 1)).sum())  # modulo 2^64


def check_same(checksums: Sequence[int], what: str) -> None:
    """Raises RankDifferenceError, with the ranks, unless all checksums are equal.

    Args:
        checksums: The checksum of each rank, in rank order.
        what: Name of the tensor, for the error message.
    """
    ranks: dict[int, list[int]] = {}
    for rank, value in enumerate(checksums):
        ranks.setdefault(value, []).append(rank)
    if len(ranks) == 1:
        return
    groups = sorted(ranks.values(), key=lambda group: (-len(group), group))
    most, *others = (f"rank{'s' if len(group) > 1 else ''} {', '.join(map(str, group))}" for group in groups)
    raise RankDifferenceError(
        f"{what}: {' and '.join(others)} have other values than {most}; a GPU or a kernel computes wrong or otherwise;"
        f" run vorta-trt doctor on each, and without --strict only if that is known and harmless"
    )
