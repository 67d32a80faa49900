# SPDX-License-Identifier: Apache-2.0
"""manifest.json of a bundle: what the engine is, what it needs, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints, ValidationError, model_validator

from vorta_trt.model.files import PointerError, write_text
from vorta_trt.model.precision import DataType, PrecisionName
from vorta_trt.model.records import JsonFileError, Record, all_errors, load_content
from vorta_trt.plugins.operator_schema import AttentionPrecision

SCHEMA_VERSION = 1

MANIFEST = "manifest.json"
PLAN = "transformer.plan"
PLUGIN_LIBRARY = "libvorta_trt.so"
ONNX = "model.onnx"
ROUTE_OVERRIDE = "route_override.json"  # routes of `vorta-trt calibrate`, see model.route_calibration
LAYERS = "layers.json"
TIMESTEP_PATH = "timestep_path.safetensors"  # timestep embedder and routers: what is known before sampling

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# A plain name inside the bundle: a manifest from elsewhere must not point out of its folder.
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00]+$")]
Capability = Annotated[str, StringConstraints(pattern=r"^\d+\.\d$")]
# Fields that a later version added, with what their absence means. A manifest from before them was sealed without
# them, so at these values they are no part of the digest.
LATER_FIELDS = {"attention_precision": "same"}


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
    """What the builder says the engine takes, in bytes; None where the flavour does not say."""

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


class Manifest(Record, extra="forbid"):
    """The whole file. `digest` is the SHA-256 of everything else in it, so that an edit by hand is noticed."""

    schema_version: Literal[1] = 1
    created: str  # ISO 8601, UTC
    created_by: str
    # What the model is, from the ONNX file's metadata; None for an ONNX file of another origin (strict=False).
    family: str | None
    config: dict[str, JsonValue] | None
    geometry: dict[str, JsonValue] | None
    precision: PrecisionName | None
    attention_precision: AttentionPrecision = "same"  # read off the nodes, of a file of another origin, too
    op_version: int | None
    metadata: dict[str, JsonValue] | None
    inputs: list[TensorSpec] = Field(min_length=1)
    outputs: list[TensorSpec] = Field(min_length=1)
    engine: EngineInfo
    plugin: PluginInfo | None
    files: dict[FileName, FileEntry]
    digest: Sha256 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if PLAN not in self.files:
            raise ValueError(f"files: {PLAN} is missing")
        if {MANIFEST, ".", ".."} & set(self.files):
            raise ValueError(f"files: {MANIFEST}, . and .. cannot be listed")
        if self.plugin is not None and self.plugin.included and self.plugin.library not in self.files:
            raise ValueError(f"plugin.included is true, but files lacks {self.plugin.library}")
        return self

    def computed_digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields but `digest`, and but `LATER_FIELDS` that say nothing new."""
        as_before = {name for name, meaning in LATER_FIELDS.items() if getattr(self, name) == meaning}
        content = self.model_dump(mode="json", exclude={"digest", *as_before})
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def sealed(self) -> Manifest:
        """This manifest with its digest filled in."""
        return self.model_copy(update={"digest": self.computed_digest()})

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
    if version != SCHEMA_VERSION:
        return None, [
            f"{path.name} has schema_version {version!r}, this vorta-trt reads {SCHEMA_VERSION}; "
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
