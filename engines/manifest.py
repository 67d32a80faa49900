# SPDX-License-Identifier: Apache-2.0
"""manifest.json of a bundle: what its engines are, what they need, and the hash of every file.

A bundle holds an engine for every component and video size that it was built for. The fields at the top are those of
the first engine, `engines` lists the others; `Manifest.of` gives any of them as a manifest of one engine.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from vorta_trt.engines.engine_key import EngineKey
from vorta_trt.export.metadata import KEY, LoraRecord, ModelMetadata
from vorta_trt.export.part_metadata import PART_KEY, PartMetadata
from vorta_trt.model.constants import TRANSFORMER
from vorta_trt.model.files import PointerError, write_text
from vorta_trt.model.precision import DataType, PrecisionName
from vorta_trt.model.records import JsonFileError, Record, all_errors, load_content
from vorta_trt.plugins.operator_schema import AttentionPrecision

ONE_ENGINE, SEVERAL_ENGINES = 1, 2  # schema versions; the first had neither components nor sizes

MANIFEST = "manifest.json"
PLAN = "transformer.plan"
PLUGIN_LIBRARY = "libvorta_trt.so"
ONNX = "model.onnx"
ROUTE_OVERRIDE = "route_override.json"  # routes of `vorta-trt calibrate`, see model.route_calibration
LAYERS = "layers.json"
TIMESTEP_PATH = "timestep_path.safetensors"  # weights of timestep embedder and routers

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# A plain name inside the bundle: a manifest from elsewhere must not point out of its folder.
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00]+$")]
# The carried pipeline folder is the one folder in a bundle: model_index.json, and the components' folders in it.
PIPELINE = "pipeline"
_PIPELINE_FILE = r"(pipeline/([A-Za-z0-9_]+/)?)?"
BundledName = Annotated[str, StringConstraints(pattern=rf"^{_PIPELINE_FILE}[^/\\\x00]+$")]
Capability = Annotated[str, StringConstraints(pattern=r"^\d+\.\d$")]
# Fields that a later version added, with the values that their absence means. Older manifests were sealed without these
# fields, so the digest leaves them out when they have these values.
LATER_FIELDS = {"attention_precision": "same"}


# Fields of the second schema version, with their defaults. A bundle with one engine of component "transformer" is still
# written without them, as in the first version.
SECOND_VERSION: dict[str, Any] = {
    "component": TRANSFORMER,
    "size": None,
    "names": None,
    "refit": None,
    "engines": [],
    "parts": [],
}


class FileEntry(Record, extra="forbid"):
    """One file of the bundle."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class ShapeRange(Record, extra="forbid"):
    """The optimization profile of one input."""

    min: list[int]
    opt: list[int]
    max: list[int]


class TensorSpec(Record, extra="forbid"):
    """One input or output of the engine; -1 marks the dynamic batch dimension."""

    name: str
    dtype: DataType
    shape: list[int]
    profile: ShapeRange | None = None

    @model_validator(mode="after")
    def _profile_fits(self) -> TensorSpec:
        if self.profile is not None:
            for shape in (self.profile.min, self.profile.opt, self.profile.max):
                fits = len(shape) == len(self.shape)
                if not fits or any(size not in (-1, fixed) for size, fixed in zip(self.shape, shape, strict=True)):
                    raise ValueError(f"{self.name}: profile shape {shape} does not fit {self.shape}")
        return self


class EngineMemory(Record, extra="forbid"):
    """Memory of the engine in bytes, as the builder logs it; None where the flavour does not log it."""

    weights: int | None = None
    activations: int | None = None
    scratch: int | None = None


class EngineInfo(Record, extra="forbid"):
    """How the plan was built, and where it runs."""

    flavour: str
    version: str
    compute_capabilities: list[Capability]
    and_newer: bool  # runs on GPUs newer than the newest of compute_capabilities, too
    flags: list[str]
    hardware_compatibility: str | None
    version_compatible: bool
    optimization_level: int
    workspace_bytes: int | None
    timing_cache: bool
    builder_gpu: str | None  # None: built ahead of time, without a GPU
    build_seconds: float
    memory: EngineMemory


class PluginInfo(Record, extra="forbid"):
    """The plugin that the plan calls."""

    name: str
    version: str
    namespace: str
    library: FileName
    included: bool
    library_version: str
    abi_hash: str
    cuda_architectures: list[str]
    layers: int = Field(ge=1)
    # Whether the plan carries the library, too. False is not written, so older manifests read the same.
    in_plan: bool = Field(default=False, exclude_if=lambda value: not value)


