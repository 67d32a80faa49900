# SPDX-License-Identifier: Apache-2.0
"""Chooses what moves heads and tokens between ranks: torch.distributed, or this library's kernels and its own NCCL.

The ranks of a group agree on one before anything is exchanged. What was chosen, and why, can be read afterwards; if the
chosen one fails, that is an error, and the other one does not take over.
"""

from __future__ import annotations

import logging
from typing import Final, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist

from vorta_trt.model.parallel.group_communicator import CUDA, GroupCommunicator
from vorta_trt.plugins.communicator import nccl_version
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.library import PluginLibrary, load_library

Exchange = Literal["library", "torch"]
ExchangeOption = Literal["auto", "library", "torch"]
AUTO: Final = "auto"
LIBRARY: Final = "library"
TORCH: Final = "torch"
_NCCL: Final = "nccl"

logger = logging.getLogger(__name__)


class ExchangeChoice(NamedTuple):
    """The chosen exchange.

    Attributes:
        exchange: "library": kernels of libvorta_trt pack and unpack, and its communicator exchanges over NCCL; "torch":
            torch indexes, and torch.distributed exchanges.
        reason: Why it was chosen.
        communicator: The library's communicator; None with torch.
    """

    exchange: Exchange
    reason: str
    communicator: GroupCommunicator | None = None


def choose_exchange(option: str, group: dist.ProcessGroup, device: torch.device, timeout: float) -> ExchangeChoice:
    """Chooses an exchange, and joins the library's communicator if that was chosen. All ranks of the group call it.

    Args:
        option: "library", "torch", or "auto": the library where every rank computes on a GPU of its own with the
            group's backend NCCL, and has the library and NCCL.
        group: The ranks.
        device: Where this rank computes.
        timeout: Seconds that an exchange of the library may take, see `GroupCommunicator`.

    Raises:
        ValueError: The option is unknown, or is "library" and a rank cannot use the library.
        LibraryError: The library was chosen, and the ranks do not reach each other.
    """
    if option not in get_args(ExchangeOption):
        known = ", ".join(map(repr, get_args(ExchangeOption)))
        raise ValueError(f"exchange {option!r}: must be one of {known}; use 'auto'")
    if option == TORCH:
        return ExchangeChoice(TORCH, "asked for")
    library, obstacle = _library(group, device)
    obstacles: list[str] = [""] * group.size()
    dist.all_gather_object(obstacles, obstacle, group=group)
    found = next((f"rank {rank}: {text}" for rank, text in enumerate(obstacles) if text), "")
    if found and option == LIBRARY:
        raise ValueError(
            f"exchange 'library': it needs a GPU for each rank, a group of NCCL, libvorta_trt and NCCL on every rank; "
            f"{found}; use 'torch' or 'auto'"
        )
    if found or library is None:
        logger.info("torch.distributed exchanges heads and tokens: %s", found)
        return ExchangeChoice(TORCH, found)
    reason = "asked for" if option == LIBRARY else "every rank has a GPU, libvorta_trt and NCCL"
    return ExchangeChoice(LIBRARY, reason, GroupCommunicator.of(library, group, device, timeout))


def _library(group: dist.ProcessGroup, device: torch.device) -> tuple[PluginLibrary | None, str]:
    """The library, if this rank can exchange through it, and else why it cannot."""
    if device.type != CUDA:
        return None, f"computes on {device}"
    backends = dist.get_backend_config(group)
    if _NCCL not in backends:
        return None, f"the group's backend is {backends}"
    try:
        library = load_library()
        nccl_version(library)
    except VortaError as error:
        return None, str(error)
    return library, ""
