# SPDX-License-Identifier: Apache-2.0
"""`launch`: runs a function in one process per GPU, and ends all processes as soon as one fails.

    results = launch(function, argument, gpus=4)     # runs function(world, argument) in each; returns results by rank

The processes meet on the loopback interface, at a port that the launching process holds open. Each of these events ends
all processes: an error of a rank, a signal that kills a rank, Ctrl-C, SIGTERM, an exchange that takes longer than its
time-out, or the death of the launching process. After the event at most `SETTLE + GRACE` seconds pass until no process
is left.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from vorta_trt.model.unfinished import signals_raise
from vorta_trt.runtime.parallel.errors import ParallelError, RankError
from vorta_trt.runtime.parallel.rank_process import Done, Failure, Message, run_rank
from vorta_trt.runtime.parallel.world import CPU, CUDA, TIMEOUT, check_gpus

LOCALHOST = "127.0.0.1"
SETTLE = 1.0  # seconds after the first failure in which further failures are collected: one of them may be the cause
GRACE = 3.0  # seconds that a rank has to clean up after SIGTERM, before SIGKILL
LEAVE = 30.0  # seconds that the processes have to end after all ranks have returned their results
OnMessage = Callable[[int, Any], None]  # (rank, content of its message)


def launch(
    function: Callable[..., Any],
    argument: Any = None,
    *,
    gpus: int,
    kind: str | None = None,
    port: int | None = None,
    timeout: float = TIMEOUT,
    on_message: OnMessage | None = None,
) -> list[Any]:
    """Runs `function(world, argument)` in `gpus` processes.

    Args:
        function: A function at the top level of a module, since every process imports it.
        argument: Second argument of the function; anything that can be pickled.
        gpus: Number of processes; rank p has GPU p.
        kind: "cuda", or "cpu", which the processes share; None takes GPUs if torch finds any.
        port: The port on which the processes meet; None takes a free one.
        timeout: Seconds that an exchange may take before it is an error.
        on_message: Called in this process with the rank and the message for each call of `World.send` in a rank.

    Returns:
        The return value of the function in each rank, in rank order.

    Raises:
        ParallelError: There are too few GPUs, or the port is taken; no process was started.
        RankError: A rank failed; all processes have ended.
    """
    import torch

    if gpus < 1:
        raise ValueError(f"gpus {gpus}: must be at least 1")
    if not timeout > 0:
        raise ValueError(f"timeout {timeout:g}: must be above 0 seconds")
    kind = kind or (CUDA if torch.cuda.is_available() else CPU)
    if kind == CUDA:
        check_gpus(gpus)
    with signals_raise(), rendezvous(port, timeout) as meeting:
        ranks = RankProcesses(function, dict.fromkeys(range(gpus), argument), gpus, kind, meeting, timeout)
        try:
            ranks.start()
            return ranks.wait(on_message or (lambda rank, content: None))
        finally:
            ranks.stop()


@contextmanager
def rendezvous(port: int | None, timeout: float) -> Iterator[int]:
    """Yields the port of a TCP store that all ranks of this machine connect to.

    The store listens on the port from the beginning, so no other program can take it before the ranks start.
    """
    listening = socket.create_server((LOCALHOST, 0)) if port is None else _listen(port)
    with listening:
        taken = int(listening.getsockname()[1])
        store = TCPStore(
            LOCALHOST,
            taken,
            None,
            is_master=True,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),  # the store closes it
        )
        yield taken
        del store


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((LOCALHOST, port))
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ParallelError(
            f"port {port}: ranks cannot meet there ({reason}); leave --gpu-port out, and a free one is taken"
        ) from error


def environment_of(rank: int, count: int, port: int) -> dict[str, str]:
    """Environment variables that tell a rank its number and where to meet the other ranks, see `world`."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher holds the store, as with torchrun
    }


