# SPDX-License-Identifier: Apache-2.0
"""Reads the timestep path of a bundle or of an exported ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.model.precision import torch_dtype
from vorta_trt.runtime.target import Target, read_target

if TYPE_CHECKING:
    from vorta_trt.engines.bundle import Bundle
    from vorta_trt.model.timestep_path import TimestepPath


def timestep_path_of(source: str | Path | Bundle | Target) -> TimestepPath | None:
    """The timestep path of a bundle or of an exported ONNX file. For a loaded model, use `TimestepPath.from_model`.

    Args:
        source: The bundle or the ONNX file.

    Returns:
        The path. None for files that vorta-trt did not export, and for bundles that hold neither a timestep path, as
        old ones do, nor an ONNX file to read it from.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged.
    """
    from vorta_trt.export.onnx_file import read_onnx
    from vorta_trt.export.timestep_weights import timestep_weights
    from vorta_trt.model.pipeline_folder import LOADING
    from vorta_trt.model.timestep_path import TimestepPath

    target = source if isinstance(source, Target) else read_target(source)
    metadata = target.metadata
    if metadata is None:
        return None
    model: dict[str, Any] = {
        "family": metadata.family,
        "config": metadata.config,
        "geometry": metadata.attention_geometry,
        "dtype": torch_dtype(metadata.precision),
        "tau": metadata.tau,
        "checkpoint": None if metadata.lora else metadata.checkpoint,  # a model with a LoRA is not the published one
    }
    path: TimestepPath | None = None
    with LOADING:
        if target.bundle is not None and target.bundle.timestep_path is not None:
            path = TimestepPath.load(target.bundle.timestep_path, **model)
        elif target.onnx_path is not None:
            weights = timestep_weights(read_onnx(target.onnx_path), metadata.family)
            if weights is not None:
                name = str(target.onnx_path)
                path = TimestepPath.from_weights(weights.initializers, weights.load, source=name, **model)
    if path is not None and path.has_router != metadata.has_router:
        raise ValueError(
            f"{target.path}: its metadata and its timestep path disagree about a router; export or build it again"
        )
    return path
