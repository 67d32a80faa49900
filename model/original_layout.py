# SPDX-License-Identifier: Apache-2.0
"""Weights in the layout of a model's authors or of ComfyUI, under diffusers' names, through diffusers' own converters.

diffusers converts a whole state dict at once, which must lie in memory. Here its converter is called twice for every
tensor: once on its shape alone, which tells the new names, and once on the tensor when it is asked for. That gives the
same as long as the converter takes each tensor on its own, renaming it or cutting it up; a check on the shapes of the
whole checkpoint says whether it does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import ModelFamily, families
from vorta_trt.model.safetensors_files import Weights

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]
_UNKNOWN = "v1"  # what diffusers answers for weights that it does not know
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.model.", "model.")


class ConvertedWeights:
    """Weights under diffusers' names.

    Args:
        stored: Weights as they are stored.
        prefix: Prefix of the stored names of the transformer's tensors; other tensors are ignored.
        convert: diffusers' converter, with the family's additions.

    Raises:
        CheckpointError: The converter does not take these tensors, or not one at a time.
    """

    def __init__(self, stored: Weights, prefix: str, convert: Convert) -> None:
        self._stored, self._prefix, self._convert = stored, prefix, convert
        shapes = {name.removeprefix(prefix): stored.shape(name) for name in stored.names() if name.startswith(prefix)}
        self._sources: dict[str, tuple[str, tuple[int, ...]]] = {}  # new name -> old name, new shape
        for old, shape in shapes.items():
            for new, tensor in convert({old: _meta(shape)}).items():
                self._sources[new] = old, tuple(tensor.shape)
        together = convert({name: _meta(shape) for name, shape in shapes.items()})
        if {name: tuple(tensor.shape) for name, tensor in together.items()} != {
            name: shape for name, (_, shape) in self._sources.items()
        }:
            raise CheckpointError(
                "diffusers' converter makes other tensors of the whole than of each one, so they cannot be read one "
                "at a time; convert the checkpoint with diffusers (from_single_file, save_pretrained)"
            )

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._source(name)[1]

    def stored_type(self, name: str) -> str:
        """Data type of the stored tensor that a tensor is made of."""
        return self._stored.stored_type(self._prefix + self._source(name)[0])

    def tensor(self, name: str) -> Tensor:
        """The tensor; a view into the mapped file where it is only renamed or cut out."""
        old = self._source(name)[0]
        return self._convert({old: self._stored.tensor(self._prefix + old)})[name]

    def close(self) -> None:
        """Lets go of the files."""
        self._stored.close()

    def _source(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self._sources:
            raise CheckpointError(
                f"tensor {name!r}: not among the {len(self._sources)} tensors of the checkpoint; is it the checkpoint "
                f"of another model?"
            )
        return self._sources[name]


def is_diffusers_layout(weights: Weights, family: ModelFamily) -> bool:
    """Whether tensors have the names that diffusers' model of a family gives them."""
    starts = (family.always_loaded[0], *(f"{stack}.0." for stack in family.router_stacks))
    return all(any(name.startswith(start) for name in weights.names()) for start in starts)


def family_by_names(weights: Weights) -> ModelFamily | None:
    """The family whose diffusers names the tensors have, None if they have other names."""
    return next((family for family in families() if is_diffusers_layout(weights, family)), None)


def converted(weights: Weights, origin: Path) -> tuple[ModelFamily, ConvertedWeights]:
    """The family of a checkpoint in the layout of its authors or of ComfyUI, and its weights under diffusers' names.

    Args:
        weights: Weights as they are stored.
        origin: Where they come from, for errors.

    Raises:
        CheckpointError: diffusers does not know the model, or it is of no family.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    classes: Mapping[str, Any] = SINGLE_FILE_LOADABLE_CLASSES
    guesses: dict[str, str] = {}  # prefix -> what diffusers takes the tensors for
    for prefix in _PREFIXES:
        shapes = {name.removeprefix(prefix): weights.shape(name) for name in weights.names() if name.startswith(prefix)}
        if shapes:
            guesses[prefix] = _inferred_type({name: _meta(shape) for name, shape in shapes.items()})
    for prefix, guess in guesses.items():
        family = next((known for known in families() if guess in known.original_types), None)
        if family is None or (prefix == "" and _is_prefixed(weights)):
            continue
        mapping = classes[family.transformer_class]["checkpoint_mapping_fn"]
        if aside := sum(not name.startswith(prefix) for name in weights.names()):
            logger.info("checkpoint %s: %d tensors are no part of the transformer and are left aside", origin, aside)
        try:
            return family, ConvertedWeights(weights, prefix, _converter(mapping, family))
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {origin}: {error}") from error
        except Exception as error:  # of diffusers' code, on tensors that are not ours
            raise CheckpointError(
                f"checkpoint {origin}: diffusers takes it for {guess!r}, and its converter fails on it "
                f"({type(error).__name__}: {error}); use the checkpoint in diffusers' layout"
            ) from error
    names = sorted({guess for guess in guesses.values() if guess != _UNKNOWN})
    what = f"diffusers takes it for {' or '.join(map(repr, names))}" if names else "diffusers does not know the model"
    known = ", ".join(kind for family in families() for kind in family.original_types)
    raise CheckpointError(
        f"checkpoint {origin}: by the names of its tensors {what}; must be one of {known}, or in diffusers' layout "
        f"with its config.json"
    )


def config_of(family: ModelFamily, shapes: Shapes, theirs: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """The diffusers config that tensors of these shapes belong to; see `ModelFamily.original_config`.

    Raises:
        CheckpointError: Tensors that every such model has are missing, or have other shapes.
    """
    try:
        config = family.original_config(shapes, theirs)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        why = {KeyError: f"tensor {error} is missing", ValueError: str(error)}.get(type(error), "a shape is not theirs")
        raise CheckpointError(
            f"checkpoint {origin}: has no config.json of diffusers' layout beside its weights, and these are not those "
            f"of a whole {family} transformer of published shape ({why}), from which it could be made; restore "
            f"{(origin.parent if origin.is_file() else origin) / 'config.json'}, or download the checkpoint again"
        ) from error
    return {"_class_name": family.transformer_class, **config}


def _converter(mapping: Callable[..., dict[str, Tensor]], family: ModelFamily) -> Convert:
    def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = mapping(checkpoint=dict(tensors), config={})
        return {family.original_names.get(name, name): tensor for name, tensor in renamed.items()}

    return convert


def _inferred_type(shapes: dict[str, Tensor]) -> str:
    """The model type that diffusers infers; it knows some models in published sizes alone, and fails on others."""
    from diffusers.loaders import single_file_utils

    infer: Callable[[dict[str, Tensor]], str] = single_file_utils.infer_diffusers_model_type
    try:
        return infer(shapes)
    except (UnboundLocalError, KeyError, AttributeError, ValueError):
        return _UNKNOWN


def _is_prefixed(weights: Weights) -> bool:
    """Whether the transformer's names have the prefix of files that may hold other parts of a pipeline, too."""
    return any(name.startswith(_PREFIXES[1]) for name in weights.names())


def _meta(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, device="meta")
