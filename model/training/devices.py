# SPDX-License-Identifier: Apache-2.0
"""Processes and devices of a run: accelerate finds them; the objective is replicated on them, or sharded over them.

Replicated (DistributedDataParallel): every device holds the whole model; gradients, of the routers alone, are averaged.
Sharded (FSDP2): every device holds its part of the frozen weights, and of one block at a time the whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.router import Router

DEVICES = ("auto", "cpu", "cuda")


def check_device(device: str) -> None:
    """Raises ValueError for a device that is unknown or not there."""
    if device not in DEVICES:
        raise ValueError(f"device {device!r}: must be one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch finds no CUDA GPU here; use --device cpu, which suits small models only")


def make_accelerator(device: str) -> Any:
    """accelerate's Accelerator for the processes that were started.

    Precision is the model's own business (`TrainingSettings.precision`), so accelerate casts nothing.

    Raises ValueError for a device that is not there, and for ways of distribution other than this module's.
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
    return accelerator


def place(accelerator: Any, objective: nn.Module, blocks: tuple[str, ...], fsdp: bool) -> nn.Module:
    """The objective on its device or devices.

    Args:
        blocks: class names of the transformer blocks. fsdp: shard instead of replicate.
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
    for kind in ((Router.__name__,), blocks):
        for module in [*objective.modules()]:
            if type(module).__name__ in kind:
                fully_shard(module, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


@contextmanager
def accumulating(accelerator: Any, objective: nn.Module, is_last: bool) -> Iterator[None]:
    """A micro-batch's forward and backward pass: gradients are exchanged after the last one alone."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(is_last)
        yield
    elif is_last:
        yield
    else:
        with accelerator.no_sync(objective):
            yield


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU, gathered from all processes if the tensor is sharded."""
    gather = getattr(tensor, "full_tensor", None)
    gathered: Tensor = tensor if gather is None else gather()
    return gathered.cpu().clone()


def spread_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """The inverse of `whole`: on the device of `reference`, and sharded if that is."""
    tensor = tensor.to(reference.device)
    mesh = getattr(reference, "device_mesh", None)
    if mesh is None:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, mesh, reference.placements)  # type: ignore[attr-defined]
