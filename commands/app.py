# SPDX-License-Identifier: Apache-2.0
"""What all commands share: the program, how a command is registered, and how its errors are shown.

A command's file is imported when the command is asked for, and nothing heavy before it runs, so that `--help` is
instant. Results go to stdout; progress, log and errors to stderr. Exit code 0: done; 1: failed; 2: bad usage;
130: interrupted (Ctrl-C); 141: nobody reads standard output any more.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from vorta_trt.commands.expand import expanded

# In the order of `vorta-trt --help`; the file has the command's name.
COMMANDS = (
    *("doctor", "demo", "export", "build", "inspect", "verify", "routes", "generate", "compare", "bench"),
    *("train-router", "calibrate"),
)
INTERRUPTED = 130
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_programs: dict[str, typer.Typer] = {}  # of the files that were imported
Command = TypeVar("Command", bound=Callable[..., None])

Debug = Annotated[bool, typer.Option("--debug", help="Log everything, and show the traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]


class _Commands(TyperGroup):
    """The commands by name, each imported when it is looked up."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update(dict.fromkeys(COMMANDS))  # type: ignore[arg-type]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            importlib.import_module(f"vorta_trt.commands.{cmd_name.replace('-', '_')}")
            self.commands[cmd_name] = typer.main.get_command(_programs[cmd_name])
        return super().get_command(ctx, cmd_name)


def _epilog(examples: Sequence[str]) -> str | None:
    if not examples:
        return None
    return "\b\n" + "\n".join([f"Example{'s' if len(examples) > 1 else ''}:", *(f"  {line}" for line in examples)])


def program(help: str, *examples: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """A program or a group of commands, without any yet."""
    return typer.Typer(
        cls=cls,
        help=help,
        epilog=_epilog(examples),
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT,
    )


app = program(
    "Video diffusion transformers with VORTA's routed sparse attention on NVIDIA TensorRT.",
    "vorta-trt demo --output demo",
    cls=_Commands,
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"vorta-trt {version('vorta-trt')}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


def group(name: str, help: str, *examples: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """A command with commands below it; see `command`."""
    _programs[name] = program(help, *examples, cls=cls)
    return _programs[name]


def command(*examples: str, group: typer.Typer | None = None) -> Callable[[Command], Command]:
    """Registers a command: its examples below the help, and errors as one message instead of a traceback.

    Args:
        *examples: Command lines that work.
        group: The command that it belongs to; None makes it one of `vorta-trt`, with the function's name.
    """

    def decorate(function: Command) -> Command:
        parameters, collected = expanded(function)

        @functools.wraps(function)
        def run(**options: Any) -> None:
            debug = bool(options.get("debug"))
            logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(message)s")
            try:
                function(**collected(options))
            except (typer.Exit, typer.BadParameter):
                raise
            except KeyboardInterrupt:
                _fail("interrupted; nothing half-made is left", debug, INTERRUPTED)
            except Exception as error:
                _fail(_message(error), debug)

        del run.__wrapped__
        run.__signature__ = parameters  # type: ignore[attr-defined]
        run.__annotations__ = {}
        own = group
        if own is None:
            own = _programs[function.__name__] = program("")
        own.command(epilog=_epilog(examples))(run)
        return function

    return decorate


def _message(error: Exception) -> str:
    """One message for the errors that a user can act on; for a bug, what it is and how to see more."""
    from vorta_trt.plugins.errors import VortaError
    from vorta_trt.plugins.host_memory import REMEDY, is_out_of_memory

    if is_out_of_memory(error) and not isinstance(error, VortaError):
        return f"memory is used up ({str(error).strip().partition(chr(10))[0] or type(error).__name__}); {REMEDY}"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, VortaError):
        return f"{error.filename or 'system'}: {error.strerror}"
    if isinstance(error, VortaError | ValueError | OSError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return (
            f"{error}\nclose what else uses the GPU, or take less of it: see the command's options on memory and size"
        )
    return f"{type(error).__name__}: {error} (this is a bug of vorta-trt; see it with --debug and report it)"


def _fail(message: str, debug: bool, code: int = 1) -> None:
    if debug:
        traceback.print_exc(file=sys.stderr)
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
