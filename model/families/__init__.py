# SPDX-License-Identifier: Apache-2.0
"""The registry of model families, and the one way from a name or a diffusers config to a family.

A family is a folder here with one line in `_FAMILIES`; `docs/adding-a-model.md` is the recipe. Everything outside this
package asks a `ModelFamily` and never names one. Importing the registry, or a family's facts, imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families.family import Guidance as Guidance
from vorta_trt.model.families.family import ModelFamily as ModelFamily
from vorta_trt.model.families.family import ModelInput as ModelInput
from vorta_trt.model.families.family import PipelineKind as PipelineKind

# Name of the family, which is also its folder -> the class of its facts there.
_FAMILIES = {
    "wan": "Wan",
    "hunyuan_video": "HunyuanVideo",
    "hunyuan_video_15": "HunyuanVideo15",
}
DEFAULT_FAMILY = next(iter(_FAMILIES))


def family_names() -> tuple[str, ...]:
    """The names of all families, as metadata and bundles hold them."""
    return tuple(_FAMILIES)


@cache
def get_family(name: str) -> ModelFamily:
    """The family of that name.

    Raises:
        ValueError: there is no such family.
    """
    if name not in _FAMILIES:
        raise ValueError(f"family {name!r}: must be one of {', '.join(map(repr, _FAMILIES))}")
    made: ModelFamily = getattr(importlib.import_module(f"{__name__}.{name}"), _FAMILIES[name])()
    return made


def families() -> tuple[ModelFamily, ...]:
    """All families, in the order of the registry."""
    return tuple(map(get_family, _FAMILIES))


def family_of_class(class_name: object) -> ModelFamily | None:
    """The family of a diffusers transformer class, None if it has none."""
    return next((family for family in families() if family.transformer_class == class_name), None)


def family_of_config(config: Mapping[str, Any], source: str) -> ModelFamily:
    """The family of a diffusers transformer config, by its class; its `check_config` says whether it takes the model.

    Args:
        config: the content of a transformer's config.json.
        source: where the config comes from, for errors.

    Raises:
        CheckpointError: no family has that class.
    """
    name = config.get("_class_name")
    family = family_of_class(name)
    if family is None:
        raise CheckpointError(
            f"{source}: its config.json says _class_name {name!r}; must be one of "
            f"{', '.join(known.transformer_class for known in families())}; point to a diffusers pipeline folder or "
            f"its transformer/ folder"
        )
    return family


def usual_shifts() -> str:
    """The flow shifts of all families in words, for help and errors."""
    return "; ".join(f"{family}: {family.usual_shifts}" for family in families())
