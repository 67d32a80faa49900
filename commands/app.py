# SPDX-License-Identifier: Apache-2.0
"""The code that all commands share: the program, how a command is registered, and how its errors are shown.

A command's file is imported when the command is asked for, and heavy packages only when it runs, so that `--help` is
fast. Results go to stdout; progress, log and errors go to stderr. Exit codes are 0: done; 1: failed; 2: bad usage;
130: interrupted (Ctrl-C); 141: nobody reads standard output any more.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from vorta_trt.commands.errors import check_text, explained
from vorta_trt.commands.expand import Collect, expanded
from vorta_trt.model.families import DEFAULT_FAMILY, get_family

# In the order of `vorta-trt --help`; the file has the command's name.
COMMANDS = (
    *("doctor", "demo", "export", "build", "refit", "inspect", "verify", "routes", "generate", "compare", "bench"),
    *("train-router", "calibrate", "serve", "triton"),
)
INTERRUPTED = 130
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_programs: dict[str, typer.Typer] = {}  # programs of the command files that were imported, by command name
Command = TypeVar("Command", bound=Callable[..., None])

Debug = Annotated[bool, typer.Option("--debug", help="Log everything, and show the traceback of an error.")]
EXAMPLE = get_family(DEFAULT_FAMILY).demo.checkpoint  # a published checkpoint, for examples
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]


class _Commands(TyperGroup):
    """The commands by name, each imported when it is looked up."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update(dict.fromkeys(COMMANDS))  # type: ignore[arg-type]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            self.commands[cmd_name] = typer.main.get_command(_program(cmd_name))
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in the help: the first line of every command's help."""
        programs = {name: _program(name) for name in COMMANDS}
        helps = {name: own.info.help or own.registered_commands[0].callback.__doc__ for name, own in programs.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, str(text).splitlines()[0]) for name, text in helps.items()])


# Options that some commands take several times. The other commands refuse a second one, which would silently replace
# the first. For all other options the last one counts, so that scripts may append theirs.
SEVERAL_ELSEWHERE = frozenset({"size", "router", "route_override", "lora"})
HOLD_PATHS = SEVERAL_ELSEWHERE | {"models"}  # options of text that is or contains a path


class _Command(TyperCommand):
    """A command that refuses NaN, infinity, empty paths, and a second value of a `SEVERAL_ELSEWHERE` option.

    The latter is allowed where the command takes the option several times.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        texts, _, order = self.make_parser(ctx).parse_args(args=list(args))
        given: list[Any] = list(order)
        for option in dict.fromkeys(given):
            taken_once = option.name in SEVERAL_ELSEWHERE and not option.multiple
            if taken_once and (count := given.count(option)) > 1:
                raise typer.BadParameter(f"is given {count} times, and one is taken; give one", ctx=ctx, param=option)
        rest = super().parse_args(ctx, args)
        options: list[Any] = self.get_params(ctx)
        for option in options:
            values, given_texts = (_listed(each.get(str(option.name))) for each in (ctx.params, texts))
            for number in values:
                if isinstance(number, float) and not math.isfinite(number):
                    raise typer.BadParameter(f"{number}: must be a finite number", ctx=ctx, param=option)
            # An empty path would mean the current folder, but often comes from an unset shell variable.
            if "" in given_texts and (option.name in HOLD_PATHS or isinstance(values[0], Path)):
                raise typer.BadParameter("is empty; give a value, or leave it out", ctx=ctx, param=option)
        return rest


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _program(name: str) -> typer.Typer:
    """Imports a command's file and returns its program."""
    importlib.import_module(f"vorta_trt.commands.{name.replace('-', '_')}")
    return _programs[name]


def _epilog(examples: Sequence[str]) -> str | None:
    if not examples:
        return None
    return "\b\n" + "\n".join([f"Example{'s' if len(examples) > 1 else ''}:", *(f"  {line}" for line in examples)])


def program(help: str, *examples: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """Makes a program or a group of commands; commands are added later."""
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
    """Makes a command that has commands of its own; see `command`."""
    _programs[name] = program(help, *examples, cls=cls)
    return _programs[name]


def command(*examples: str, group: typer.Typer | None = None) -> Callable[[Command], Command]:
    """Registers a command. Its help shows the examples, and its errors are one message instead of a traceback.

    Args:
        *examples: Valid command lines, for the help.
        group: The group that the command belongs to; None makes it a command of `vorta-trt`, with the function's name.
    """

    def decorate(function: Command) -> Command:
        own = group
        if own is None:
            own = _programs[function.__name__] = program("")
        own.command(cls=_Command, epilog=_epilog(examples))(_Run(function))
        return function

    return decorate


class _Run:
    """A command's function as typer calls it. Groups of options are expanded when typer asks for the parameters."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self.__name__, self.__doc__, self.__annotations__ = function.__name__, function.__doc__, {}

    @functools.cached_property
    def _expanded(self) -> tuple[inspect.Signature, Collect]:
        return expanded(self._function)

    @property
    def __signature__(self) -> inspect.Signature:
        return self._expanded[0]

    def __call__(self, **options: Any) -> None:
        debug = bool(options.get("debug"))
        logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(message)s")
        try:
            check_text(options)
            self._function(**self._expanded[1](options))
        except (typer.Exit, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _fail("interrupted; nothing half-made is left", debug, INTERRUPTED)
        except Exception as error:
            _fail(explained(error), debug)


def _fail(message: str, debug: bool, code: int = 1) -> None:
    if debug:
        traceback.print_exc(file=sys.stderr)
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
