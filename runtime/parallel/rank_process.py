# SPDX-License-Identifier: Apache-2.0
"""What a process that `launch` starts does: it joins the others, runs the function, and tells how it ended."""

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
    """What a rank says on its way."""

    content: Any


@dataclass(frozen=True)
class Done:
    """What the function returned."""

    result: Any


@dataclass(frozen=True)
class Failure:
    """How a rank failed.

    Attributes:
        message: Of the error, with its type unless the message is for users.
        traceback: As text.
        expected: A user can act on the message.
        follows: The exchange with another rank broke, so another one failed first.
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
    """Runs `function(world, argument)` as a rank, whatever happens tells the launcher, and ends.

    Args:
        out: To the launcher.
        function: Of a module, with its world as first argument.
        argument: The second one.
        environment: Of the rank, see `world`.
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
        # Libraries wait at their end for exchanges that will not come.
        os._exit(FAILED)


def failure_of(error: BaseException) -> Failure:
    """An error in words that can be sent."""
    import torch

    expected = isinstance(error, VortaError | ValueError | OSError | torch.OutOfMemoryError)
    message = str(error) if expected else f"{type(error).__name__}: {error}"
    return Failure(message, "".join(traceback.format_exception(error)), expected, is_broken_exchange(error))


def is_broken_exchange(error: BaseException) -> bool:
    """Whether an exchange ended because another rank was gone, which that rank explains better."""
    from torch import distributed

    if isinstance(error, distributed.DistError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and not isinstance(error, VortaError) and (
        "gloo" in told.lower() or "NCCL" in told or "Connection closed by peer" in told
    )  # fmt: skip


def _end_with_parent() -> None:
    """Ends this process where the launching one ended without a word, as SIGKILL has it."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
