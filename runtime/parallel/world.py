# SPDX-License-Identifier: Apache-2.0
"""`World`: this process as one rank of a run with one GPU per process; the same under our launcher and under torchrun.

The launcher tells each process its rank and the meeting point in environment variables: RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Tensors on GPUs are exchanged by NCCL, tensors on the CPU by gloo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from vorta_trt.runtime.parallel.errors import ParallelError
from vorta_trt.runtime.parallel.found_gpus import found_gpus
from vorta_trt.runtime.parallel.versions import check_alike, versions_here

TIMEOUT = 300.0  # seconds that a rank waits for the others in an exchange
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LOOPBACK = "lo"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
CPU, CUDA = "cpu", "cuda"
# When an exchange has timed out, torch's NCCL watchdog sleeps four times this many milliseconds before it ends the
# process, so that all ranks can write out their flight recorders. The default is 15,000 ms.
NCCL_DUMP_WAIT = ("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "500")
BACKENDS = {CPU: "gloo", CUDA: "cpu:gloo,cuda:nccl"}
Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """One process of several.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        device: The device that this process computes on.
        timeout: Seconds that an exchange may take, also in the groups that `group` makes.
        send: Sends a message to the process that launched this one; does nothing under torchrun.
    """

    rank: int
    size: int
    device: torch.device
    timeout: float = TIMEOUT
    send: Callable[[Any], None] = lambda message: None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which encodes text, writes files and reports."""
        return self.rank == 0

    def group(self, ranks: Sequence[int]) -> Any:
        """Makes a process group of some ranks. All ranks must make all groups, in the same order."""
        # Without its own time-out a group waits for half an hour, whatever the default group does.
        return distributed.new_group(list(ranks), timeout=timedelta(seconds=self.timeout))

    def gather(self, value: Value) -> list[Value]:
        """The values that all ranks give, in rank order; any object that can be pickled."""
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: Value) -> Value:
        """The value that rank 0 gives; the values of the other ranks are ignored."""
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]


def is_rank() -> bool:
    """Whether this process was started as a rank, by torchrun or a similar launcher."""
    return all(name in os.environ for name in NAMES)


@contextmanager
def join(
    kind: str | None = None, *, timeout: float = TIMEOUT, send: Callable[[Any], None] | None = None
) -> Iterator[World]:
    """Joins the other ranks. When the block ends without an error, waits until all ranks are there, and leaves them.

    Args:
        kind: "cuda" for the GPU with this process's LOCAL_RANK, or "cpu"; None takes GPUs if there are any.
        timeout: Seconds that an exchange may take before it is an error.
        send: See `World.send`.

    Raises:
        ParallelError: The environment variables of a rank are not set, a GPU is missing, or versions differ between
            ranks.
    """
    if missing := [name for name in NAMES if name not in os.environ]:
        raise ParallelError(f"{missing[0]}: is not set, so this is no rank; start it with torchrun, or with --gpus")
    rank, size, local = (int(os.environ[name]) for name in NAMES[:3])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    kind = kind or (CUDA if torch.cuda.is_available() else CPU)
    if kind == CUDA:
        check_gpus(here)
        torch.cuda.set_device(local)
    if here == size:  # all ranks are on this machine, which may have no network
        for name in INTERFACES:
            os.environ.setdefault(name, LOOPBACK)
    os.environ.setdefault(*NCCL_DUMP_WAIT)
    distributed.init_process_group(BACKENDS[kind], timeout=timedelta(seconds=timeout))
    device = torch.device(kind, local) if kind == CUDA else torch.device(kind)
    world = World(rank, size, device, timeout, send or World.send)
    check_alike(world.gather(versions_here(device)))
    yield world
    # After an error this is skipped: ending a group waits for its exchanges, and the other ranks may be gone.
    distributed.barrier()
    distributed.destroy_process_group()


def check_gpus(count: int) -> None:
    """Raises ParallelError unless this machine has that many GPUs; does not initialise any GPU."""
    found = torch.cuda.device_count()
    if found < count:
        raise ParallelError(f"gpus {count}: {found_gpus()}; give at most that many")
