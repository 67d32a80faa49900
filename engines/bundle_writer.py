# SPDX-License-Identifier: Apache-2.0
"""`BundleWriter`: a bundle that is being built, engine by engine, and put into place when all are there."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vorta_trt.engines import manifest as names
from vorta_trt.engines.bundle import new_bundle
from vorta_trt.engines.description import ModelDescription, check_route_override, created_by, describe_model
from vorta_trt.engines.engine_key import EngineKey
from vorta_trt.engines.errors import BuildCancelled, BuildError
from vorta_trt.engines.flavours import Flavour
from vorta_trt.engines.hashed_file import copy_hashed, hash_file
from vorta_trt.engines.manifest import (
    EngineFiles,
    EngineInfo,
    EngineRecord,
    FileEntry,
    FurtherEngine,
    Manifest,
    PartRecord,
    PluginInfo,
    RefitRecord,
)
from vorta_trt.engines.onnx_copies import OnnxCopies
from vorta_trt.engines.plan import BuildOptions, BuiltPlan, build_plan
from vorta_trt.engines.plugin import load_plugin
from vorta_trt.engines.progress import (
    BuildProgress,
    Cancellation,
    ProgressCallback,
    progress_bar,
    release_free_memory,
)
from vorta_trt.engines.shared_plan import open_plan, share_plan
from vorta_trt.export.onnx_file import OnnxFile, data_file, read_onnx
from vorta_trt.export.part_metadata import PartMetadata
from vorta_trt.export.timestep_weights import TimestepWeights, timestep_weights
from vorta_trt.model.files import check_space, make_folder
from vorta_trt.plugins.gpu import driver_report
from vorta_trt.plugins.library import PluginLibrary
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedModel:
    """The checked inputs of one engine's build.

    Attributes:
        onnx: The ONNX file. The weights in its graph are not kept in memory: TensorRT reads them from the file.
        description: Fields of the manifest that describe the model.
        key: Component and video size.
        route_override: File of calibrated routes.
        timestep_path: Weights of the timestep embedder and the routers.
        weights: Names of all weights.
    """

    onnx: OnnxFile
    description: ModelDescription
    key: EngineKey
    route_override: Path | None
    timestep_path: TimestepWeights | None
    weights: tuple[str, ...]


def read_model(path: Path, route_override: str | Path | None, strict: bool) -> ExportedModel:
    """Reads an exported file. Raises the errors of `build_engine` if it is damaged, or not exported by vorta-trt."""
    onnx = read_onnx(path)
    description = describe_model(onnx, strict)
    if route_override is not None:
        check_route_override(Path(route_override), description)
    weights = timestep_weights(onnx, description.family)
    names = tuple(tensor.name for tensor in onnx.model.graph.initializer)
    onnx.model.graph.ClearField("initializer")
    override = None if route_override is None else Path(route_override)
    return ExportedModel(onnx, description, EngineKey.of(onnx.metadata), override, weights, names)


@dataclass(frozen=True)
class ExportedPart:
    """The checked inputs of the build of a VAE's or a text encoder's engine."""

    exported: ExportedModel
    metadata: PartMetadata


def read_part(path: Path) -> ExportedPart:
    """Reads an exported part. Raises OnnxFileError if the file is damaged, or is no exported part."""
    onnx = read_onnx(path)
    metadata = PartMetadata.from_metadata_props(
        {entry.key: entry.value for entry in onnx.model.metadata_props}, f"model {path}"
    )
    onnx.model.graph.ClearField("initializer")
    description = ModelDescription(
        family=metadata.family, config=metadata.config, precision=metadata.precision, metadata=None
    )
    key = EngineKey(metadata.graph, metadata.size)
    return ExportedPart(ExportedModel(onnx, description, key, None, None, ()), metadata)


@contextmanager
def new_engines(
    path: Path,
    flavour: Flavour,
    options: BuildOptions,
    *,
    engines: int = 1,
    include_onnx: bool = False,
    include_plugin: bool = True,
    progress: ProgressCallback | bool = False,
    overwrite: bool = False,
) -> Iterator[BundleWriter]:
    """A `BundleWriter` whose bundle is put into place when the block ends without an error.

    Ctrl-C, SIGTERM and SIGHUP stop a build. A build that is stopped or fails leaves no incomplete bundle.

    Args:
        path: Folder of the bundle.
        flavour: The TensorRT that builds.
        options: Build options, which the caller has checked.
        engines: Number of transformer engines that will be added.
        include_onnx: Copy the ONNX files with their weights into the bundle.
        include_plugin: Copy libvorta_trt.so into the bundle.
        progress: True for a progress bar on stderr, or a callback that takes `BuildProgress`.
        overwrite: Replace an existing bundle.
    """
    with (
        Cancellation() as cancellation,
        _progress_callback(progress) as callback,
        new_bundle(path, overwrite) as folder,
        ExitStack() as stack,
    ):
        copies = None
        if include_onnx and engines > 1:
            copies = OnnxCopies(folder / data_file(Path(names.ONNX)).name)
            stack.callback(copies.close)
        writer = BundleWriter(
            path,
            folder,
            flavour,
            options,
            engines=engines,
            include_onnx=include_onnx,
            include_plugin=include_plugin,
            callback=callback,
            cancellation=cancellation,
            copies=copies,
        )
        yield writer
        writer.finish()


class BundleWriter:
    """Builds engines into a folder; see `new_engines`."""

    def __init__(
        self,
        path: Path,
        folder: Path,
        flavour: Flavour,
        options: BuildOptions,
        engines: int,
        include_onnx: bool,
        include_plugin: bool,
        callback: ProgressCallback | None,
        cancellation: Cancellation,
        copies: OnnxCopies | None,
    ) -> None:
        self._path, self._folder, self._flavour, self._options = path, folder, flavour, options
        self._engines, self._include_onnx, self._include_plugin = engines, include_onnx, include_plugin
        self._callback, self._cancellation, self._copies = callback, cancellation, copies
        self._added: list[tuple[EngineRecord, EngineFiles]] = []
        self._parts: list[PartRecord] = []
        self._files: dict[str, FileEntry] = {}

    def exporting(self) -> AbstractContextManager[None]:
        """Returns a context for Python work between two engine builds. Signals stop that work at once."""
        return self._cancellation.paused()

    def add(self, model: ExportedModel) -> None:
        """Builds an engine. Raises what `build_engine` raises."""
        own = EngineFiles.of(model.key, self._added[0][0].key) if self._added else EngineFiles()
        library = load_plugin(self._flavour) if model.onnx.operator_nodes else None
        included = library if self._include_plugin else None
        sources = [path for path in (included, model.route_override) if path is not None]
        copies = model.onnx.total_bytes if self._include_onnx else 0
        # A plan is about as large as the ONNX file's weights.
        check_space(self._path, model.onnx.total_bytes + copies + sum(path.stat().st_size for path in sources))
        own = self._copy(model, own, included)  # first: if a copy fails, it fails before the long build
        built = build_plan(
            self._flavour, model.onnx, self._options, self._folder, own, self._report(model.key), self._cancellation
        )
        release_free_memory()
        self._files = built.files | self._files
        before = [names for record, names in self._added if record.component == model.key.component]
        own = self._share(model.key, own, before)
        plugin = (
            None
            if library is None
            else _plugin_info(
                library, model.onnx, built.plugin_layers, self._include_plugin, self._options.plugin_in_plan
            )
        )
        size = model.key.size if self._engines > 1 else None
        record = _record(self._flavour, self._options, model, size, built, plugin)
        self._added.append((record, own))
        built_with = self._flavour.title_and_version
        logger.info("%s: built %s with %s in %.1f s", self._path, model.key, built_with, built.seconds)

    def add_part(self, model: ExportedPart) -> None:
        """Builds an engine of a VAE or a text encoder, after the transformers'. Raises what `build_engine` raises."""
        key = model.exported.key
        own = EngineFiles.of(key, self._added[0][0].key)
        onnx = model.exported.onnx
        check_space(self._path, onnx.total_bytes * (2 if self._include_onnx else 1))
        if self._include_onnx:
            for name, source in {own.onnx: onnx.place, **{file.name: file for file in onnx.data_files}}.items():
                self._files[name] = copy_hashed(source, self._folder / name, self._cancellation.check)
        options = dataclasses.replace(self._options, refit=False, weight_streaming=False)
        report = self._report(key, named=True)
        try:
            built = build_plan(self._flavour, onnx, options, self._folder, own, report, self._cancellation)
        except BuildCancelled:
            raise
        except BuildError as error:
            said = str(error).partition("\n")[0]
            part = model.metadata.part
            raise BuildError(f"{said}; leave {part} out of --with, and it runs in torch", error.messages) from error
        release_free_memory()
        self._files = built.files | self._files
        before = [record.names for record in self._parts if record.part["part"] == model.metadata.part]
        own = self._share(key, own, before)
        record = _record(self._flavour, options, model.exported, key.size, built, None)
        content = json.loads(model.metadata.model_dump_json())
        self._parts.append(PartRecord(**dict(record), names=own, part=content))
        logger.info("%s: built %s in %.1f s", self._path, key, built.seconds)

    def add_pipeline(self, folder: Path, files: Sequence[str]) -> None:
        """Copies files of a pipeline folder into the bundle.

        Args:
            folder: The pipeline folder.
            files: Paths of the files, relative to `folder`.
        """
        for file in files:
            target = self._folder / names.PIPELINE / file
            make_folder(target.parent)
            self._files[f"{names.PIPELINE}/{file}"] = copy_hashed(folder / file, target, self._cancellation.check)

    def _copy(self, model: ExportedModel, own: EngineFiles, library: Path | None) -> EngineFiles:
        """Copies the files that go into the bundle besides the engine; returns the names of the engine's files."""
        check = self._cancellation.check
        sources: dict[str, Path] = {}  # external weights keep the name under which the ONNX file refers to them
        if library is not None and names.PLUGIN_LIBRARY not in self._files:
            sources[names.PLUGIN_LIBRARY] = library
        if model.route_override is not None:
            sources[own.route_override] = model.route_override
        if self._copies is not None:
            self._files[own.onnx] = self._copies.add(model.onnx, self._folder / own.onnx, check)
        elif self._include_onnx:
            sources |= {own.onnx: model.onnx.place, **{file.name: file for file in model.onnx.data_files}}
        for name, source in sources.items():
            self._files[name] = copy_hashed(source, self._folder / name, check)
        if model.timestep_path is not None:
            own = self._save_timestep_path(model.timestep_path, own)
        return own

    def _save_timestep_path(self, weights: TimestepWeights, own: EngineFiles) -> EngineFiles:
        """Writes a timestep path, unless it equals the one that the component's first engine has written."""
        file = self._folder / own.timestep_path
        if own.timestep_path in self._files:
            file = file.with_name(f"timestep_path.{Path(own.plan).stem}.safetensors")
        weights.save(file)
        entry = hash_file(file, self._cancellation.check)
        if self._files.get(own.timestep_path) == entry:
            file.unlink()
            return own
        self._files[file.name] = entry
        return own.model_copy(update={"timestep_path": file.name})

    def _share(self, key: EngineKey, own: EngineFiles, before: Sequence[EngineFiles]) -> EngineFiles:
        """Drops the bytes of a plan that the first plan of `before` has, too; see `shared_plan`."""
        if not before:
            return own
        base, whole = before[0].plan, self._files[own.plan]
        entry = share_plan(self._folder / own.plan, self._folder / base, self._cancellation.check)
        if entry is None:
            logger.info("%s: the plan of %s has too little in common with %s to share weights", self._path, key, base)
            return own
        logger.info(
            "%s: %s shares %d of %d bytes with %s", self._path, own.plan, whole.bytes - entry.bytes, whole.bytes, base
        )
        self._files[own.plan] = entry
        with open_plan(self._folder / own.plan, self._folder / base) as plan:
            if hashlib.sha256(plan).hexdigest() != whole.sha256:
                raise BuildError(
                    f"{self._path}: the plan of {key} did not come out as it was; this is a bug, report it"
                )
        return own.model_copy(update={"shared_with": base})

    def _report(self, key: EngineKey, *, named: bool = False) -> ProgressCallback | None:
        """Progress callback of one engine. Its events name the engine if there are several, or if `named`."""
        callback = self._callback
        if callback is None or (self._engines == 1 and not named):
            return callback

        def show(event: BuildProgress) -> None:
            callback(dataclasses.replace(event, engine=str(key)))

        return show

    def finish(self) -> None:
        """Writes the manifest."""
        if self._copies is not None:
            self._files[data_file(Path(names.ONNX)).name] = self._copies.close()
        (first, first_names), *others = self._added
        Manifest(
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            created_by=created_by(),
            **dict(first),
            names=None if first_names == EngineFiles() else first_names,
            engines=[FurtherEngine(**dict(record), names=own) for record, own in others],
            parts=self._parts,
            files=self._files,
        ).write(self._folder / names.MANIFEST)
        self._cancellation.check()


