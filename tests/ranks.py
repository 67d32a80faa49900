# SPDX-License-Identifier: Apache-2.0
"""Rank processes over gloo that serve many tests, since importing torch and diffusers takes longer than most tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

RANKS = 4
WORKER = str(Path(__file__).with_name("ranks_worker.py"))
PATIENCE = 120.0  # seconds that a case may take


class Pool:
    """Runs the cases of `ranks_worker.py`."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    def __call__(self, case: str, ranks: int, **arguments: Any) -> list[Any]:
        """Runs a case on the first `ranks` ranks; returns the results of all. An exception of a rank fails the test."""
        group = self._connections[:ranks]
        for connection in group:
            connection.send((case, ranks, arguments))
        answers = []
        for rank, connection in enumerate(group):
            if not connection.poll(PATIENCE):
                pytest.fail(f"rank {rank} has not answered in {PATIENCE:g} s")
            try:
                answers.append(connection.recv())
            except EOFError:
                pytest.fail(f"rank {rank} is gone")
        for rank, (succeeded, result) in enumerate(answers):
            if not succeeded:
                pytest.fail(f"rank {rank} of {ranks}:\n{result}", pytrace=False)
        return [result for _, result in answers]

    def stop(self) -> None:
        """Tells the ranks to end, unless they have ended."""
        with suppress(OSError):
            for connection in self._connections:
                connection.send(None)


@contextmanager
def started(ranks: int = RANKS, device: str = "cpu") -> Iterator[Pool]:
    """Starts processes with a gloo group, or processes that share the GPUs; see the fixture `pool`."""
    pipes = [Pipe() for _ in range(ranks)]
    theirs = [there.fileno() for _, there in pipes]
    # A process with several pipes forks for each. CUDA, which an import may initialise, does not survive a fork.
    shares = [theirs] if device == "cpu" else [[pipe] for pipe in theirs]
    pool = Pool([here for here, _ in pipes])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        for first, share in enumerate(shares):
            process = subprocess.Popen(
                [sys.executable, WORKER, device, folder, str(ranks), str(first), *map(str, share)],
                pass_fds=share,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            running.callback(process.wait)
            running.callback(process.kill)
            running.callback(_let_end, process)
        for _, there in pipes:
            there.close()
        try:
            yield pool
        finally:
            pool.stop()
    for here, _ in pipes:
        here.close()


def _let_end(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
