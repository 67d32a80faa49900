# SPDX-License-Identifier: Apache-2.0
"""Where a timestep path comes from: a bundle, an exported ONNX file, or the checkpoint that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.model.precision import torch_dtype
from vorta_trt.runtime.target import Target, read_target

if TYPE_CHECKING:
    from vorta_trt.engines.bundle import Bundle
    from vorta_trt.export.metadata import ModelMetadata
    from vorta_trt.model.timestep_path import TimestepPath


def timestep_path_of(
    target: str | Path | Bundle | Target,
    checkpoint: str | Path | None = None,
    router: str | Path | None = None,
) -> TimestepPath | None:
    """The timestep path of a bundle or of an exported ONNX file; of a model at hand: `TimestepPath.from_model`.

    Args:
        checkpoint, router: what the target was made from; read if the target itself does not hold its timestep path.

    Returns: None for a bundle that was built before bundles held it and without its ONNX file, if there is no
        checkpoint either, and for files of another origin.
    Raises: FileNotFoundError, ValueError, VortaError: no such file, damaged, or the router is not the target's.
    """
    from vorta_trt.model.pipeline_folder import LOADING

    if not isinstance(target, Target):
        target = read_target(target)
    if target.metadata is None:
        return None
    with LOADING:
        path = _load(target, target.metadata, checkpoint, router)
    if path is not None and path.has_router != target.metadata.has_router:
        raise ValueError(
            f"{target.path}: its metadata and its timestep path disagree about a router; export or build it again"
        )
    return path


def _load(
    target: Target, metadata: ModelMetadata, checkpoint: str | Path | None, router: str | Path | None
) -> TimestepPath | None:
    from vorta_trt.export.onnx_file import read_onnx
    from vorta_trt.export.timestep_weights import timestep_weights
    from vorta_trt.model.timestep_path import TimestepPath

    model = _model(metadata)
    path: TimestepPath | None = None
    if target.bundle is not None and target.bundle.timestep_path is not None:
        path = TimestepPath.load(target.bundle.timestep_path, **model)
    elif target.onnx_path is not None:
        onnx = read_onnx(target.onnx_path)
        weights = timestep_weights(onnx, metadata.family)
        if weights is not None:
            source = str(target.onnx_path)
            path = TimestepPath.from_weights(weights.initializers, weights.load, source=source, **model)
    if path is None and checkpoint is not None:
        path = _of_checkpoint(metadata, checkpoint, router)
    return path


def _of_checkpoint(metadata: ModelMetadata, checkpoint: str | Path, router: str | Path | None) -> TimestepPath | None:
    """None if the target has a router and none is given."""
    from vorta_trt.export.describe import router_sha256
    from vorta_trt.model.timestep_path import TimestepPath
    from vorta_trt.model.transformer import RoutedTransformer

    if metadata.has_router and router is None:
        return None
    wanted = _model(metadata)
    model = RoutedTransformer.from_pretrained(
        checkpoint, router, wanted["geometry"], wanted["tau"], wanted["dtype"], materialize=False
    )
    if router_sha256(model) != metadata.router_sha256:
        raise ValueError(f"router {router}: not the one that the engine was built with; give that one, or leave it out")
    return TimestepPath.from_model(model)


def _model(metadata: ModelMetadata) -> dict[str, Any]:
    return {
        "family": metadata.family,
        "config": metadata.config,
        "geometry": metadata.attention_geometry,
        "dtype": torch_dtype(metadata.precision),
        "tau": metadata.tau,
        "checkpoint": metadata.checkpoint,
    }
