# SPDX-License-Identifier: Apache-2.0
"""What ranks do in tests; every process imports this."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import distributed

from vorta_trt.runtime.parallel.world import World


def die_in_an_exchange(world: World, told: int) -> None:
    """Kills rank 1 while rank 0, which has sent a message, waits for it."""
    if world.is_first:
        world.send(world.from_first(told))
    else:
        world.from_first(0)
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.all_reduce(torch.ones(1))


def wait_for_ever(world: World, argument: None) -> None:
    """Sends the id of its process, and sleeps until the process is ended."""
    world.send(os.getpid())
    time.sleep(1000)
