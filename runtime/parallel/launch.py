# SPDX-License-Identifier: Apache-2.0
"""`launch`: runs a function in one process a GPU, and ends them all as soon as one fails.

    results = launch(function, argument, gpus=4)     # function(world, argument) in each; what each returned, by rank

The processes meet on the loopback interface, at a port that the launching process holds open. What ends the run ends
all of it: an error of a rank, a signal that kills one, Ctrl-C, SIGTERM, an exchange that takes longer than its
time-out, or the death of the launching process. From then on at most `SETTLE + GRACE` seconds pass until no process is
left.
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
SETTLE = 1.0  # seconds after the first failure in which others are heard, of which one may be the cause
GRACE = 3.0  # seconds that a rank has to clean up after SIGTERM, before SIGKILL
LEAVE = 30.0  # seconds that ranks which are done have to end
OnMessage = Callable[[int, Any], None]  # rank, what it says


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
        function: Of a module, for it is imported in every process.
        argument: Anything that can be pickled.
        gpus: How many processes; rank p has GPU p.
        kind: "cuda"; or "cpu", where the processes share it; None takes GPUs if torch finds any.
        port: On which they meet; None takes a free one.
        timeout: Seconds that an exchange may take before it is an error.
        on_message: Called in this process with what `World.send` was given.

    Returns:
        What the function returned, by rank.

    Raises:
        ParallelError: Too few GPUs, or a port that is taken; no process was started.
        RankError: A rank failed; all have ended.
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
    """The port of a store that all ranks connect to, on this machine alone; nobody can take the port before them."""
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
    """What tells a rank of this machine who it is and where the others are, see `world`."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the launcher's, as torchrun's is
    }


class RankProcesses:
    """Processes of one run, all ranks or some.

    Args:
        function: See `launch`.
        arguments: Of the ranks that are started, by rank.
        count: Of all ranks.
        kind: See `launch`.
        port: Of `rendezvous`.
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
        """Starts all. Ctrl-C in a terminal reaches every process of it; the ranks leave it to this one."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            for process, writer in zip(self._processes.values(), self._writers, strict=True):
                process.start()
                writer.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, on_message: OnMessage) -> list[Any]:
        """What the ranks return, in their order; RankError of the one that failed first."""
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
                    continue  # what it said last comes first
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
        """Ends those that still run, and reaps all. May be called twice."""
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
    """How a process ended that said nothing."""
    process.join()
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was ended by {name}"
    return f"ended with exit code {code} and without a result"


def _first(failures: dict[int, Failure], count: int, silent: Sequence[int], timeout: float) -> RankError:
    """The error of the rank that failed of itself, if one did; else of one that waited for others in vain.

    Args:
        failures: By rank, in the order in which they were told.
        count: Of ranks.
        silent: Those that still ran and said nothing.
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
