# SPDX-License-Identifier: Apache-2.0
"""Describes the transformers of a bundle, a file or models, without loading them: one transformer, or both experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.engines.bundle import Bundle
from vorta_trt.model.constants import COMPONENTS
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.model.video_size import VideoSize
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.sampling.path_source import timestep_path_of
from vorta_trt.runtime.target import Target, check_targets, read_target

if TYPE_CHECKING:
    from vorta_trt.model.timestep_path import TimestepPath

BUNDLED = "bundled"  # stands for the calibrated routes in the bundle, if it has any
Source = str | Path | Bundle | RoutedTransformer | tuple[RoutedTransformer, RoutedTransformer]
Override = str | Path | None


@dataclass(frozen=True)
class Expert:
    """One transformer of the source.

    Attributes:
        component: "transformer", or "transformer_2" for the second of two experts.
        source: The bundle, file or model, as `VortaTransformer.from_pretrained` takes it.
        path: Timestep path; None if it is not available.
        calibration: Calibrated routes; None without any.
        described: The metadata of a file or an engine, or the model in torch.
        target: The file, or the engine of a bundle; None for a model in torch.
    """

    component: str
    source: str | Path | Bundle | RoutedTransformer
    path: TimestepPath | None
    calibration: RouteCalibration | None
    described: Any
    target: Target | None = None

    @property
    def runs(self) -> Target | RoutedTransformer:
        """What runs the transformer: the file or the engine, or the model in torch."""
        if self.target is not None:
            return self.target
        assert isinstance(self.described, RoutedTransformer)
        return self.described


def experts_of(
    source: Source, override: Override | Mapping[str, Override], size: str | VideoSize | None = None
) -> tuple[Expert, ...]:
    """The transformers of a source: one, or both experts.

    Args:
        source: A file, a bundle, or models.
        override: Calibrated routes, for all transformers or by component.
        size: Which of a bundle's video sizes; None takes the first. Models in torch have the size of their geometry.

    Raises:
        ValueError: One of two experts is given without the other, or two models do not belong together.
    """
    if isinstance(source, RoutedTransformer | tuple):
        models = source if isinstance(source, tuple) else (source,)
        return tuple(_model_expert(model, override) for model in _both(models))
    target = read_target(source, size=size)
    if target.metadata is None:
        raise VortaError(f"{target.path}: `vorta-trt export` did not write it; export the checkpoint again")
    wanted = target.metadata.experts
    target.metadata.check_first(target.path)
    targets = [target, *(read_target(source, component=component, size=target.key.size) for component in wanted[1:])]
    check_targets(targets)
    return tuple(_file_expert(source, each, override) for each in targets)


def _both(models: Sequence[RoutedTransformer]) -> Sequence[RoutedTransformer]:
    """Returns the models; raises ValueError unless they are one transformer, or both experts of one pipeline."""
    if any(model.geometry is None for model in models):
        raise ValueError("geometry None: videos have the geometry's size; pass geometry= when building the model")
    ratio = models[0].boundary_ratio
    expected = COMPONENTS[:1] if ratio is None else COMPONENTS
    given = tuple(model.component for model in models)
    same = {(model.family, model.boundary_ratio, model.geometry, model.dtype) for model in models}
    if given != expected or len(same) > 1:
        raise ValueError(
            f"models {', '.join(given)}: must be {' and '.join(expected)} of one pipeline, in one geometry and dtype; "
            f"give a model alone, or both experts as a tuple, the one for high noise first"
        )
    return models


def _model_expert(model: RoutedTransformer, override: Override | Mapping[str, Override]) -> Expert:
    from vorta_trt.model.timestep_path import TimestepPath

    choice = _of_expert(override, model.component)
    calibration = None if choice in (None, BUNDLED) else RouteCalibration.load(str(choice))
    return Expert(model.component, model, TimestepPath.from_model(model), calibration, model)


def _file_expert(source: str | Path | Bundle, target: Target, override: Override | Mapping[str, Override]) -> Expert:
    metadata = target.metadata
    assert metadata is not None
    choice = _of_expert(override, metadata.component)
    if choice == BUNDLED:
        calibration = None if target.bundle is None else target.bundle.route_override()
    else:
        calibration = None if choice is None else RouteCalibration.load(choice)
    return Expert(metadata.component, source, timestep_path_of(target), calibration, metadata, target)


def _of_expert(override: Override | Mapping[str, Override], component: str) -> Override:
    """The override of one expert; if none is given for it, the routes of the bundle."""
    return override.get(component, BUNDLED) if isinstance(override, Mapping) else override
