# SPDX-License-Identifier: Apache-2.0
"""Optional packages: each is installed by an extra of vorta-trt, and imported when something needs it."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from vorta_trt.plugins.errors import VortaError

Extra = Literal["compare", "plot", "polygraphy", "serve", "tracing", "train", "video"]


def extra_command(extra: Extra | Literal["rtx", "tensorrt"]) -> str:
    """Command that installs an extra: there is no release of vorta-trt yet, so it is installed from its sources."""
    return f"pip install '.[{extra}]' in the folder of vorta-trt's sources"


class MissingExtraError(VortaError, ImportError):
    """A package of an extra is not installed; the message says which extra to install."""


def import_extra(module: str, extra: Extra) -> Any:
    """Imports a module of an optional package.

    Args:
        module: Full name of the module, such as "matplotlib.figure".
        extra: An extra of vorta-trt, as pyproject.toml lists them.

    Returns:
        The module.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(f"package {package} is not installed ({error}); run {extra_command(extra)}") from error
