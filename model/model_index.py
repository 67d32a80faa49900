# SPDX-License-Identifier: Apache-2.0
"""The content of a pipeline folder's model_index.json: its components, and settings of the sampling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vorta_trt.model.configs import read_json
from vorta_trt.model.constants import TRANSFORMER, TRANSFORMER_2
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.experts import BOUNDARY, check_boundary
from vorta_trt.model.families import ModelFamily, PipelineKind

MODEL_INDEX = "model_index.json"
ALWAYS = ("transformer", "scheduler")  # components of every pipeline


@dataclass(frozen=True)
class ModelIndex:
    """The content of a model_index.json.

    Attributes:
        pipeline: diffusers' class of the pipeline, None if the file does not say.
        components: library and class of every component that the folder has.
        settings: further arguments of the pipeline's class.
    """

    pipeline: str | None
    components: dict[str, tuple[str, str]]
    settings: dict[str, Any]

    @property
    def experts(self) -> tuple[str, ...]:
        """The transformers. Some converted folders of one transformer keep a boundary ratio, which means nothing."""
        return (TRANSFORMER, TRANSFORMER_2) if TRANSFORMER_2 in self.components else (TRANSFORMER,)

    @property
    def boundary_ratio(self) -> float | None:
        """Where the second of two experts takes over; None with one."""
        return None if len(self.experts) == 1 else self.settings.get(BOUNDARY)


def read_model_index(folder: Path) -> ModelIndex:
    """Reads a pipeline folder's model_index.json.

    Raises:
        CheckpointError: it is not what diffusers writes.
    """
    file = folder / MODEL_INDEX
    content = read_json(file, "a diffusers pipeline")
    components: dict[str, tuple[str, str]] = {}
    for name, entry in content.items():
        if not isinstance(entry, list):
            continue
        if entry in ([None, None], [None]):
            continue
        if len(entry) != 2 or not all(isinstance(part, str) for part in entry):
            raise CheckpointError(
                f"{file}: {name} {entry!r}: must be a library and a class of it, or [null, null]; "
                f"restore the original file of the checkpoint"
            )
        components[name] = (entry[0], entry[1])
    settings = {
        name: value for name, value in content.items() if not name.startswith("_") and not isinstance(value, list)
    }
    pipeline = content.get("_class_name")
    if pipeline is not None and not isinstance(pipeline, str):
        raise CheckpointError(f"{file}: _class_name {pipeline!r}: must be the name of a pipeline; restore the original")
    return ModelIndex(pipeline, components, settings)


def check_model_index(index: ModelIndex, family: ModelFamily, kind: PipelineKind, folder: Path) -> None:
    """Refuses a folder whose pipeline would run something else than the routed transformers.

    Args:
        index: content of the folder's model_index.json.
        family: family of the folder's transformer.
        kind: kind of pipeline that runs the transformer.
        folder: the folder, for errors.

    Raises:
        CheckpointError: the folder has components that nobody runs, or settings that would be ignored; the message
            names all of them. Or it has two experts of different classes, or without a boundary.
    """
    known = {*ALWAYS, *kind.components, *((TRANSFORMER_2,) if kind.two_experts else ())}
    foreign = [f"{name} ({kind})" for name, (_, kind) in index.components.items() if name not in known]
    ignored = {*family.neutral_settings, *((BOUNDARY,) if kind.two_experts else ())}
    foreign += [
        f"{name} {value!r}"
        for name, value in index.settings.items()
        if value not in (None, False, kind.settings.get(name)) and not (name in ignored and not foreign)
    ]
    if foreign:
        raise CheckpointError(
            f"checkpoint {folder}: its {MODEL_INDEX} has {', '.join(foreign)}, which vorta-trt does not run yet, so "
            f"the videos would be those of another model; use a pipeline of one {family} transformer, such as "
            f"{family.demo.checkpoint}"
        )
    if len(index.experts) > 1:
        source = f"checkpoint {folder}: its {MODEL_INDEX}"
        check_boundary(index.settings.get(BOUNDARY), source)
        kinds = [index.components.get(name) for name in index.experts]
        if kinds[0] != kinds[1]:
            raise CheckpointError(
                f"{source} has {TRANSFORMER} {kinds[0]!r} and {TRANSFORMER_2} {kinds[1]!r}; both experts must be of "
                f"one class; restore the original file of the checkpoint"
            )
