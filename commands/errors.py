# SPDX-License-Identifier: Apache-2.0
"""Messages of errors, for users: what to do about an error that they can act on; how to see more of a bug."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from vorta_trt.plugins.errors import VortaError, first_cause

# Beginnings of errors of diffusers and transformers, which import their modules lazily.
LAZY_IMPORTS = ("Failed to import", "Could not import module")
_PLAIN = (str, int, float, type(None))  # types of given values that a message shows


def check_text(options: Mapping[str, Any]) -> None:
    """Raises a usage error for an option's text that is not UTF-8; paths may hold any bytes.

    Raises:
        typer.BadParameter: A text is not UTF-8; the message names the text and its option.
    """
    for name, value in options.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and type(text) is str and any("\ud800" <= letter <= "\udfff" for letter in text):
                option = f"--{name.replace('_', '-')}"
                raise typer.BadParameter(f"{ascii(text)}: is not UTF-8 text; give it in UTF-8", param_hint=option)


def explained(error: Exception) -> str:
    """The message of an error, as the user reads it."""
    from vorta_trt.plugins.host_memory import REMEDY, is_out_of_memory

    if is_out_of_memory(error) and not isinstance(error, VortaError):
        return f"memory is used up ({str(error).strip().partition(chr(10))[0] or type(error).__name__}); {REMEDY}"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, VortaError):
        return f"{error.filename or 'system'}: {error.strerror}"
    if type(error).__name__ == "PydanticSerializationError" and "surrogates" in str(error):
        return "JSON: a path in the report is not UTF-8 text; rename the file, or leave out --json"
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):  # pydantic is not imported here
        return "; ".join(_problem(problem) for problem in error.errors())
    if type(error).__name__ == "MissingImageError" and hasattr(error, "of_command"):  # as above, not imported here
        return str(error.of_command)
    if isinstance(error, VortaError | ValueError | OSError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return (
            f"{error}\nclose what else uses the GPU, or take less of it: see the command's options on memory and size"
        )
    if isinstance(error, ImportError) or str(error).startswith(LAZY_IMPORTS):
        cause = first_cause(error)
        return (
            f"a package cannot be imported: {type(cause).__name__}: {cause}; see where with --debug, and install "
            f"versions that fit each other, such as those of constraints.txt"
        )
    return f"{type(error).__name__}: {error} (this is a bug of vorta-trt; see it with --debug and report it)"


def _problem(problem: Mapping[str, Any]) -> str:
    """One problem of a pydantic model: field, value, rule."""
    where, given = ".".join(map(str, problem["loc"])), problem["input"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not isinstance(given, _PLAIN):  # its text would look like code; messages of our own rules name the field
        return message if message != problem["msg"] or not where else f"{where}: {message}"
    return f"{where} {given!r}: {message}" if where else message
