# SPDX-License-Identifier: Apache-2.0
"""`Ranks`: everything that a pipeline exchanges with the other ranks, for any layout.

Every rank runs the same pipeline on the same request, so all ranks reach the same exchanges in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from vorta_trt.model.parallel.groups import EVERYONE
from vorta_trt.model.parallel.vae_rows import RowSplit
from vorta_trt.runtime.parallel.checksums import check_same, checksum
from vorta_trt.runtime.parallel.errors import StoppedError
from vorta_trt.runtime.parallel.layout import PASSES, Layout
from vorta_trt.runtime.parallel.world import World

Group = Any  # a process group of torch.distributed


class Ranks:
    """The ranks of one run.

    Args:
        world: This rank.
        layout: Which rank computes what.
        check_every: Interval, in steps, at which the ranks compare their latents; 0 for never.

    Attributes:
        world: This rank.
        layout: Which rank computes what.
        sharing: The process group of the ranks that share this rank's pass; None if this rank computes it alone.
        passes: Exchanges the samples of both passes of a step. None where this rank computes all passes.
    """

    def __init__(self, world: World, layout: Layout, check_every: int = 0) -> None:
        self.world, self.layout, self._check_every = world, layout, check_every
        sharers, partners = (
            [(ranks, world.group(ranks)) for ranks in groups] for groups in (layout.sharers(), layout.partners())
        )
        own = {name: _own(world.rank, groups) for name, groups in (("sharing", sharers), ("partners", partners))}
        self.sharing: Group | None = own["sharing"] if layout.sharing > 1 else None
        self.passes: PassExchange | None = None
        if layout.guidance > 1:
            self.passes = PassExchange(own["partners"], layout.pass_of(world.rank))

    def from_first(self, tensors: Mapping[str, Tensor] | None, device: torch.device) -> dict[str, Tensor]:
        """Sends tensors from rank 0 to all ranks; returns them by name on every rank.

        Args:
            tensors: The tensors, on rank 0; ignored on the other ranks.
            device: The device of the returned tensors.
        """
        known = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in (tensors or {}).items()}
        made = {}
        for name, (shape, dtype) in self.world.from_first(known).items():
            if self.world.is_first and tensors is not None:
                tensor = tensors[name].to(device).contiguous()
            else:
                tensor = torch.empty(shape, dtype=dtype, device=device)
            distributed.broadcast(tensor, src=0)
            made[name] = tensor
        return made

    def agree(self, stops: BaseException | None) -> None:
        """Lets rank 0 stop all ranks. All ranks must call it at the same point.

        Args:
            stops: The exception for which rank 0 stops, None if it goes on; ignored on the other ranks.

        Raises:
            BaseException: `stops`, on rank 0.
            StoppedError: Rank 0 stops; raised on the other ranks.
        """
        flag = torch.tensor([stops is not None])
        distributed.broadcast(flag, src=0)
        if bool(flag):
            raise stops if self.world.is_first and stops is not None else StoppedError("rank 0 has stopped the request")

    def rows(self, count: int) -> RowSplit:
        """How the rows of a frame are split over all ranks."""
        return RowSplit(count, EVERYONE, self.world.size, self.world.rank)

    def compare_step(self, step: int, latents: Tensor) -> None:
        """Every `check_every` steps, raises RankDifferenceError if the latents before the step differ between ranks."""
        if self._check_every and step % self._check_every == 0:
            self.compare(latents, f"latents before step {step}")

    def compare(self, tensor: Tensor, what: str) -> None:
        """Raises RankDifferenceError if a tensor differs between ranks; does nothing if `check_every` is 0."""
        if self._check_every:
            check_same(self.world.gather(checksum(tensor)), what)


class PassExchange:
    """Exchanges the samples of the two passes of a step, of which this rank computes one.

    Args:
        group: The two ranks with the same share of each pass; the rank of the conditional pass comes first.
        own: The pass of this rank: 0 for the conditional pass, 1 for the unconditional pass.
    """

    def __init__(self, group: Group, own: int) -> None:
        self.group, self.own = group, own

    def __call__(self, sample: Tensor) -> list[Tensor]:
        """Takes the sample that this rank computed; returns the conditional and the unconditional sample."""
        samples = [torch.empty_like(sample) for _ in range(PASSES)]
        distributed.all_gather(samples, sample.contiguous(), group=self.group)
        return samples


def _own(rank: int, groups: list[tuple[list[int], Group]]) -> Group:
    return next(group for ranks, group in groups if rank in ranks)
