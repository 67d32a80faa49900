# SPDX-License-Identifier: Apache-2.0
"""`Leader`: makes the current process rank 0 of a run, and starts the other ranks, its followers.

The leader tells its followers each request that it gets, and all ranks compute it together. `launch` is for work that
ends; a leader is for a program that goes on, such as a server's worker.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import connection, get_context
from typing import Any

from torch import distributed

from vorta_trt.runtime.parallel.errors import RankError
from vorta_trt.runtime.parallel.launch import GRACE, SETTLE, RankProcesses, environment_of, rendezvous
from vorta_trt.runtime.parallel.world import CPU, CUDA, TIMEOUT, check_gpus, join

logger = logging.getLogger(__name__)
LOST = 70  # exit code of a leader whose followers are gone; otherwise it might wait for them in an exchange for ever
KNOWN = SETTLE + GRACE + 1.0  # seconds after a follower's end by which its failure is known and the others have ended
OnFailure = Callable[[RankError], None]


def end_at_once(error: RankError) -> None:
    """Logs the error and ends this process at once, even if it waits in an exchange."""
    logger.error("%s", error)
    os._exit(LOST)


class Leader:
    """This process as rank 0. The followers run `function(world, (argument, commands))`.

    `commands` is a pipe from which a follower receives (`recv()`) the commands that `tell` sends, and None at the end.

    Args:
        function: A function at the top level of a module, which every follower imports.
        argument: The argument that all followers get.
        gpus: Number of ranks, including this process.
        kind: "cuda" or "cpu".
        timeout: See `join`.
        on_failure: Called in a thread when a follower has failed and all followers were ended.

    Raises:
        ParallelError: See `launch`.

    Attributes:
        world: Rank 0 of the run, which is this process.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        argument: Any,
        *,
        gpus: int,
        kind: str,
        timeout: float = TIMEOUT,
        on_failure: OnFailure = end_at_once,
    ) -> None:
        if kind == CUDA:
            check_gpus(gpus)
        self._on_failure, self._is_closed = on_failure, False
        self._failure: RankError | None = None
        self._commands: list[connection.Connection] = []
        arguments = {}
        for rank in range(1, gpus):
            reader, writer = get_context("spawn").Pipe(duplex=False)
            arguments[rank] = argument, reader
            self._commands.append(writer)
        with ExitStack() as until_joined:
            port = until_joined.enter_context(rendezvous(None, timeout))
            self._processes = RankProcesses(function, arguments, gpus, kind, port, timeout)
            until_joined.callback(self._processes.stop)
            self._processes.start()
            for _, reader in arguments.values():
                reader.close()
            self._watch = threading.Thread(target=self._wait, name="ranks", daemon=True)
            self._watch.start()
            self._joined = ExitStack()
            with _environment(environment_of(0, gpus, port)):
                self.world = self._joined.enter_context(join(kind, timeout=timeout))
            self._until_closed = until_joined.pop_all()

    def tell(self, command: Any) -> None:
        """Sends all followers a command."""
        for pipe in self._commands:
            pipe.send(command)

    def failure(self) -> RankError | None:
        """The failure of a follower that broke an exchange, or None.

        It waits up to `KNOWN` seconds, until all followers have ended and `on_failure` was called. The broken exchange
        itself, which this process sees at once, only says that some rank is gone.
        """
        self._watch.join(KNOWN)
        return self._failure

    def close(self, broken: bool = False) -> None:
        """Lets the followers end, and waits for them. May be called twice.

        Args:
            broken: Whether an exchange has failed. The followers may then wait for it for ever, so they are ended.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if not broken and self._failure is None:
                self.tell(None)
                self._joined.close()
                self._watch.join()
            elif self.world.device.type == CPU:  # gloo ends without the other ranks; NCCL might wait
                distributed.destroy_process_group()
        finally:
            self._until_closed.close()

    def _wait(self) -> None:
        try:
            self._processes.wait(lambda rank, content: None)
        except RankError as error:
            self._failure = error
            if not self._is_closed:
                self._processes.stop()
                self._on_failure(error)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables inside the block, and restores the previous values afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
