# SPDX-License-Identifier: Apache-2.0
"""`CheckpointReader`: the transformer of a checkpoint as users have it on disk, one tensor at a time.

`checkpoint_place` finds it, `safetensors_files` reads it, `scaled_fp8` multiplies out weights of 8 bits, and
`original_layout` gives the tensors of other layouts diffusers' names.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from vorta_trt.model.checkpoint_place import Place, find_place
from vorta_trt.model.configs import read_json, typed_config
from vorta_trt.model.constants import COMPONENTS, TRANSFORMER
from vorta_trt.model.errors import CheckpointError as CheckpointError
from vorta_trt.model.families import ModelFamily, families, family_of_class, family_of_config
from vorta_trt.model.model_index import MODEL_INDEX, check_model_index, read_model_index
from vorta_trt.model.model_opt import QUANTISATION, is_model_opt
from vorta_trt.model.original_layout import config_of, converted, family_by_names, is_diffusers_layout
from vorta_trt.model.safetensors_files import Weights
from vorta_trt.model.scaled_fp8 import MultipliedOut, multiplied_out

STORED_TYPES = ("F64", "F32", "F16", "BF16")  # stored types of weights that can be rounded to the requested dtype


class CheckpointReader:
    """The weights of a transformer under diffusers' names, read lazily from safetensors files.

    Args:
        path: A diffusers pipeline folder, its `transformer/` folder, or one of the other forms in `checkpoint_place`.
        component: "transformer", or "transformer_2" for the second of two experts.
        variant: Variant in the names of the weight files, as in diffusers, e.g. "fp16"; None takes the files without
            one.

    Attributes:
        path: Path as given.
        component: Component as given.
        experts: The components of all experts that the pipeline has.
        boundary_ratio: Where the second of two experts takes over; None with one.
        origin: The file or folder of the weights, for errors.
        folder: The folder of the weights.
        config: Config of the transformer: its config.json, with diffusers' defaults for missing entries; without a
            config.json, what the shapes of the weights say.
        config_source: File or folder that the config comes from, for errors.
        family: Name of the model family.
        float8_count: How many of its tensors are stored in float8.

    A context manager; `close` drops the file mappings. Tensors are views into them, paged in on first use.

    Raises:
        FileNotFoundError: No such folder, or a file of it is missing.
        CheckpointError: Not a transformer that vorta-trt routes, or a corrupt file.
    """

    def __init__(self, path: str | Path, component: str = TRANSFORMER, *, variant: str | None = None) -> None:
        self.path, self.component = Path(path), component
        place = find_place(self.path, component)
        self.folder, self.origin = place.folder, place.origin
        given, family = _config_beside(place)
        model_opt = False
        if place.config is not None and family is not None:
            model_opt = is_model_opt(given, place.config)
            given = {name: value for name, value in given.items() if name != QUANTISATION}
        weights = multiplied_out(place.open(variant), model_opt)
        self.float8_count = weights.float8_count if isinstance(weights, MultipliedOut) else 0
        family, self._weights, config, self.config_source = _in_diffusers_layout(place, given, family, weights)
        self.family = family.name
        source = f"checkpoint {self.path}"
        self.config: dict[str, Any] = typed_config(family.diffusers_transformer(), config, self.config_source)
        family.check_config(self.config, source)
        self.experts: tuple[str, ...] = (TRANSFORMER,)
        self.boundary_ratio: float | None = None
        if place.has_authors_experts:
            self.experts, self.boundary_ratio = COMPONENTS, family.published_boundary(self.config)
        if place.pipeline is not None and (place.pipeline / MODEL_INDEX).is_file():
            # What lies beside the transformer decides how it is sampled.
            index, kinds = read_model_index(place.pipeline), family.pipeline_kinds(self.config)
            kind = next((kind for kind in kinds if kind.pipeline == index.pipeline), kinds[0])
            if kinds[0].images and index.pipeline not in (None, *(kind.pipeline for kind in kinds)):
                raise CheckpointError(
                    f"{source}: its {self.component} is that of a {kinds[0].pipeline}, of videos that begin with an "
                    f"image, but its {MODEL_INDEX} says {index.pipeline}; restore the files of one published checkpoint"
                )
            check_model_index(index, family, kind, place.pipeline)
            self.experts, self.boundary_ratio = index.experts, index.boundary_ratio
        self._check_component(source, place)
        self._names = frozenset(self._weights.names())

    def _check_component(self, source: str, place: Place) -> None:
        """Raises CheckpointError unless the requested expert is there and is the one that the path leads to."""
        if self.component not in self.experts:
            raise CheckpointError(
                f"{source}: its {MODEL_INDEX} has no {self.component}, so it is a pipeline of one transformer; leave "
                f"out what concerns the second"
            )
        if len(self.experts) > 1 and self.boundary_ratio is None:
            raise CheckpointError(
                f"{source}: has two experts, and nothing says at which step they switch; use the checkpoint in "
                f"diffusers' layout, whose {MODEL_INDEX} does"
            )
        if len(self.experts) > 1 and (place.file is not None or place.component not in (None, self.component)):
            what = "a file of one" if place.file is not None else "the second"
            raise CheckpointError(
                f"{source}: is {what} of two experts; give the folder of both, {self.folder.parent}, and say which "
                f"expert where only one is meant"
            )

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def tensor(self, name: str) -> Tensor:
        """The tensor as it is stored, a view into the mapped file; in float32 where it is stored in float8."""
        return self._weights.tensor(name)

    def float8_weight(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A weight as it is stored in e4m3, [O, K], and its scale, float32 [O]; None unless it is stored so."""
        return self._weights.e4m3(name) if isinstance(self._weights, MultipliedOut) else None

    @property
    def input_scales(self) -> dict[str, float]:
        """Static scales of the inputs of linear layers, by layer, where the checkpoint was calibrated with some."""
        return self._weights.input_scales() if isinstance(self._weights, MultipliedOut) else {}

    @property
    def unquantised(self) -> tuple[str, ...]:
        """Linear layers that a checkpoint in float8 holds in 16 bits or more."""
        return self._weights.unquantised() if isinstance(self._weights, MultipliedOut) else ()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._weights.shape(name)

    def stored_type(self, name: str) -> str:
        """Data type of a tensor as safetensors names it, without reading it; F32 where it is stored in float8."""
        return self._weights.stored_type(name)

    def close(self) -> None:
        """Lets go of the files; a tensor that is asked for later maps them again."""
        self._weights.close()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _config_beside(place: Place) -> tuple[dict[str, Any], ModelFamily | None]:
    """The config.json beside the weights, and its family; None for the authors' layout, or without a config.

    A config of an unknown class beside a single file is ignored: in a folder of many files it may be that of another
    model.
    """
    if place.config is None:
        return {}, None
    config = read_json(place.config, "a diffusers transformer")
    kind = config.get("_class_name")
    if kind is not None and any(kind == family.authors_class for family in families()):
        return config, None
    if place.file is not None and family_of_class(kind) is None:
        return {}, None
    is_model_opt(config, place.config)
    return config, family_of_config(config, f"checkpoint {place.origin}")


def _in_diffusers_layout(
    place: Place, given: dict[str, Any], family: ModelFamily | None, weights: Weights
) -> tuple[ModelFamily, Weights, dict[str, Any], Path]:
    """Family, weights, config and where the config comes from, whatever layout the weights are stored in."""
    if family is not None:
        assert place.config is not None
        if place.file is not None and not is_diffusers_layout(weights, family):
            found, weights = converted(weights, place.origin)
            if found is not family:
                raise CheckpointError(
                    f"checkpoint {place.origin}: its tensors are those of {found}, and {place.config} is the config of "
                    f"{family}; config.json and weights must belong together"
                )
        return family, weights, given, place.config
    family = family_by_names(weights)
    if family is None:
        family, weights = converted(weights, place.origin)
    shapes = {name: weights.shape(name) for name in weights.names()}
    return family, weights, config_of(family, shapes, given, place.origin), place.origin