@contextmanager
def _progress_callback(progress: ProgressCallback | bool) -> Iterator[ProgressCallback | None]:
    if progress is True:
        with progress_bar() as callback:
            yield callback
    else:
        yield progress or None


def _record(
    flavour: Flavour,
    options: BuildOptions,
    model: ExportedModel,
    size: str | None,
    built: BuiltPlan,
    plugin: PluginInfo | None,
) -> EngineRecord:
    devices = driver_report().devices
    workspace = None if options.workspace_gib is None else int(options.workspace_gib * 2**30)
    described: dict[str, Any] = {
        field.name: getattr(model.description, field.name) for field in dataclasses.fields(ModelDescription)
    }
    return EngineRecord(
        component=model.key.component,
        size=size,
        **described,
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
        plugin=plugin,
        block_operators=built.block_operators,
        refit=RefitRecord(names=list(model.weights)) if options.refit else None,
    )


def _plugin_info(path: Path, onnx: OnnxFile, layer_count: int, included: bool, in_plan: bool) -> PluginInfo:
    library = PluginLibrary(path)
    return PluginInfo(
        name=next((node.operator for node in onnx.routed_nodes), ROUTED_ATTENTION.name),
        version=ROUTED_ATTENTION.version,
        namespace=ROUTED_ATTENTION.namespace,
        library=names.PLUGIN_LIBRARY,
        included=included,
        library_version=library.version,
        abi_hash=library.abi_hash,
        cuda_architectures=list(library.cuda_architectures),
        layers=layer_count,
        in_plan=in_plan,
    )
