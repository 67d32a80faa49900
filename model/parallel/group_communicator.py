# SPDX-License-Identifier: Apache-2.0
"""`GroupCommunicator`: the library's communicator of the ranks of a process group, watched and shared."""

from __future__ import annotations

import gc
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
import torch.distributed as dist

from vorta_trt.model.parallel.exchange_watch import ExchangeWatch
from vorta_trt.plugins import communicator
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.library import LibraryError, PluginLibrary

CUDA: Final = "cuda"
TIMEOUT: Final = 300.0  # seconds that an exchange may take
PATIENCE: Final = 10.0  # seconds that leaving waits for exchanges

_LIVE: weakref.WeakValueDictionary[tuple[str, torch.device, int], GroupCommunicator] = weakref.WeakValueDictionary()


class GroupCommunicator:
    """A communicator that this rank leaves when the last reference to this object is dropped. `of` makes it.

    CUDA graphs that hold its exchanges have to be destroyed before, because NCCL waits for them.

    Attributes:
        members: Global ranks of the group.
        device: This rank's GPU.
    """

    def __init__(
        self,
        library: PluginLibrary,
        members: tuple[int, ...],
        rank: int,
        identity: bytes,
        device: torch.device,
        timeout: float,
    ) -> None:
        self.members, self.device = members, device
        ranks = len(members)

        def check() -> str:
            try:
                with _current(device):
                    communicator.check(library, ranks)
            except LibraryError as error:
                return f"rank {rank}: {error}"
            return ""

        what = f"rank {rank}: exchanges of {ranks} ranks"
        joining = ExchangeWatch(what, timeout, lambda: "", gpu=device.index)
        try:
            with joining(lambda: None), _current(device):
                communicator.join(library, identity, ranks, rank)
        finally:
            joining.stop()
        self._watch = ExchangeWatch(what, timeout, check, gpu=device.index)
        self._joined = (library, ranks, device, self._watch)
        self._leave = weakref.finalize(self, _leave, *self._joined)
        self._leave.atexit = False

    @classmethod
    def of(
        cls, library: PluginLibrary, group: dist.ProcessGroup, device: torch.device, timeout: float = TIMEOUT
    ) -> GroupCommunicator:
        """The communicator of a group: the one that this process has, or a new one. All ranks of the group call it.

        A new one is made of an id that the first rank broadcasts, and exchanges known values between every two ranks.

        Args:
            library: Library that the communicator belongs to; each library has its own.
            group: Process group of torch.distributed.
            device: This rank's GPU.
            timeout: Seconds that an exchange may take. After that the process ends with SIGABRT, as it does when
                torch.distributed exchanges.

        Raises:
            VortaError: A rank has a communicator of as many ranks already, and not all ranks have that of this group.
            LibraryError: There is no NCCL, or the ranks do not reach each other.
        """
        members = tuple(dist.get_process_group_ranks(group))
        if cls.find(library, len(members), device) is not None:
            gc.collect()  # an unused communicator here may be collected already on another rank
        live = cls.find(library, len(members), device)
        states: list[tuple[int, ...] | None] = [None] * len(members)
        dist.all_gather_object(states, None if live is None else live.members, group=group)
        if live is not None and all(state == members for state in states):
            return live
        kept = [(rank, state) for rank, state in zip(members, states, strict=True) if state is not None]
        if kept:
            rank, state = next((each for each in kept if each[1] != members), kept[0])
            raise VortaError(
                f"group of ranks {list(members)}: rank {rank} has a communicator of {len(state)} ranks already, of "
                f"{list(state)}; let go of the models or engines that have it first, on all ranks"
            )
        identity = [communicator.create_id(library) if group.rank() == 0 else b""]
        dist.broadcast_object_list(identity, src=members[0], group=group)
        made = cls(library, members, group.rank(), identity[0], device, timeout)
        _LIVE[str(library.path), device, len(members)] = made
        return made

    @classmethod
    def find(cls, library: PluginLibrary, ranks: int, device: torch.device) -> GroupCommunicator | None:
        """The communicator of that many ranks, if this process has one."""
        return _LIVE.get((str(library.path), device, ranks))

    def watched(self) -> AbstractContextManager[object]:
        """Limits the time of what is enqueued inside on the current stream; not of what a CUDA graph captures."""
        if self.device.type == CUDA and torch.cuda.is_current_stream_capturing():
            return nullcontext()
        return self._watch(self._mark)

    def abort(self) -> None:
        """Leaves at once, without waiting for anybody: the other ranks may be gone. Nothing may use it afterwards."""
        if self._leave.detach():
            _leave(*self._joined, abort=True)

    def _mark(self) -> torch.cuda.Event | None:
        return torch.cuda.current_stream(self.device).record_event() if self.device.type == CUDA else None


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current device, by which the library finds a communicator."""
    return torch.cuda.device(device) if device.type == CUDA else nullcontext()


def _leave(library: PluginLibrary, ranks: int, device: torch.device, watch: ExchangeWatch, abort: bool = False) -> None:
    watch.stop()
    abort = abort or not watch.wait(PATIENCE)
    with _current(device):
        communicator.leave(library, ranks, abort)
