# SPDX-License-Identifier: Apache-2.0
"""The main function of a process that `launch` starts: it joins the other ranks, runs, and reports how it ended."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from typing import Any

from vorta_trt.plugins.errors import VortaError

FAILED = 1
ORPHANED = 9  # exit code where the launching process is gone


@dataclass(frozen=True)
class Message:
    """A message that a rank sends while it runs."""

    content: Any


@dataclass(frozen=True)
class Done:
    """The end of a rank whose function returned `result`."""

    result: Any


@dataclass(frozen=True)
class Failure:
    """How a rank failed.

    Attributes:
        message: Message of the error, preceded by the error's type unless `expected`.
        traceback: Traceback of the error as text.
        expected: Whether a user can act on the message.
        follows: Whether the error is a broken exchange, which follows from an earlier failure of another rank.
    """

    message: str
    traceback: str = ""
    expected: bool = False
    follows: bool = False


def run_rank(
    out: connection.Connection,
    function: Callable[..., Any],
    argument: Any,
    environment: Mapping[str, str],
    kind: str,
    timeout: float,
) -> None:
    """Runs `function(world, argument)` as a rank, sends the launcher the result or the failure, and ends.

    Args:
        out: Pipe to the launcher.
        function: A function at the top level of a module; its first argument is the `World` of this rank.
        argument: The second argument of the function.
        environment: Environment variables of the rank, see `world`.
        kind: "cuda" or "cpu".
        timeout: See `join`.
    """
    os.environ.update(environment)
    _end_with_parent()
    from vorta_trt.model.unfinished import signals_raise
    from vorta_trt.runtime.parallel.world import join

    lock = threading.Lock()

    def send(what: Any) -> None:
        with lock:
            out.send(what)

    try:
        with signals_raise(), join(kind, timeout=timeout, send=lambda content: send(Message(content))) as world:
            result = function(world, argument)
        send(Done(result))
    except SystemExit as error:  # the launcher's SIGTERM
        os._exit(error.code if isinstance(error.code, int) else FAILED)
    except BaseException as error:
        send(failure_of(error))
        # A normal exit would hang: at exit, libraries wait for exchanges that will never come.
        os._exit(FAILED)


def failure_of(error: BaseException) -> Failure:
    """Turns an error into a `Failure`, which can be sent to another process."""
    import torch

    expected = isinstance(error, VortaError | ValueError | OSError | torch.OutOfMemoryError)
    message = str(error) if expected else f"{type(error).__name__}: {error}"
    return Failure(message, "".join(traceback.format_exception(error)), expected, is_broken_exchange(error))


def is_broken_exchange(error: BaseException) -> bool:
    """Whether the error is an exchange that broke because another rank ended; that rank's own error says more."""
    from torch import distributed

    if isinstance(error, distributed.DistError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and not isinstance(error, VortaError) and (
        "gloo" in told.lower() or "NCCL" in told or "Connection closed by peer" in told
    )  # fmt: skip


def _end_with_parent() -> None:
    """Starts a thread that ends this process when the launching process has ended, e.g. by SIGKILL."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
