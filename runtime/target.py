# SPDX-License-Identifier: Apache-2.0
"""A bundle or an exported ONNX file, described without loading it into anything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.manifest import MANIFEST
from vorta_trt.engines.manifest import TensorSpec as ManifestSpec
from vorta_trt.export.metadata import KEY, ModelMetadata
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.runtime.executors.onnx_executors import graph_specs
from vorta_trt.runtime.tensors import TensorSpec

BATCH = "batch"  # what -1 in a manifest's shapes stands for


@dataclass(frozen=True)
class Target:
    """What a path holds.

    Attributes:
        path: As given.
        bundle: None for an ONNX file.
        onnx_path: The ONNX file, or a bundle's copy of it if it has one.
        metadata: What the exporter wrote, None for an ONNX file of another origin.
        inputs: In order.
        outputs: In order.
    """

    path: Path
    bundle: Bundle | None
    onnx_path: Path | None
    metadata: ModelMetadata | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def read_target(path: str | Path | Bundle, *, verify: bool = False) -> Target:
    """Reads a bundle's manifest or an ONNX file's graph, made for whatever machine.

    Args:
        path: A bundle folder, an .onnx file, or an opened bundle.
        verify: Hash every file of a bundle.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is something else.
        VortaError: It is damaged.
    """
    if isinstance(path, Bundle):
        return _of_bundle(path.path, path)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such bundle or ONNX file; make one with `vorta-trt build` or `vorta-trt export`"
        )
    if path.is_dir():
        return _of_bundle(path, Bundle.open(path, verify=verify, runtime=False))
    if path.name == MANIFEST:
        raise ValueError(f"{path}: is the manifest of a bundle; give its folder, {path.parent}")
    file = read_onnx(path)
    return Target(path, None, path, file.metadata, *graph_specs(file.model))


def manifest_spec(spec: ManifestSpec) -> TensorSpec:
    """A manifest's tensor as a `TensorSpec`."""
    shape = tuple(BATCH if size == -1 else size for size in spec.shape)
    if spec.profile is None:
        return TensorSpec(spec.name, spec.dtype, shape)
    return TensorSpec(spec.name, spec.dtype, shape, tuple(spec.profile.min), tuple(spec.profile.max))


def _of_bundle(path: Path, bundle: Bundle) -> Target:
    manifest = bundle.manifest
    inputs, outputs = (tuple(map(manifest_spec, specs)) for specs in (manifest.inputs, manifest.outputs))
    metadata = None
    if manifest.metadata is not None:
        metadata = ModelMetadata.from_metadata_props({KEY: json.dumps(manifest.metadata)}, str(path))
    return Target(path, bundle, bundle.onnx_path, metadata, inputs, outputs)
