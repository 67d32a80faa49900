# SPDX-License-Identifier: Apache-2.0
"""Root of the errors that a user can act on."""

from __future__ import annotations


class VortaError(RuntimeError):
    """An error whose message says what was given, which rule it breaks and what to do; shown without a traceback."""


class LibraryNotFoundError(VortaError, FileNotFoundError):
    """A shared library of this package is not where it is looked for."""


def first_cause(error: BaseException) -> BaseException:
    """The innermost error in the chain of errors that led to one; the error itself if none did."""
    while (before := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = before
    return error
