# SPDX-License-Identifier: Apache-2.0
"""The transformers of what a user gives: one, or both experts, described and not loaded."""

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

BUNDLED = "bundled"  # the routes that lie in the bundle, if any do
Source = str | Path | Bundle | RoutedTransformer | tuple[RoutedTransformer, RoutedTransformer]
Override = str | Path | None


@dataclass(frozen=True)
class Expert:
    """One transformer of the source.

    Attributes:
        component: "transformer", or "transformer_2" for the second of two experts.
        source: What `VortaTransformer.from_pretrained` takes.
        path: Timestep path, None if it is not at hand.
        calibration: Calibrated routes, or None.
        described: Metadata or the model.
        target: The file or the engine of a bundle; None for a model in torch.
    """

    component: str
    source: str | Path | Bundle | RoutedTransformer
    path: TimestepPath | None
    calibration: RouteCalibration | None
    described: Any
    target: Target | None = None

    @property
    def runs(self) -> Target | RoutedTransformer:
        """What computes: the file or the engine, or the model in torch."""
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
        override: Calibrated routes, for all or by component.
        size: Which of a bundle's video sizes; None takes the first. Models in torch have the size of their geometry.

    Raises:
        ValueError: One of two experts without the other, or two models that do not belong together.
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
    """Models in torch, of which one of two experts does not come alone."""
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
    """What is said of one expert: without a word of it, the routes of the bundle."""
    return override.get(component, BUNDLED) if isinstance(override, Mapping) else override
