# SPDX-License-Identifier: Apache-2.0
"""Ranks over gloo that outlive tests: to import torch and diffusers takes longer than most of what they compute."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import pytest

RANKS = 4
PATIENCE = 120.0  # seconds that a case may take


class Pool:
    """Runs the cases of `ranks_worker.py`."""

    def __init__(self, connections: dict[int, Connection]) -> None:
        self._connections = connections

    def __call__(self, case: str, ranks: int, **arguments: Any) -> list[Any]:
        """The results of all ranks of a group; what a rank raises fails the test."""
        group = [self._connections[rank] for rank in range(ranks)]
        for connection in group:
            connection.send((case, ranks, arguments))
        answers = []
        for rank, connection in enumerate(group):
            if not connection.poll(PATIENCE):
                pytest.fail(f"rank {rank} has not answered in {PATIENCE:g} s")
            answers.append(connection.recv())
        for rank, (succeeded, result) in enumerate(answers):
            if not succeeded:
                pytest.fail(f"rank {rank} of {ranks}:\n{result}", pytrace=False)
        return [result for _, result in answers]


@contextmanager
def started() -> Iterator[Pool]:
    """RANKS processes; see the fixture `pool`."""
    with tempfile.TemporaryDirectory() as folder:  # a short path: it holds a Unix socket
        address = f"{folder}/socket"
        with Listener(address) as listener:
            command = [sys.executable, str(Path(__file__).with_name("ranks_worker.py")), address, folder, str(RANKS)]
            process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
            try:
                connections = {}
                for _ in range(RANKS):
                    connection = listener.accept()
                    connections[connection.recv()] = connection
                yield Pool(connections)
                for connection in connections.values():
                    connection.send(None)
                process.wait(timeout=30)
            finally:
                process.kill()
                process.wait()
