# SPDX-License-Identifier: Apache-2.0
"""What an engine that several GPUs share needs besides its inputs: a communicator, its rank, and an order of heads.

The engine's layers exchange tokens and heads by themselves, over the communicator that the process has for the engine's
number of GPUs. Every rank gives the engine the same complete inputs and gets the complete outputs.

Letters: P ranks, L layers, B batch, N heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.model.parallel.group_communicator import TIMEOUT, GroupCommunicator
from vorta_trt.model.parallel.groups import Group, joined
from vorta_trt.model.parallel.placement import BranchCosts, head_order
from vorta_trt.plugins.communicator import rank_of
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.library import LibraryError, PluginLibrary


@contextmanager
def engine_ranks(
    library: PluginLibrary, group: Group, device: torch.device, timeout: float = TIMEOUT
) -> Iterator[None]:
    """Joins the communicator of a group's ranks for engines on a GPU, and leaves it in the end.

    Args:
        library: The plugin library that the engines call; each library has its own communicators.
        group: The process group of torch.distributed with the ranks that share an engine's pass. All of them must call
            this function.
        device: This rank's GPU.
        timeout: Seconds that an engine's run may take, after which the process ends.

    Raises:
        VortaError: See `GroupCommunicator.of`.
        Exception: Whatever `joined` raises for a group that this process is not in.
    """
    communicator = GroupCommunicator.of(library, joined(group), device, timeout)
    try:
        yield
    except BaseException:
        communicator.abort()
        raise


class EngineRank:
    """The two inputs of an engine for P GPUs that its caller does not give: the rank and the order of heads.

    The first call has its heads in order. Each later call places the heads by the routes of the call before, which are
    the same on all ranks, because the routes of a step differ little from those of the step before.

    Args:
        library: The plugin library that the engine calls.
        metadata: Metadata of the engine.
        source: The bundle, for error messages.
        device: The engine's GPU, such as "cuda:0".

    Attributes:
        rank: Rank of this process among the P that share the engine.

    Raises:
        VortaError: This process is not one of P that share the engine.
    """

    def __init__(self, library: PluginLibrary, metadata: ModelMetadata, source: object, device: str) -> None:
        self._ranks, self._library, self._device = metadata.ulysses, library, torch.device(device)
        self._costs = BranchCosts.of(metadata.attention_geometry, metadata.attention_precision)
        self._orders = torch.arange(metadata.num_heads, dtype=torch.int32).expand(metadata.num_layers, -1).contiguous()
        try:
            with torch.cuda.device(device) if torch.cuda.is_available() else nullcontext():
                self.rank = rank_of(library, self._ranks)
        except LibraryError as error:
            raise VortaError(
                f"{source}: is built for {self._ranks} GPUs that share every pass, and this process is not one of "
                f"them; run it with --gpus {self._ranks} ({error})"
            ) from error

    def inputs(self) -> dict[str, Tensor]:
        """The inputs `rank`, int32 [1], and `head_orders`, int32 [L, N], for the next call."""
        return {"rank": torch.tensor([self.rank], dtype=torch.int32), "head_orders": self._orders}

    def watched(self) -> AbstractContextManager[object]:
        """Limits the time of the run that is launched inside the block, if `engine_ranks` has joined the ranks."""
        communicator = GroupCommunicator.find(self._library, self._ranks, self._device)
        return nullcontext() if communicator is None else communicator.watched()

    def place(self, routes: Tensor) -> None:
        """Places the heads of the next call by the routes [L, B, N] of this one."""
        self._orders = head_order(routes, self._costs, self._ranks).to(torch.int32)
