# SPDX-License-Identifier: Apache-2.0
"""The record in an exported file's metadata_props, with everything that engines and runtimes need.

The key `vorta_trt` holds one JSON object, `ModelMetadata`; the flat keys beside it repeat parts of it for people and
other tools. The module does not import torch or onnx, so reading metadata is cheap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vorta_trt.export.errors import OnnxFileError
from vorta_trt.model.constants import COMPONENTS, TRANSFORMER
from vorta_trt.model.experts import in_words
from vorta_trt.model.families import ModelInput, get_family
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.linear_choice import collapsed
from vorta_trt.model.precision import DataType, PrecisionName
from vorta_trt.model.records import first_error
from vorta_trt.model.video_size import VideoSize
from vorta_trt.plugins.operator_schema import AttentionPrecision, LinearPrecision

KEY = "vorta_trt"
SCHEMA_VERSION: Literal[1] = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(_Record):
    """An input or output of the model; a dimension is a number or the name of a dynamic one ("batch")."""

    name: str
    dtype: DataType
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


class LoraRecord(_Record):
    """A LoRA file that was fused into the weights.

    Attributes:
        name: Name of the file, without its folder.
        sha256: SHA-256 of the file's content.
        strength: Factor that scales everything that the file adds to the weights.
    """

    name: str
    sha256: str
    strength: float

    def __str__(self) -> str:
        return f"{self.name}, strength {self.strength:g}, sha256 {self.sha256}"


class ModelMetadata(_Record):
    """The record of an exported transformer.

    Attributes:
        schema_version: Version of this record's format.
        vorta_trt_version: Version of vorta-trt that wrote the file.
        torch_version: Version of torch at the export.
        onnx_version: Version of onnx at the export.
        onnxscript_version: Version of onnxscript at the export.
        component: Component of the diffusers pipeline: "transformer", or "transformer_2", the second expert. A file
            that is older than this field means "transformer".
        family: Name of the model family.
        config: Diffusers config of the transformer, without paths.
        checkpoint: Name of the checkpoint (not its path); None for a model without one.
        boundary_ratio: Where the second of two experts takes over, see `model/experts.py`; None for a model without a
            second expert.
        precision: Precision of activations and most weights; norms, modulation, router and timestep path are float32.
        attention_precision: Precision in which the kernels may multiply routed attention: "same" as the activations, or
            "fp8". A file that is older than this field means "same".
        linear_precision: Precision in which linear layers multiply: "same" as the activations, or "fp8". A file that is
            older than this field means "same".
        linear_keep: Patterns of the linear layers that keep the precision of the activations; empty without fp8.
        fp8_layers: Names of the linear layers with fp8 products, in the model's order.
        input_scales: Static input scales of some of `fp8_layers`, by layer, from a calibration or the checkpoint. The
            native form in an engine uses them; the operator does not.
        geometry: Geometry of the routed attention (see `attention_geometry`).
        operator_version: Version of RoutedAttention that the nodes ask for.
        plugin_namespace: Namespace of the plugin that the nodes ask for.
        plugin_version: Version of the plugin that the nodes ask for.
        opset: Opset of the standard operators.
        tau: The model's own routing threshold, to be fed as the input `tau` unless the user says otherwise.
        num_layers: Number of layers, L.
        num_heads: Number of heads, N.
        head_dim: Head dimension, D.
        latent_shape: [channels, frames, height, width] of `hidden_states`.
        text_length: Number of rows of `encoder_hidden_states`.
        ulysses: Number of GPUs that share the tokens and heads of a pass. Above 1, `rank` and `head_orders` are inputs,
            too.
        lora: LoRA files that were fused into the checkpoint's weights, in the order in which they were added.
        float8_weights: Number of the checkpoint's tensors that are stored in float8; they were multiplied by their
            scales.
        router_sha256: SHA-256 of the router's weights; None if there is no router and every head is full.
        inputs: Inputs of the file, in order.
        outputs: Outputs of the file, in order.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    vorta_trt_version: str
    torch_version: str
    onnx_version: str
    onnxscript_version: str
    component: Literal["transformer", "transformer_2"] = TRANSFORMER
    family: str
    config: dict[str, Any]
    checkpoint: str | None
    boundary_ratio: float | None = Field(default=None, gt=0, lt=1)
    precision: PrecisionName
    attention_precision: AttentionPrecision = "same"
    linear_precision: LinearPrecision = "same"
    linear_keep: tuple[str, ...] = ()
    fp8_layers: tuple[str, ...] = ()
    input_scales: dict[str, float] = {}
    geometry: dict[str, Any]
    operator_version: int
    plugin_namespace: str
    plugin_version: str
    opset: int
    tau: float
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    latent_shape: tuple[int, int, int, int]
    text_length: int
    ulysses: int = Field(default=1, ge=1)
    lora: tuple[LoraRecord, ...] = ()
    float8_weights: int = Field(default=0, ge=0)
    router_sha256: str | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def experts(self) -> tuple[str, ...]:
        """The components of all experts that the model's pipeline has."""
        return COMPONENTS[:1] if self.boundary_ratio is None else COMPONENTS

    def check_first(self, source: object) -> None:
        """Raises ValueError if this is the second of two experts: the caller has to give the first."""
        if self.component != self.experts[0]:
            raise ValueError(
                f"{source}: holds {in_words([self.component])} of two experts; give the file of the first, beside "
                f"which the second is found"
            )

    def check_together(self, other: ModelMetadata, here: object, there: object) -> None:
        """Checks that two exported models are of one pipeline: both experts, or one transformer at two sizes.

        Args:
            other: Metadata of the other model.
            here: File of this model, for errors.
            there: File of the other model, for errors.

        Raises:
            ValueError: They are not of one pipeline; the message names the difference.
        """
        names = ["family", "checkpoint", "precision", "linear_precision", "boundary_ratio"]
        mine, others = ({name: getattr(each, name) for name in names} for each in (self, other))
        for values, each in ((mine, self), (others, other)):
            values |= {f"{name} in its config": value for name, value in sorted(each.config.items())}
            if self.component == other.component:
                values["LoRA"] = "; ".join(map(str, each.lora)) or "none"
        for name in dict.fromkeys((*mine, *others)):
            if mine.get(name) != others.get(name):
                raise ValueError(
                    f"{here}: is of {name} {mine.get(name)}, and {there} of {others.get(name)}; experts and sizes of "
                    f"one model belong together: export both from the same checkpoint in the same way"
                )

    def describe_linears(self) -> str:
        """The linear layers in words: how many have fp8 products, and the patterns of those that do not."""
        if self.linear_precision == "same":
            return "same"
        return f"fp8, {len(self.fp8_layers)} layers; kept {' '.join(self.linear_keep) or 'none that could be'}"

    def gpu_lines(self) -> list[str]:
        """Lines of `vorta-trt inspect` on the GPUs of a model for several GPUs; none for other models."""
        return [] if self.ulysses == 1 else [f"GPUs       {self.ulysses} share every pass; run it with --gpus"]

    def linear_lines(self) -> list[str]:
        """Lines of `vorta-trt inspect` on the linear layers: those with fp8 products, and the patterns of others."""
        if self.linear_precision == "same":
            return ["linear     products in the type of the inputs"]
        layers = ", ".join(f"{name} {count}" for name, count in collapsed(self.fp8_layers).items())
        scales = len(self.input_scales)
        return [
            f"linear     fp8 products in {len(self.fp8_layers)} layers: {layers}",
            f"           kept as they are (--linear-keep): {' '.join(self.linear_keep) or 'none that could be fp8'}",
            f"           static scales of the input: {scales or 'none'}{' layers' if scales else ''}",
        ]

    @property
    def has_router(self) -> bool:
        """Whether the model has a router; without one every head is full."""
        return self.router_sha256 is not None

    @property
    def attention_geometry(self) -> AttentionGeometry:
        """The geometry of the routed attention."""
        return AttentionGeometry.from_dict(self.geometry)

    @property
    def video_size(self) -> VideoSize:
        """Frames, height and width of the videos, in pixels."""
        return VideoSize(*get_family(self.family).video_size(self.config, *self.latent_shape[1:]))

    def model_inputs(self) -> tuple[ModelInput, ...]:
        """Inputs of the model family. The file also has `tau`, `route_override` and, for several GPUs, rank inputs."""
        return get_family(self.family).inputs(self.config)

    def compared_modules(self) -> list[str]:
        """Submodules that a verification compares, in the order of execution; the graph need not have all of them."""
        return get_family(self.family).compared_modules(self.config)

    def to_metadata_props(self) -> dict[str, str]:
        """Gives the entries of `metadata_props`: the record, and parts of it for people."""
        geometry = self.attention_geometry
        return {
            KEY: self.model_dump_json(),
            "family": self.family,
            "precision": self.precision,
            "attention precision": self.attention_precision,
            "linear precision": self.describe_linears(),
            "checkpoint": self.checkpoint or "",
            "weights in float8": f"{self.float8_weights}, multiplied out" if self.float8_weights else "none",
            "LoRA": "; ".join(map(str, self.lora)) or "none",
            "component": self.component,
            "geometry": str(geometry),
            "layers, heads, head_dim": f"{self.num_layers}, {self.num_heads}, {self.head_dim}",
            "router": f"sha256 {self.router_sha256}" if self.router_sha256 else "none, every head is full",
            "tau": f"{self.tau:g}",
            "writer": f"vorta-trt {self.vorta_trt_version}",
        }

    @classmethod
    def from_metadata_props(cls, properties: Mapping[str, str], source: str = "metadata") -> ModelMetadata:
        """Reads the record. Raises OnnxFileError if it is missing, of a newer version, or damaged."""
        if KEY not in properties:
            raise OnnxFileError(
                f"{source}: has no {KEY!r} metadata, so vorta-trt did not export it; export it with `vorta-trt export`"
            )
        try:
            content = json.loads(properties[KEY])
        except (json.JSONDecodeError, RecursionError) as error:
            raise OnnxFileError(f"{source}: its {KEY!r} metadata is not JSON ({error}); export it again") from error
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise OnnxFileError(
                f"{source}: its metadata has schema version {version}, this vorta-trt reads up to {SCHEMA_VERSION}; "
                f"update vorta-trt, or export the model again"
            )
        try:
            metadata = cls.model_validate(content)
            _ = metadata.attention_geometry
            get_family(metadata.family)
        except (ValueError, TypeError) as error:
            found = first_error(error) if isinstance(error, ValidationError) else error
            raise OnnxFileError(f"{source}: its {KEY!r} metadata is damaged ({found}); export it again") from error
        return metadata
