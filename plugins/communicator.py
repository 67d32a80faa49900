# SPDX-License-Identifier: Apache-2.0
"""Mirror of `include/vorta_trt/communicator.h`: how the processes of several GPUs reach each other through NCCL.

One rank makes an id and sends it to the others, say with `torch.distributed.broadcast_object_list`; then all join:

    with communicator(library, id_of_all, ranks, rank):
        ...  # layers that exchange find it by the number of ranks and the current GPU
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from vorta_trt.plugins.library import PluginLibrary

ID_BYTES = 128
TIMEOUT = 60.0
"""Seconds that the exchange of known values may take when ranks join."""


def nccl_version(library: PluginLibrary) -> tuple[int, str]:
    """Opens NCCL, unless it is open, and asks for its version. Needs no GPU.

    Args:
        library: The library.

    Returns:
        NCCL's version in its own form, such as 22703 for 2.27.3, and the path of its file.

    Raises:
        LibraryError: There is no NCCL on this machine, or it is too old.
    """
    version = ctypes.c_int32()
    library.call("vorta_nccl_version", ctypes.byref(version))
    return version.value, library.call_text("vorta_nccl_path")


def create_id(library: PluginLibrary) -> bytes:
    """Makes the id by which the ranks of one communicator find each other. Needs no GPU.

    Args:
        library: The library.

    Returns:
        `ID_BYTES` bytes, for all ranks.

    Raises:
        LibraryError: There is no NCCL on this machine, or it finds no network interface.
    """
    created = (ctypes.c_uint8 * ID_BYTES)()
    library.call("vorta_communicator_create_id", created)
    return bytes(created)


def join(library: PluginLibrary, identity: bytes, ranks: int, rank: int, timeout: float = TIMEOUT) -> None:
    """Joins a communicator on the current GPU, waits for the other ranks and exchanges known values with them.

    Args:
        library: The library.
        identity: What `create_id` returned on one rank.
        ranks: Number of processes.
        rank: Number of this process, from 0.
        timeout: Seconds that the exchange of known values may take.

    Raises:
        ValueError: `identity` has another length.
        LibraryError: An argument breaks a rule, NCCL fails, or a value does not arrive; there is no communicator then.
    """
    if len(identity) != ID_BYTES:
        raise ValueError(f"identity of {len(identity)} bytes: must have {ID_BYTES}; pass what create_id returned")
    arguments = ctypes.c_int32(ranks), ctypes.c_int32(rank), ctypes.c_double(timeout)
    library.call("vorta_communicator_init", (ctypes.c_uint8 * ID_BYTES)(*identity), *arguments)


def check(library: PluginLibrary, ranks: int) -> None:
    """Asks NCCL whether it has met an error, such as a rank that died; waits for nothing.

    Args:
        library: The library.
        ranks: Number of ranks of the communicator.

    Raises:
        LibraryError: NCCL has met an error, or there is no such communicator on the current GPU.
    """
    library.call("vorta_communicator_check", ctypes.c_int32(ranks))


def rank_of(library: PluginLibrary, ranks: int) -> int:
    """The number of this process in the communicator of `ranks` on the current GPU.

    Args:
        library: The library.
        ranks: Number of ranks of the communicator.

    Raises:
        LibraryError: There is no such communicator.
    """
    rank = ctypes.c_int32()
    library.call("vorta_communicator_rank", ctypes.c_int32(ranks), ctypes.byref(rank))
    return rank.value


def leave(library: PluginLibrary, ranks: int, abort: bool = False) -> None:
    """Leaves the communicator of `ranks` on the current GPU, if there is one. Work that uses it must have ended.

    Args:
        library: The library.
        ranks: Number of ranks of the communicator.
        abort: Whether to leave without waiting for the other ranks, in a process that ends because a rank has failed.

    Raises:
        LibraryError: NCCL fails.
    """
    library.call("vorta_communicator_destroy", ctypes.c_int32(ranks), ctypes.c_int32(abort))


@contextmanager
def communicator(library: PluginLibrary, identity: bytes, ranks: int, rank: int) -> Iterator[None]:
    """Joins a communicator, and leaves it in the end; after an exception without waiting for the others.

    Args:
        library: The library.
        identity: What `create_id` returned on one rank.
        ranks: Number of processes.
        rank: Number of this process, from 0.

    Raises:
        LibraryError: `join` or `leave` fails.
    """
    join(library, identity, ranks, rank)
    try:
        yield
    except BaseException:
        leave(library, ranks, abort=True)
        raise
    leave(library, ranks)
