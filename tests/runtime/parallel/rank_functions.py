# SPDX-License-Identifier: Apache-2.0
"""What ranks do in tests; every process imports this."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from torch import distributed

from vorta_trt.runtime.parallel.layout import Layout
from vorta_trt.runtime.parallel.ranks import Ranks
from vorta_trt.runtime.parallel.world import World


def exchange_then_differ(world: World, scale: float) -> None:
    """Everything that ranks exchange, told to the launcher; then latents of which those of rank 1 differ in one bit."""
    ranks = Ranks(world, Layout(world.size, guidance=2), check_every=2)
    assert ranks.passes is not None and ranks.sharing is None
    own = torch.full((1, 2, 3), scale * (world.rank + 1))
    text = {"rows": torch.arange(6.0).view(2, 3), "valid": torch.tensor([True, False])} if world.is_first else None
    received = ranks.from_first(text, world.device)
    told: dict[str, Any] = {
        "gathered": world.gather(world.rank),
        "from the first": world.from_first(world.rank + 7),
        "passes": [sample.unique().tolist() for sample in ranks.passes(own)],
        "text": {name: tensor.tolist() for name, tensor in received.items()},
    }
    world.send(told)
    latents = torch.ones(1, 4, 2, 2)
    ranks.compare_step(0, latents)
    latents.view(torch.int32)[0, 3, 1, world.rank] += world.rank
    ranks.compare_step(1, latents)  # is not compared
    ranks.compare_step(2, latents)


def die_in_an_exchange(world: World, argument: None) -> None:
    """Rank 1 is killed while rank 0 waits for it."""
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.all_reduce(torch.ones(1))


def wait_for_ever(world: World, argument: None) -> None:
    """Until somebody ends it; says which process it is."""
    world.send(os.getpid())
    time.sleep(1000)