class RankProcesses:
    """The processes of one run, for all of its ranks or some of them.

    Args:
        function: See `launch`.
        arguments: The argument of each rank that is to be started, by rank.
        count: Number of ranks in the run, including those that are not started here.
        kind: See `launch`.
        port: The port that `rendezvous` gave.
        timeout: See `launch`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Mapping[int, Any],
        count: int,
        kind: str,
        port: int,
        timeout: float,
    ) -> None:
        self._count, self._timeout = count, timeout
        spawn = get_context("spawn")  # a CUDA context does not survive a fork
        self._processes: dict[int, SpawnProcess] = {}
        self._pipes: dict[int, connection.Connection] = {}
        self._writers: list[connection.Connection] = []
        for rank, argument in arguments.items():
            reader, writer = spawn.Pipe(duplex=False)
            given = (writer, function, argument, environment_of(rank, count, port), kind, timeout)
            self._processes[rank] = spawn.Process(target=run_rank, args=given, name=f"rank {rank}")
            self._pipes[rank] = reader
            self._writers.append(writer)

    def start(self) -> None:
        """Starts all processes with SIGINT blocked.

        Ctrl-C reaches every process of a terminal; only this process is to handle it.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            for process, writer in zip(self._processes.values(), self._writers, strict=True):
                process.start()
                writer.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, on_message: OnMessage) -> list[Any]:
        """Waits for the ranks and returns their results, in rank order.

        Raises:
            RankError: A rank failed; the error is that of the rank that failed first.
        """
        results: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        open_pipes = {pipe: rank for rank, pipe in self._pipes.items()}
        running = {process.sentinel: rank for rank, process in self._processes.items()}
        until: float | None = None
        while open_pipes or running:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                break
            ready = connection.wait([*open_pipes, *running], left)
            for pipe in [each for each in ready if each in open_pipes]:
                rank = open_pipes[pipe]
                try:
                    told = pipe.recv()
                except (EOFError, OSError):
                    del open_pipes[pipe]
                    continue
                if isinstance(told, Message):
                    on_message(rank, told.content)
                elif isinstance(told, Done):
                    results[rank] = told.result
                else:
                    failures[rank] = told
            for sentinel in [each for each in ready if each in running]:
                rank = running[sentinel]
                if self._pipes[rank] in open_pipes:
                    continue  # its last messages have to be read first
                del running[sentinel]
                if rank not in results and rank not in failures:
                    failures[rank] = Failure(_ending(self._processes[rank]))
            if until is None and failures:
                until = time.monotonic() + SETTLE
            elif until is None and len(results) == len(self._processes):
                until = time.monotonic() + LEAVE
        if failures:
            silent = self._processes.keys() - results.keys() - failures.keys()
            raise _first(failures, self._count, sorted(silent), self._timeout)
        return [results[rank] for rank in self._processes]

    def stop(self) -> None:
        """Ends the processes that still run, and reaps all of them. May be called twice."""
        started = [process for process in self._processes.values() if process.pid is not None]
        for process in started:
            if process.is_alive():
                process.terminate()
        until = time.monotonic() + GRACE
        for process in started:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in (*self._pipes.values(), *self._writers):
            pipe.close()


def _ending(process: SpawnProcess) -> str:
    """In words, how a process ended that sent neither a result nor a failure."""
    process.join()
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was ended by {name}"
    return f"ended with exit code {code} and without a result"


def _first(failures: dict[int, Failure], count: int, silent: Sequence[int], timeout: float) -> RankError:
    """The error of the first rank that failed by itself; without such a rank, of the first with a broken exchange.

    Args:
        failures: Failures by rank, in the order in which they arrived.
        count: Number of ranks in the run.
        silent: Ranks that have sent neither a result nor a failure.
        timeout: Seconds that an exchange may take.
    """
    ranks: Sequence[int] = [rank for rank, failure in failures.items() if not failure.follows] or list(failures)
    rank = ranks[0]
    failure = failures[rank]
    message = f"rank {rank} of {count}: "
    if failure.follows and silent:
        waited = f"rank {', '.join(map(str, silent))}"
        message += f"waited in vain for {waited} in an exchange, which may take {timeout:g} s: "
    message += f"{failure.message}; all ranks were ended"
    if failure.traceback and not failure.expected:
        message += f"\n{failure.traceback}"
    return RankError(message, rank, failure.traceback)
