# SPDX-License-Identifier: Apache-2.0
"""ONNX file -> engine bundle.

    read the ONNX graph -> load the plugin -> parse -> check the plugin layers -> build, streaming the plan to disk
    -> manifest -> rename into place

Polygraphy's loaders are not used here, for three reasons: they choose between TensorRT and TensorRT-RTX once per
process (an environment variable), they log to one global logger while our errors carry what this very build said, and
`EngineBytesFromNetwork` holds the whole plan in memory where we stream it. `polygraphy` and `trtexec` themselves work
on the ONNX files; docs/nvidia-tools.md shows how.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vorta_trt.engines import manifest as names
from vorta_trt.engines.bundle import Bundle, check_new_bundle, new_bundle
from vorta_trt.engines.description import ModelDescription, check_route_override, created_by, describe_model
from vorta_trt.engines.flavours import Flavour, get_flavour
from vorta_trt.engines.hashed_file import copy_hashed, hash_file
from vorta_trt.engines.manifest import EngineInfo, FileEntry, Manifest, PluginInfo
from vorta_trt.engines.plan import DEFAULT_BATCH, BuildOptions, BuiltPlan, build_plan
from vorta_trt.engines.plugin import load_plugin
from vorta_trt.engines.progress import Cancellation, ProgressCallback, progress_bar, release_free_memory
from vorta_trt.export.onnx_file import OnnxFile, read_onnx
from vorta_trt.export.timestep_weights import TimestepWeights, timestep_weights
from vorta_trt.model.files import check_space
from vorta_trt.plugins.gpu import driver_report
from vorta_trt.plugins.library import PluginLibrary
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

logger = logging.getLogger(__name__)


def build_engine(
    onnx_path: str | Path,
    bundle_path: str | Path,
    tensorrt: str = "rtx",
    *,
    batch: tuple[int, int, int] = DEFAULT_BATCH,
    compute_capabilities: Sequence[str] | None = None,
    hardware_compatibility: str | None = None,
    version_compatible: bool = False,
    timing_cache: str | Path | None = None,
    workspace_gib: float | None = None,
    optimization_level: int | None = None,
    weight_streaming: bool = False,
    include_onnx: bool = False,
    include_plugin: bool = True,
    route_override: str | Path | None = None,
    progress: ProgressCallback | bool = False,
    overwrite: bool = False,
    strict: bool = True,
) -> Bundle:
    """Builds an engine from an exported model and writes its bundle.

    Ctrl-C, SIGTERM and SIGHUP stop the build. In no case a half bundle is left.

    Args:
        onnx_path: The exported file.
        bundle_path: The folder to write.
        tensorrt: The flavour: "rtx", "tensorrt" or "tensorrt8".
        batch: Smallest, usual and largest batch of the dynamic batch dimension.
        compute_capabilities: rtx only, e.g. ["8.9", "12.0"]; by default the engine runs on every RTX GPU since Ampere.
        hardware_compatibility: tensorrt only, "ampere_plus" or "same_compute_capability".
        version_compatible: tensorrt only; the plan then loads in newer versions and in the lean runtime.
        timing_cache: A file that makes later builds faster; tensorrt only, RTX has none and ignores it with a warning.
        workspace_gib: Limit on the scratch memory of a layer.
        optimization_level: From 0, which builds fast, to 5, which runs fast.
        weight_streaming: The engine can then run with a part of its weights in host memory (`Engine`'s
            weight_streaming_budget); not with TensorRT 8.6.
        include_onnx: Copy the ONNX file with its weights into the bundle.
        include_plugin: Copy libvorta_trt.so into the bundle.
        route_override: Routes of `vorta-trt calibrate` to put into it, checked; sampling takes them unless told
            otherwise.
        progress: True for a progress bar on stderr, or a callback that takes `BuildProgress`.
        overwrite: Replace an existing bundle (the old one stays until the new one is complete).
        strict: Refuse ONNX files without vorta-trt's metadata or without RoutedAttention nodes, and engines with fp8
            attention for GPUs or head dimensions that have no fp8 kernels.

    Returns:
        The bundle, opened.

    Raises:
        BuildError: TensorRT refuses, with what it logged.
        FileNotFoundError: There is no such file.
        FlavourError: The flavour is not installed, or does not know an option.
        OnnxFileError: The file is damaged, or none of ours.
        ValueError: An option is out of range.
        WriteError: The bundle cannot be written.
    """
    options = BuildOptions(
        batch=batch,
        compute_capabilities=compute_capabilities,
        hardware_compatibility=hardware_compatibility,
        version_compatible=version_compatible,
        timing_cache=None if timing_cache is None else Path(timing_cache),
        workspace_gib=workspace_gib,
        optimization_level=optimization_level,
        weight_streaming=weight_streaming,
        strict=strict,
    )
    flavour = get_flavour(tensorrt)
    options.check(flavour)
    check_new_bundle(Path(bundle_path), overwrite)
    onnx = read_onnx(Path(onnx_path))
    description = describe_model(onnx, strict)
    if route_override is not None:
        check_route_override(Path(route_override), description)
    timestep_path = timestep_weights(onnx, description.family)
    onnx.model.graph.ClearField("initializer")  # weights inside the file: TensorRT reads them itself
    library = load_plugin(flavour) if onnx.routed_nodes else None
    extras = Extras(
        plugin_library=library if include_plugin else None,
        onnx=onnx if include_onnx else None,
        route_override=None if route_override is None else Path(route_override),
        timestep_path=timestep_path,
    )
    with (
        Cancellation() as cancellation,
        _progress_callback(progress) as callback,
        new_bundle(Path(bundle_path), overwrite) as folder,
    ):
        # A plan is about as large as the ONNX file's weights.
        check_space(bundle_path, onnx.total_bytes + sum(file.stat().st_size for file in extras.sources().values()))
        files = extras.copy_into(folder, cancellation)  # what can fail here, fails before the long work
        built = build_plan(flavour, onnx, options, folder, callback, cancellation)
        release_free_memory()
        files = built.files | files
        manifest = _manifest(flavour, onnx, options, description, built, library, include_plugin, files)
        manifest.write(folder / names.MANIFEST)
        cancellation.check()
    logger.info("%s: built with %s %s in %.1f s", bundle_path, flavour.title, flavour.version, built.seconds)
    return Bundle.open(bundle_path, verify=False, runtime=False)


@contextlib.contextmanager
def _progress_callback(progress: ProgressCallback | bool) -> Iterator[ProgressCallback | None]:
    if progress is True:
        with progress_bar() as callback:
            yield callback
    else:
        yield progress or None


@dataclass(frozen=True)
class Extras:
    """Files that go into the bundle besides the engine."""

    plugin_library: Path | None
    onnx: OnnxFile | None
    route_override: Path | None
    timestep_path: TimestepWeights | None

    def sources(self) -> dict[str, Path]:
        """Name in the bundle -> file. External weights keep the name under which model.onnx refers to them."""
        sources = {}
        if self.plugin_library is not None:
            sources[names.PLUGIN_LIBRARY] = self.plugin_library
        if self.onnx is not None:
            sources[names.ONNX] = self.onnx.place
            sources |= {file.name: file for file in self.onnx.data_files}
        if self.route_override is not None:
            sources[names.ROUTE_OVERRIDE] = self.route_override
        return sources

    def copy_into(self, folder: Path, cancellation: Cancellation) -> dict[str, FileEntry]:
        """Copies all of them into the bundle and returns their entries for the manifest."""
        files = {
            name: copy_hashed(source, folder / name, cancellation.check) for name, source in self.sources().items()
        }
        if self.timestep_path is not None:
            self.timestep_path.save(folder / names.TIMESTEP_PATH)
            files[names.TIMESTEP_PATH] = hash_file(folder / names.TIMESTEP_PATH, cancellation.check)
        return files


def _manifest(
    flavour: Flavour,
    onnx: OnnxFile,
    options: BuildOptions,
    description: ModelDescription,
    built: BuiltPlan,
    library: Path | None,
    include_plugin: bool,
    files: dict[str, FileEntry],
) -> Manifest:
    devices = driver_report().devices
    workspace = None if options.workspace_gib is None else int(options.workspace_gib * 2**30)
    return Manifest(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        created_by=created_by(),
        family=description.family,
        config=description.config,
        geometry=description.geometry,
        precision=description.precision,
        attention_precision=description.attention_precision,
        op_version=description.op_version,
        metadata=description.metadata,
        inputs=built.inputs,
        outputs=built.outputs,
        engine=EngineInfo(
            flavour=flavour.name,
            version=str(flavour.version),
            compute_capabilities=[str(capability) for capability in built.target.capabilities],
            and_newer=built.target.and_newer,
            flags=built.flags,
            hardware_compatibility=options.hardware_compatibility,
            version_compatible=options.version_compatible,
            optimization_level=built.optimization_level,
            workspace_bytes=workspace,
            timing_cache=options.timing_cache is not None and flavour.has_timing_cache,
            builder_gpu=str(devices[0]) if devices else None,
            build_seconds=round(built.seconds, 3),
            memory=built.memory,
        ),
        plugin=None if library is None else _plugin_info(library, built.plugin_layers, include_plugin),
        files=files,
    )


def _plugin_info(path: Path, layer_count: int, included: bool) -> PluginInfo:
    library = PluginLibrary(path)
    return PluginInfo(
        name=ROUTED_ATTENTION.name,
        version=ROUTED_ATTENTION.version,
        namespace=ROUTED_ATTENTION.namespace,
        library=names.PLUGIN_LIBRARY,
        included=included,
        library_version=library.version,
        abi_hash=library.abi_hash,
        cuda_architectures=list(library.cuda_architectures),
        layers=layer_count,
    )
