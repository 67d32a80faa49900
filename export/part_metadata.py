# SPDX-License-Identifier: Apache-2.0
"""The record in the metadata_props of an exported VAE or text encoder.

The module does not import torch or onnx, so reading metadata is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vorta_trt.export.errors import OnnxFileError
from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.model.precision import PrecisionName
from vorta_trt.model.records import first_error

PART_KEY = "vorta_trt_part"


class PartMetadata(BaseModel):
    """Record of one graph of a VAE or a text encoder.

    Attributes:
        schema_version: Version of this record's format.
        vorta_trt_version: Version of vorta-trt that wrote the file.
        graph: Name of the graph, which begins with the part's name.
        graphs: Names of all graphs of the part, in order.
        part: Name of the part, such as "vae_decoder".
        component: Component of the pipeline that the graph was made from: the name of its folder.
        component_class: Library and class of the component.
        config: The component's config.json, without private entries.
        family: Model family of the transformer that the part works with.
        checkpoint: Name of the pipeline folder.
        precision: Precision of the weights.
        opset: Opset of the standard operators.
        size: Video size, such as "81x480x832"; None for a graph that serves every size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    vorta_trt_version: str
    graph: str
    graphs: tuple[str, ...]
    part: str
    component: str
    component_class: tuple[str, str]
    config: dict[str, Any]
    family: str
    checkpoint: str
    precision: PrecisionName
    opset: int
    size: str | None = None

    def to_metadata_props(self) -> dict[str, str]:
        """Gives the entries of `metadata_props`."""
        return {PART_KEY: self.model_dump_json(), "part": self.graph, "family": self.family, "size": self.size or "any"}

    @classmethod
    def from_metadata_props(cls, properties: Mapping[str, str], source: object) -> PartMetadata:
        """Reads the record.

        Args:
            properties: The `metadata_props` of an ONNX file.
            source: The file, for errors.

        Raises:
            OnnxFileError: There is no record, or it is damaged.
        """
        if PART_KEY not in properties:
            raise OnnxFileError(
                f"{source}: is no part that vorta-trt exported; make one with `vorta-trt export --with all`"
            )
        try:
            return cls.model_validate_json(properties[PART_KEY])
        except ValidationError as error:
            raise OnnxFileError(f"{source}: its record {PART_KEY}: {first_error(error)}; export it again") from error

    def check_with(self, transformer: ModelMetadata, here: object, there: object) -> None:
        """Checks that a part is of the pipeline of a transformer.

        Args:
            transformer: Metadata of the transformer's file.
            here: File of this part, for errors.
            there: File of the transformer, for errors.

        Raises:
            ValueError: The part is of another pipeline; the message names the difference.
        """
        names = {
            "family": (self.family, transformer.family),
            "checkpoint": (self.checkpoint, transformer.checkpoint),
            "video size": (self.size, str(transformer.video_size)),
        }
        for name, (mine, theirs) in names.items():
            if mine is not None and mine != theirs:
                raise ValueError(
                    f"{here}: is of {name} {mine}, and {there} of {theirs}; the parts of one pipeline belong together: "
                    f"export them with it, vorta-trt export CHECKPOINT --with {self.part}"
                )
