# SPDX-License-Identifier: Apache-2.0
"""The manifest's description of the model, read from the metadata that the exporter wrote into the ONNX file."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.engines.errors import BuildError
from vorta_trt.export.errors import OnnxFileError
from vorta_trt.export.metadata import KEY
from vorta_trt.export.onnx_file import OnnxFile
from vorta_trt.plugins.operator_schema import FP8_LINEAR, LARGEST_BUCKET, AttentionPrecision

if TYPE_CHECKING:
    from vorta_trt.model.geometry import AttentionGeometry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelDescription:
    """Fields of the manifest that describe the model.

    For an ONNX file that vorta-trt did not export they are None, except `attention_precision`, which its nodes state.
    """

    family: str | None = None
    config: dict[str, Any] | None = None
    geometry: dict[str, Any] | None = None
    precision: Any = None
    attention_precision: AttentionPrecision = "same"
    op_version: int | None = None
    metadata: dict[str, Any] | None = None

    @property
    def has_second(self) -> bool:
        """Whether the model is one of two experts, which belong into one bundle."""
        return (self.metadata or {}).get("boundary_ratio") is not None


def check_kernel_limits(geometry: AttentionGeometry, source: Path) -> None:
    """Raises BuildError for a geometry that torch and ONNX Runtime can compute, but not the kernels of an engine."""
    if geometry.bucket_tokens > LARGEST_BUCKET:
        raise BuildError(
            f"{source}: bucket {geometry.bucket} of its coreset has {geometry.bucket_tokens} tokens, and the kernels "
            f"take at most {LARGEST_BUCKET}; make the model with a smaller bucket, e.g. (2, 3, 2)"
        )


def describe_model(onnx: OnnxFile, strict: bool) -> ModelDescription:
    """Reads the metadata. Without it or without RoutedAttention nodes: an OnnxFileError if `strict`, else a warning."""
    if not onnx.routed_nodes:
        _refuse(onnx, strict, "it has no vorta::RoutedAttention node, so nothing in it is routed")
    metadata = onnx.metadata
    if metadata is None:
        _refuse(onnx, strict, f"it has no {KEY} metadata (did a tool that rewrote the file drop it?)")
        return ModelDescription(attention_precision=onnx.attention_precision)
    if metadata.num_layers != len(onnx.routed_nodes):
        raise OnnxFileError(
            f"{onnx.path}: its metadata speaks of {metadata.num_layers} layers, but it has {len(onnx.routed_nodes)} "
            "RoutedAttention nodes; export it again with vorta-trt export"
        )
    if metadata.attention_precision != onnx.attention_precision:
        raise OnnxFileError(
            f"{onnx.path}: its metadata speaks of attention precision {metadata.attention_precision!r}, but its "
            f"RoutedAttention nodes of {onnx.attention_precision!r}; export it again with vorta-trt export"
        )
    if len(metadata.fp8_layers) != onnx.block_operators[FP8_LINEAR.name]:
        raise OnnxFileError(
            f"{onnx.path}: its metadata speaks of {len(metadata.fp8_layers)} layers with fp8 products, but it has "
            f"{onnx.block_operators[FP8_LINEAR.name]} {FP8_LINEAR.name} nodes; export it again with vorta-trt export"
        )
    check_kernel_limits(metadata.attention_geometry, onnx.path)
    content: dict[str, Any] = json.loads(metadata.model_dump_json())  # plain JSON types, for the strict manifest
    return ModelDescription(
        family=metadata.family,
        config=content["config"],
        geometry=content["geometry"],
        precision=metadata.precision,
        attention_precision=metadata.attention_precision,
        op_version=metadata.operator_version,
        metadata=content,
    )


def check_route_override(path: Path, description: ModelDescription) -> None:
    """Raises ValueError or FileNotFoundError unless a file of calibrated routes is for the model."""
    from vorta_trt.model.geometry import AttentionGeometry
    from vorta_trt.model.route_calibration import RouteCalibration

    calibration = RouteCalibration.load(path)
    if description.family is None or description.metadata is None or description.geometry is None:
        raise ValueError(
            f"route_override {path}: cannot be checked, for the ONNX file says neither family nor heads; leave it out, "
            f"or export the model with vorta-trt export"
        )
    layers, heads = description.metadata["num_layers"], description.metadata["num_heads"]
    component = description.metadata["component"] if description.has_second else None
    geometry, checkpoint = AttentionGeometry.from_dict(description.geometry), description.metadata["checkpoint"]
    calibration.check(description.family, layers, heads, geometry, component, checkpoint)


def _refuse(onnx: OnnxFile, strict: bool, reason: str) -> None:
    message = f"{onnx.path}: not a model that vorta-trt exported: {reason}; export it again with vorta-trt export"
    if strict:
        raise OnnxFileError(f"{message}, or pass strict=False (--no-strict) to build it as it is")
    logger.warning("%s", message)


def created_by() -> str:
    """Name and version of this package, for the manifest."""
    try:
        return f"vorta-trt {importlib.metadata.version('vorta-trt')}"
    except importlib.metadata.PackageNotFoundError:
        return "vorta-trt (not installed)"
