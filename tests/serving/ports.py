# SPDX-License-Identifier: Apache-2.0
"""Ports for servers that cannot take a free one themselves."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

# Below the ports that Linux gives to clients, and above those that Ray takes; a hundred for each test process.
FIRST, SHARE, SHARES = 20_000, 100, 100


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1 that no other program takes by chance before a server uses them."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    first = FIRST + SHARE * (int(worker.removeprefix("gw")) if worker else os.getpid() % SHARES)
    found: list[int] = []
    with ExitStack() as stack:
        for port in range(first, first + SHARE):
            each = stack.enter_context(socket.socket())
            try:
                each.bind(("127.0.0.1", port))
            except OSError:  # a server has it
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"ports {first} to {first + SHARE - 1}: {len(found)} are free, and {count} are needed")
