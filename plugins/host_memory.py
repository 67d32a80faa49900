# SPDX-License-Identifier: Apache-2.0
"""Errors of host memory that is used up, in the many forms in which libraries raise them, and what to do about them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vorta_trt.plugins.errors import VortaError

# Texts in RuntimeErrors of torch's allocator and mappings, of ONNX Runtime and of C++ that mean: no memory is left.
_SAID = ("cannot allocate memory", "can't allocate memory", "bad_alloc", "bad allocation", "failed to allocate memory")
REMEDY = "close what else uses memory, add swap, or take a machine with more; see `ulimit -v` and the container's limit"
MOST_GIB = 1 << 33  # bytes are counted in 64 bits


class HostOutOfMemory(VortaError, MemoryError):
    """The host has too little memory, or a limit of this process is reached."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host memory is used up."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(said in str(error).lower() for said in _SAID)


class NotMappable(VortaError):
    """A file lies on a file system that does not map files into memory."""


def is_not_mappable(error: BaseException) -> bool:
    """Whether an error says that the file system does not map files."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENODEV
    return f"os error {errno.ENODEV})" in str(error)  # the form of safetensors, which is written in Rust


@contextmanager
def mapping(file: Path) -> Iterator[None]:
    """Context for code that maps or reads a file as a whole; it turns errors of memory and mapping into ours.

    Raises:
        HostOutOfMemory: The file does not fit into memory; the message has its size and what there is.
        NotMappable: The file system does not map files.
    """
    try:
        yield
    except Exception as error:
        if is_not_mappable(error):
            raise NotMappable(
                f"{file}: its file system does not map files into memory, as some network and FUSE mounts do not; copy "
                f"it to a local disk"
            ) from error
        if isinstance(error, VortaError) or not is_out_of_memory(error):
            raise
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        raise HostOutOfMemory(
            f"{file}: its {file.stat().st_size / 2**30:.1f} GiB do not fit into memory, and this machine has "
            f"{there / 2**30:.1f} GiB; {REMEDY}; a checkpoint may also be saved in several files, with "
            "save_pretrained(..., max_shard_size='5GB')"
        ) from error
