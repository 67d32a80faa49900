# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between an ONNX file and an open bundle; every message says what was given and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from vorta_trt.plugins.errors import VortaError


class FlavourError(VortaError):
    """A TensorRT flavour is unknown, not installed, too old, or cannot do what was asked on this machine."""


class BuildError(VortaError):
    """TensorRT refused the network or the build; `messages` holds what TensorRT logged."""

    def __init__(self, message: str, messages: Sequence[str] = ()) -> None:
        self.messages = tuple(messages)
        logged = "".join(f"\n  TensorRT: {line}" for line in self.messages[:MOST_LOGGED_LINES])
        if len(self.messages) > MOST_LOGGED_LINES:
            logged += f"\n  ... and {len(self.messages) - MOST_LOGGED_LINES} more messages"
        super().__init__(message + logged)


class BuildCancelled(BuildError):
    """The build was stopped by a signal, by Ctrl-C, or by the progress callback."""


class BundleError(VortaError):
    """A bundle is damaged or does not fit this machine; `problems` names every mismatch found."""

    def __init__(self, path: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(f"{path}: {self.problems[0]}")
            return
        listed = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{path}: {len(self.problems)} problems with this bundle:{listed}")


class SelectionError(VortaError, ValueError):
    """A component or a video size was asked for that a bundle or a file does not hold."""


MOST_LOGGED_LINES = 20
