# SPDX-License-Identifier: Apache-2.0
"""Decoding a video on several ranks: each has some rows of every frame.

A convolution needs the rows beside a rank's own ones, which are the first or last of its neighbours. So before every
convolution the ranks exchange their edge rows, and everything between convolutions stays where it is. A module that
needs all rows, such as an attention within a frame, gets them, and each rank keeps its own rows of the result. Nothing
is approximated: values differ from those of one rank by the rounding of convolutions over another number of rows.

    with decoding_rows(vae.decoder, RowSplit(latents.shape[-2], group, ranks, rank), ("AttentionBlock",)) as split:
        video = split.whole(vae.decode(split.own(latents)))

Letters: C channels, F, H, W frames, height, width; rows are the last dimension but one, at every scale.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from vorta_trt.model.parallel.groups import Group, joined

ROWS = -2  # dimension


class RowSplit:
    """How the rows of a frame are shared out over ranks, at any whole multiple of the smallest scale.

    Args:
        rows: Number of rows of a frame at the smallest scale.
        group: Process group of torch.distributed.
        ranks: How many there are.
        rank: This process' rank in its group.

    Raises:
        ValueError: There are fewer rows than ranks.
        Exception: The group cannot be used, see `joined`; only with more than one rank.
    """

    def __init__(self, rows: int, group: Group, ranks: int, rank: int) -> None:
        if rows < ranks:
            raise ValueError(f"{rows} rows of latents on {ranks} ranks: must be at least one for each; use fewer GPUs")
        bounds = [rows * each // ranks for each in range(ranks + 1)]
        self._begin, self.counts = bounds[rank], tuple(b - a for a, b in zip(bounds, bounds[1:], strict=False))
        self._group, self._ranks, self._rank = joined(group) if ranks > 1 else None, ranks, rank

    def own(self, tensor: Tensor) -> Tensor:
        """This rank's rows of a tensor that has all rows."""
        scale = tensor.shape[ROWS] // sum(self.counts)
        return tensor.narrow(ROWS, self._begin * scale, self.counts[self._rank] * scale)

    def whole(self, tensor: Tensor) -> Tensor:
        """All rows of a tensor of which every rank has its own."""
        scale = tensor.shape[ROWS] // self.counts[self._rank]
        most = max(self.counts) * scale
        filled = functional.pad(tensor, (0, 0, 0, most - tensor.shape[ROWS])).contiguous()
        parts = [torch.empty_like(filled) for _ in range(self._ranks)]
        distributed.all_gather(parts, filled, group=self._group)
        rows = [part.narrow(ROWS, 0, count * scale) for part, count in zip(parts, self.counts, strict=True)]
        return torch.cat(rows, dim=ROWS)

    def with_neighbours(self, tensors: Sequence[Tensor], count: int) -> list[Tensor]:
        """Tensors with `count` more rows on either side: those of the neighbours, zeros beyond the frame.

        Args:
            tensors: Tensors, whose edge rows are exchanged together.
            count: Number of rows on a side, at most as many as a rank has.
        """
        edges = [torch.cat((each.narrow(ROWS, 0, count), _last(each, count)), dim=ROWS) for each in tensors]
        sent = torch.cat([edge.flatten() for edge in edges])
        received = [torch.empty_like(sent) for _ in range(self._ranks)]
        distributed.all_gather(received, sent, group=self._group)
        sizes = [edge.numel() for edge in edges]
        beside = []
        for neighbour in (self._rank - 1, self._rank + 1):
            if 0 <= neighbour < self._ranks:
                found = received[neighbour].split(sizes)
                beside.append([flat.view(edge.shape) for flat, edge in zip(found, edges, strict=True)])
            else:
                beside.append([torch.zeros_like(edge) for edge in edges])
        return [
            torch.cat((_last(above, count), each, below.narrow(ROWS, 0, count)), dim=ROWS)
            for above, each, below in zip(beside[0], tensors, beside[1], strict=True)
        ]


@contextmanager
def decoding_rows(decoder: nn.Module, split: RowSplit, need_all_rows: Collection[str]) -> Iterator[RowSplit]:
    """Within the block, the modules of a decoder get the rows that they need from other ranks.

    Args:
        decoder: The decoder. Its convolutions must pad with zeros and have no stride; all other modules but those below
            must be elementwise in height.
        split: How the rows are shared out.
        need_all_rows: Class names of the modules that need all rows.

    Raises:
        ValueError: The decoder has a convolution of another kind.
    """
    whole = [module for module in decoder.modules() if type(module).__name__ in need_all_rows]
    inside = {part for module in whole for part in module.modules()}
    with ExitStack() as hooks:

        def add(module: nn.Module, before: Any, after: Any) -> None:
            hooks.callback(module.register_forward_pre_hook(before).remove)
            hooks.callback(module.register_forward_hook(after).remove)

        for module in whole:
            add(
                module,
                lambda module, given: (split.whole(given[0]), *given[1:]),
                lambda module, given, made: split.own(made),
            )
        for name, module in decoder.named_modules():
            if module in inside or not isinstance(module, nn.Conv2d | nn.Conv3d) or module.kernel_size[ROWS] == 1:
                continue
            count, odd = divmod(module.kernel_size[ROWS], 2)
            if not odd or module.stride[ROWS] != 1 or module.dilation[ROWS] != 1 or module.padding_mode != "zeros":
                raise ValueError(
                    f"{name}: a convolution with kernel {module.kernel_size}, stride {module.stride}, dilation "
                    f"{module.dilation} and {module.padding_mode} padding; rows are split for odd kernels without "
                    f"stride and with zeros around"
                )
            add(module, _neighbours(split, count), _cropped(count))
        yield split


def _neighbours(split: RowSplit, count: int) -> Any:
    """A pre-hook that adds the neighbours' rows to a convolution's input and to the earlier frames given with it."""

    def before(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        tensors = [each for each in given if isinstance(each, Tensor)]
        grown = iter(split.with_neighbours(tensors, count))
        return tuple(next(grown) if isinstance(each, Tensor) else each for each in given)

    return before


def _cropped(count: int) -> Any:
    """A hook that drops the added rows of a convolution's output, which lack neighbours of their own."""

    def after(module: nn.Module, given: Any, made: Tensor) -> Tensor:
        return made.narrow(ROWS, count, made.shape[ROWS] - 2 * count)

    return after


def _last(tensor: Tensor, count: int) -> Tensor:
    return tensor.narrow(ROWS, tensor.shape[ROWS] - count, count)
