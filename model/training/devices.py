# SPDX-License-Identifier: Apache-2.0
"""Processes and devices of a run: accelerate finds them; the objective is replicated on them, or sharded over them.

Replicated (DistributedDataParallel): every device holds the whole model; gradients, of the routers alone, are averaged.
Sharded (FSDP2): every device holds its part of the frozen weights, and all weights of one block at a time.
"""

from __future__ import annotations

import atexit
import gc
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn

from vorta_trt.model.router import Router

DEVICES = ("auto", "cpu", "cuda")


def check_device(device: str) -> None:
    """Raises ValueError for a device that is unknown or not there."""
    if device not in DEVICES:
        raise ValueError(f"device {device!r}: must be one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch finds no CUDA GPU here; use --device cpu, which suits small models only")


def make_accelerator(device: str) -> Any:
    """Makes accelerate's Accelerator for the processes that were started.

    Precision is the model's own business (`TrainingSettings.precision`), so accelerate casts nothing.

    Raises:
        ValueError: The device is not there, or accelerate was set up for ways of distribution other than this module's.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    check_device(device)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ValueError(
            f"accelerate was set up for {accelerator.distributed_type.value}: not supported here; start the processes "
            f"with torchrun, and shard the model over them with --fsdp"
        )
    if accelerator.num_processes > 1:
        _end_group_at_exit()
    return accelerator


@cache
def _end_group_at_exit() -> None:
    """Ends the process group before the interpreter exits: threads of the group that run on abort the process."""
    atexit.register(_end_group)


def _end_group() -> None:
    gc.collect()  # models of a finished run refer to the group, whose threads end with the last reference
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def place(accelerator: Any, objective: nn.Module, blocks: tuple[str, ...], fsdp: bool) -> nn.Module:
    """Puts the objective on its device or devices.

    Args:
        accelerator: Accelerator of the library accelerate.
        objective: Model and loss.
        blocks: Class names of the transformer blocks.
        fsdp: Whether to shard it instead of replicating it.
    """
    if not fsdp:
        placed: nn.Module = accelerator.prepare(objective)
        return placed
    if accelerator.num_processes == 1 and "WORLD_SIZE" not in os.environ:
        raise ValueError("--fsdp: there is one process, nothing to shard over; start several, e.g. with torchrun")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # Routers are units of their own: they run before their block, and are float32 where it is not.
    for kinds in ((Router.__name__,), blocks):
        for module in [*objective.modules()]:
            if type(module).__name__ in kinds:
                fully_shard(module, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


def accumulating(accelerator: Any, objective: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Surrounds a micro-batch's forward and backward pass: gradients are exchanged after the last one alone."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(is_last)
    elif not is_last:
        quiet: AbstractContextManager[None] = accelerator.no_sync(objective)
        return quiet
    return nullcontext()
