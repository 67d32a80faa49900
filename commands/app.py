# SPDX-License-Identifier: Apache-2.0
"""What all commands share: the program, how a command is registered, and how its errors are shown.

Nothing heavy is imported before a command runs, so that `vorta-trt --help` is instant. Results go to stdout; progress,
log and errors to stderr. Exit code 0: done; 1: failed; 2: bad usage.
"""

from __future__ import annotations

import functools
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
app = typer.Typer(
    name="vorta-trt",
    help="Video diffusion transformers with VORTA's routed sparse attention on NVIDIA TensorRT.",
    epilog="Example:  vorta-trt demo --output demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)
Command = TypeVar("Command", bound=Callable[..., None])

Debug = Annotated[bool, typer.Option("--debug", help="Log everything, and show the traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]


def command(*examples: str, group: typer.Typer = app) -> Callable[[Command], Command]:
    """Registers a command: its examples below the help, and errors as one message instead of a traceback."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> None:
            debug = bool(options.get("debug"))
            logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(message)s")
            try:
                function(*arguments, **options)
            except (typer.Exit, typer.BadParameter):
                raise
            except KeyboardInterrupt:
                _fail("interrupted; nothing half-made is left", debug)
            except Exception as error:
                _fail(_message(error), debug)

        epilog = "\b\n" + "\n".join(
            [f"Example{'s' if len(examples) > 1 else ''}:", *(f"  {line}" for line in examples)]
        )
        group.command(epilog=epilog)(run)
        return function

    return decorate


def _message(error: Exception) -> str:
    """One message for the errors that a user can act on; for a bug, what it is and how to see more."""
    from vorta_trt.plugins.errors import VortaError

    if isinstance(error, OSError) and error.strerror and not isinstance(error, VortaError):
        return f"{error.filename or 'system'}: {error.strerror}"
    if isinstance(error, VortaError | ValueError | OSError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return (
            f"{error}\nclose what else uses the GPU, or take less of it: see the command's options on memory and size"
        )
    return f"{type(error).__name__}: {error} (this is a bug of vorta-trt; see it with --debug and report it)"


def _fail(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc(file=sys.stderr)
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