class BlockOperators(Record, extra="forbid"):
    """How the block operators of the ONNX file were built: counts by operator name."""

    plugins: dict[str, int]  # plugin layers
    native: dict[str, int]  # nodes that were inlined and left to TensorRT

    def __str__(self) -> str:
        def listed(counts: dict[str, int]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"

        return f"as plugins {listed(self.plugins)}; left to TensorRT {listed(self.native)}"


class RefitRecord(Record, extra="forbid"):
    """Record of a refittable engine: the weights that can be set, and those that a refit has set; see `refit`."""

    names: list[str]  # names of all weights in the ONNX file, under which a refit sets them
    parameters: list[str] = []  # torch names of the parameters that a refit has changed
    lora: list[LoraRecord] = []  # LoRA files fused into the checkpoint's weights; empty: the checkpoint's own weights


class EngineFiles(Record, extra="forbid"):
    """File names of one engine in the bundle. Files other than the plan exist only if `Manifest.files` lists them.

    The engines of one component share `timestep_path`, and all may share the data file of their ONNX files. If
    `shared_with` names a plan, the file `plan` holds only the bytes that are not in that plan; see `shared_plan`.
    """

    plan: FileName = PLAN
    layers: FileName = LAYERS
    timestep_path: FileName = TIMESTEP_PATH
    onnx: FileName = ONNX
    route_override: FileName = ROUTE_OVERRIDE
    shared_with: FileName | None = None
    refit: FileName | None = None

    @classmethod
    def of(cls, key: EngineKey, first: EngineKey) -> EngineFiles:
        """Names for a further engine of a bundle; `first` is the bundle's first one, whose names are the defaults."""
        others = (
            key.component if key.component != first.component else None,
            key.size if key.size != first.size else None,
        )
        marks = [mark for mark in others if mark is not None]
        if not marks:
            return cls()

        def named(file: str, marks: list[str]) -> str:
            stem, _, suffix = file.rpartition(".")
            return ".".join((stem, *marks, suffix))

        component = marks[: key.component != first.component]
        plan = ".".join((key.component, *marks[len(component) :], "plan"))
        return cls(
            plan=plan,
            layers=named(LAYERS, marks),
            timestep_path=named(TIMESTEP_PATH, component),
            onnx=named(ONNX, marks),
            route_override=named(ROUTE_OVERRIDE, marks),
        )

    def all(self) -> set[str]:
        """All names that are not None."""
        return {name for name in self.model_dump().values() if name is not None}


class _Header(Record, extra="forbid"):
    """The first lines of the file."""

    schema_version: Literal[1, 2] = 1
    created: str  # ISO 8601, UTC
    created_by: str


class EngineRecord(Record, extra="forbid"):
    """Record of one engine: its model, its interface, and how it was built."""

    component: str = TRANSFORMER
    size: str | None = None  # such as "81x480x832"; None: the size in `metadata`, or unknown without metadata
    # What the model is, from the ONNX file's metadata; None for an ONNX file of another origin (strict=False).
    family: str | None
    config: dict[str, JsonValue] | None
    geometry: dict[str, JsonValue] | None
    precision: PrecisionName | None
    attention_precision: AttentionPrecision = "same"  # read from the nodes, also for a file of another origin
    op_version: int | None
    metadata: dict[str, JsonValue] | None
    inputs: list[TensorSpec] = Field(min_length=1)
    outputs: list[TensorSpec] = Field(min_length=1)
    engine: EngineInfo
    plugin: PluginInfo | None
    # None: the ONNX file has no block operators. None is not written, so older manifests read the same.
    block_operators: BlockOperators | None = Field(default=None, exclude_if=lambda value: value is None)
    refit: RefitRecord | None = None

    @property
    def key(self) -> EngineKey:
        """Component and video size, by which the engine is selected."""
        if self.size is not None or self.metadata is None:
            return EngineKey(self.component, self.size)
        return EngineKey.of(self.model_metadata(MANIFEST))

    @property
    def has_plugin_in_plan(self) -> bool:
        """Whether the plan carries our plugin library."""
        return self.plugin is not None and self.plugin.in_plan

    def model_metadata(self, source: str) -> ModelMetadata:
        """The exporter's record of the model, which `metadata` holds; `source` is for errors.

        Raises:
            OnnxFileError: There is no record, or it is damaged.
        """
        properties = {} if self.metadata is None else {KEY: json.dumps(self.metadata)}
        return ModelMetadata.from_metadata_props(properties, source)


class FurtherEngine(EngineRecord):
    """An engine besides the first one."""

    names: EngineFiles


class PartRecord(EngineRecord):
    """An engine of a VAE or a text encoder; `config` is that of the component."""

    names: EngineFiles
    part: dict[str, JsonValue]

    def part_metadata(self, source: str) -> PartMetadata:
        """The exporter's record; OnnxFileError if it is damaged."""
        return PartMetadata.from_metadata_props({PART_KEY: json.dumps(self.part)}, source)


class Manifest(EngineRecord, _Header):
    """The whole file. `digest` is the SHA-256 of everything else in it, so that an edit by hand is noticed."""

    engines: list[FurtherEngine] = []
    parts: list[PartRecord] = []
    names: EngineFiles | None = None  # None: the default names of a first engine
    files: dict[BundledName, FileEntry]
    digest: Sha256 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        for names in self._all_names:
            for plan in (names.plan, names.shared_with):
                if plan is not None and plan not in self.files:
                    raise ValueError(f"files: {plan} is missing")
        if {MANIFEST, ".", ".."} & {part for file in self.files for part in file.split("/")}:
            raise ValueError(f"files: {MANIFEST}, . and .. cannot be listed")
        for plugin in (self.plugin, *(engine.plugin for engine in self.engines)):
            if plugin is not None and plugin.included and plugin.library not in self.files:
                raise ValueError(f"plugin.included is true, but files lacks {plugin.library}")
        return self

    @model_serializer(mode="wrap")
    def _as_first_version(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the fields of the second version that have their default values."""
        content: dict[str, Any] = handler(self)
        return {k: v for k, v in content.items() if k not in SECOND_VERSION or v != SECOND_VERSION[k]}

    @property
    def own_names(self) -> EngineFiles:
        """File names of this engine."""
        return EngineFiles() if self.names is None else self.names

    @property
    def _all_names(self) -> list[EngineFiles]:
        """File names of all engines in order, those of parts last."""
        return [self.own_names, *(each.names for each in self.engines), *(each.names for each in self.parts)]

    @property
    def keys(self) -> tuple[EngineKey, ...]:
        """Keys of all engines except those of parts, in order."""
        return (self.key, *(engine.key for engine in self.engines))

    def of_part(self, index: int) -> Manifest:
        """Manifest of a part's engine, as if it were the bundle's first engine.

        Args:
            index: Index of the engine in `parts`.
        """
        record = self.parts[index]
        changes = {name: getattr(record, name) for name in (*EngineRecord.model_fields, "names")}
        return self.model_copy(update={**changes, "engines": [], "parts": []})

    def of(self, index: int) -> Manifest:
        """Manifest of one engine, as if the bundle held this engine alone; its file names stay as they are.

        Args:
            index: Index of the engine in `keys`.
        """
        each = self._all_names
        others: set[str] = set().union(*(names.all() for names in each)) - each[index].all()
        changes: dict[str, Any] = {
            "engines": [],
            "parts": [],
            "files": {name: entry for name, entry in self.files.items() if name not in others},
        }
        if index:
            changes |= dict(self.engines[index - 1])  # fields of this type, unchanged
        return self.model_copy(update=changes)

    def computed_digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields, except `digest`, and `LATER_FIELDS` at their old meanings."""
        as_before = {name for name, meaning in LATER_FIELDS.items() if getattr(self, name) == meaning}
        content = self.model_dump(mode="json", exclude={"digest", *as_before})
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def sealed(self) -> Manifest:
        """This manifest with its digest filled in."""
        new = any(getattr(self, name) != meaning for name, meaning in SECOND_VERSION.items())
        versioned = self.model_copy(update={"schema_version": SEVERAL_ENGINES if new else ONE_ENGINE})
        return versioned.model_copy(update={"digest": versioned.computed_digest()})

    def write(self, path: Path) -> None:
        """Writes the sealed manifest."""
        write_text(path, self.sealed().model_dump_json(indent=2) + "\n")


def read_manifest(path: Path) -> tuple[Manifest | None, list[str]]:
    """The manifest and everything wrong with it; None if it cannot be read at all."""
    try:
        document = load_content(path, "manifest", "build the bundle again")
    except (JsonFileError, PointerError) as error:
        return None, [str(error)]
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version not in (ONE_ENGINE, SEVERAL_ENGINES):
        return None, [
            f"{path.name} has schema_version {version!r}, this vorta-trt reads {ONE_ENGINE} and {SEVERAL_ENGINES}; "
            "build the bundle again, or open it with the vorta-trt that made it"
        ]
    try:
        manifest = Manifest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        return None, [f"{path.name}: {problem}; build the bundle again" for problem in all_errors(error)]
    if manifest.digest != manifest.computed_digest():
        return manifest, [
            f"{path.name} was changed after the build (its content does not match its digest); restore it, or build "
            "the bundle again"
        ]
    return manifest, []
