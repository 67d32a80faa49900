# SPDX-License-Identifier: Apache-2.0
"""`lock_folder`: lets only one server use a folder of jobs."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from vorta_trt.serving.job import JobError

LOCK = "server.lock"


def lock_folder(folder: Path) -> int:
    """Locks a folder of jobs for this process; returns the file descriptor that holds the lock.

    Raises:
        JobError: Another server uses the folder.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock, 32).decode(errors="replace") or "unknown"
        os.close(lock)
        raise JobError(
            f"jobs {folder}: the server with process id {owner} has this folder; stop it, or give another one"
        ) from None
    with suppress(OSError):  # a full disk: only the message above needs the number
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock
