# SPDX-License-Identifier: Apache-2.0
"""Describes a bundle or an exported ONNX file without loading it into an executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.engine_key import EngineKey, choose
from vorta_trt.engines.manifest import MANIFEST
from vorta_trt.engines.manifest import TensorSpec as ManifestSpec
from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.export.names import check_second, component_file
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model.constants import COMPONENTS, TRANSFORMER
from vorta_trt.model.files import absence
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.executors.onnx_executors import graph_specs
from vorta_trt.runtime.tensors import TensorSpec

BATCH = "batch"  # name of the axis whose size is -1 in a manifest's shapes


@dataclass(frozen=True)
class Target:
    """One model at a path: an ONNX file, or the selected engine of a bundle.

    Attributes:
        path: Path of the bundle or the ONNX file; for a second expert or another component, the path of its own file.
        bundle: A view of the selected engine; None for an ONNX file.
        key: Component and video size.
        onnx_path: The ONNX file, or the bundle's copy of it; None for a bundle without a copy.
        metadata: The exporter's metadata; None for an ONNX file that vorta-trt did not export.
        inputs: Specs of the inputs, in order.
        outputs: Specs of the outputs, in order.
    """

    path: Path
    bundle: Bundle | None
    key: EngineKey
    onnx_path: Path | None
    metadata: ModelMetadata | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def read_target(
    path: str | Path | Bundle,
    *,
    component: str | None = None,
    size: str | VideoSize | None = None,
    verify: bool = False,
) -> Target:
    """Reads a bundle's manifest or an ONNX file's graph; works on any machine.

    Args:
        path: A bundle folder, an .onnx file, or an opened bundle.
        component: "transformer" or "transformer_2", or a graph of a VAE or a text encoder; for an ONNX file, all but
            the first are files beside it. None takes the first one, or for a `Bundle.select` view the selected one.
        size: Which of the video sizes of a bundle, as "81x480x832"; None takes the first one, or for a view the
            selected one.
        verify: Whether to hash every file of a bundle.

    Raises:
        FileNotFoundError: There is no such file.
        SelectionError: There is no such component or size; the message names the existing ones.
        ValueError: The path is neither a bundle nor an ONNX file.
        VortaError: The bundle or the file is damaged.
    """
    if isinstance(path, Bundle):
        return _of_bundle(path.path, path.select(component, size))
    path = Path(path)
    if component is not None and component not in COMPONENTS and path.is_file():
        file = component_file(path, component)
        inputs, outputs = graph_specs(read_onnx(file).model)
        return Target(file, None, EngineKey(component, None), file, None, inputs, outputs)
    if not path.exists():
        there = absence(path, "no such bundle or ONNX file")
        raise FileNotFoundError(f"{path}: {there}; make one with `vorta-trt build` or `vorta-trt export`")
    if path.is_dir():
        return _of_bundle(path, Bundle.open(path, verify=verify, runtime=False).select(component, size))
    if path.name == MANIFEST:
        raise ValueError(f"{path}: is the manifest of a bundle; give its folder, {path.parent}")
    return _of_onnx(path, component, size)


def read_targets(path: str | Path, component: str | None = None, size: str | VideoSize | None = None) -> list[Target]:
    """All engines of a bundle, or both experts of an ONNX file, restricted to a component or a size if given.

    Raises:
        ValueError: The files of both experts do not belong together.
        Exception: Whatever `read_target` raises.
    """
    first = read_target(path, component=component, size=size)  # raises if the component or the size does not exist
    if first.bundle is not None:
        keys = [key for key in first.bundle.engines if component in (None, key.component)]
        keys = [key for key in keys if size is None or key.size == first.key.size]
    else:
        experts = (first.key.component,) if first.metadata is None or component else first.metadata.experts
        keys = [EngineKey(expert, first.key.size) for expert in experts]
    targets = [read_target(first.bundle or path, component=key.component, size=key.size) for key in keys]
    check_targets(targets)
    return targets


def check_targets(targets: Sequence[Target]) -> None:
    """Raises ValueError unless the first target and the others are experts or sizes of one model."""
    first, *others = targets
    for other in others:
        if first.metadata is not None and other.metadata is not None:
            other.metadata.check_together(first.metadata, other.path, first.path)


def manifest_spec(spec: ManifestSpec) -> TensorSpec:
    """A manifest's tensor as a `TensorSpec`."""
    shape = tuple(BATCH if size == -1 else size for size in spec.shape)
    if spec.profile is None:
        return TensorSpec(spec.name, spec.dtype, shape)
    return TensorSpec(spec.name, spec.dtype, shape, tuple(spec.profile.min), tuple(spec.profile.max))


def _of_bundle(path: Path, bundle: Bundle) -> Target:
    manifest = bundle.manifest
    inputs, outputs = (tuple(map(manifest_spec, specs)) for specs in (manifest.inputs, manifest.outputs))
    metadata = None if manifest.metadata is None else manifest.model_metadata(str(path))
    return Target(path, bundle, manifest.key, bundle.onnx_path, metadata, inputs, outputs)


def _of_onnx(path: Path, component: str | None, size: str | VideoSize | None) -> Target:
    file = read_onnx(path)
    key = EngineKey.of(file.metadata)
    if component not in (None, key.component) and key.component == TRANSFORMER:
        second = component_file(path, str(component))
        if file.metadata is not None and component in file.metadata.experts:
            check_second(path, second)
            path, file = second, read_onnx(second)
            key = EngineKey.of(file.metadata)
    choose(path, [key], component, size, exported=True)
    return Target(path, None, key, path, file.metadata, *graph_specs(file.model))
