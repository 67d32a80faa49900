# SPDX-License-Identifier: Apache-2.0
"""Reports of `vorta-trt inspect` on a VAE and text encoders: on their engines in a bundle, or on their ONNX files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.layers import from_onnx, readable_bytes
from vorta_trt.engines.manifest import TensorSpec
from vorta_trt.export.onnx_file import OnnxFile, part_files, read_onnx
from vorta_trt.export.part_metadata import PartMetadata

SHOWN = 2  # inputs, and outputs, that the text report lists; a causal VAE has dozens of caches, which JSON lists


class PartReport(BaseModel):
    """One graph of a VAE or of a text or image encoder.

    Attributes:
        graph: Name of the graph, which `inspect --component` takes.
        part: Part that the graph belongs to, such as "vae_decoder".
        made_of: Component of the pipeline that the graph was exported from, and its class.
        size: Video size; None if the graph serves every size.
        precision: Precision of the weights.
        file: Name of the plan's file, or of the ONNX file.
        bytes_on_disk: Size of the plan's file, or of the ONNX file with its weights.
        plan_bytes: Size of the whole plan; None before it is built.
        shared_with: Plan that holds the other bytes of this one; None if the file is the whole plan.
        weight_bytes: Size of the weights; None if the builder did not log it.
        activation_bytes: Size of the activations; None before the engine is built, or if the builder did not log it.
        build_seconds: Build time; None before the engine is built.
        inputs: Name, type and shape of every input, in order.
        outputs: Name, type and shape of every output, in order.
    """

    graph: str
    part: str
    made_of: str
    size: str | None
    precision: str
    file: str
    bytes_on_disk: int
    plan_bytes: int | None = None
    shared_with: str | None = None
    weight_bytes: int | None
    activation_bytes: int | None = None
    build_seconds: float | None = None
    inputs: list[str]
    outputs: list[str]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        size = "any size" if self.size is None else self.size
        facts = [f"{self.file} {readable_bytes(self.bytes_on_disk)}"]
        if self.shared_with is not None and self.plan_bytes is not None:
            facts[0] += f" and bytes of {self.shared_with}, a plan of {readable_bytes(self.plan_bytes)}"
        known = {"weights": self.weight_bytes, "activations": self.activation_bytes}
        facts += [f"{name} {readable_bytes(value)}" for name, value in known.items() if value is not None]
        if self.build_seconds is not None:
            facts.append(f"built in {self.build_seconds:.1f} s")
        yield f"part       {self.graph}: {self.made_of}, {self.precision}, {size}; {', '.join(facts)}"
        yield f"           takes {_first(self.inputs)}; gives {_first(self.outputs)}"


def parts_of_bundle(bundle: Bundle) -> list[PartReport]:
    """Reports on every engine that is not a transformer's. Raises OnnxFileError if a record is damaged."""
    reports = []
    for record in bundle.whole.parts:
        metadata = record.part_metadata(str(bundle.path))
        view = bundle.select(record.component, record.size)
        memory = record.engine.memory
        reports.append(
            PartReport(
                **_said(metadata),
                file=view.plan_path.name,
                bytes_on_disk=view.plan_path.stat().st_size,
                plan_bytes=view.plan_bytes,
                shared_with=view.names.shared_with,
                weight_bytes=memory.weights,
                activation_bytes=memory.activations,
                build_seconds=record.engine.build_seconds,
                inputs=[_described(spec) for spec in record.inputs],
                outputs=[_described(spec) for spec in record.outputs],
            )
        )
    return reports


def parts_of_onnx(onnx: OnnxFile) -> list[PartReport]:
    """Reports on the file itself if it is a part, else on the part files beside the transformer's file.

    Raises:
        OnnxFileError: A part's file is damaged or missing.
    """
    if onnx.part is not None:
        return [_part_of(onnx, onnx.part)]
    beside = (read_onnx(file) for file in part_files(onnx.path).values())
    return [_part_of(each, each.part) for each in beside if each.part is not None]


def _part_of(onnx: OnnxFile, metadata: PartMetadata) -> PartReport:
    graph = from_onnx(onnx.model)

    def described(name: str) -> str:
        tensor = graph.tensors[name]
        return f"{name} {tensor.dtype} {tensor.shape}"

    return PartReport(
        **_said(metadata),
        file=onnx.path.name,
        bytes_on_disk=onnx.total_bytes,
        weight_bytes=graph.weight_bytes(),
        inputs=[described(value.name) for value in onnx.model.graph.input],
        outputs=[described(value.name) for value in onnx.model.graph.output],
    )


def _said(metadata: PartMetadata) -> dict[str, str | None]:
    return {
        "graph": metadata.graph,
        "part": metadata.part,
        "made_of": f"{metadata.component} {'.'.join(metadata.component_class)}",
        "size": metadata.size,
        "precision": metadata.precision,
    }


def _described(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {spec.shape}"


def _first(tensors: Sequence[str]) -> str:
    rest = len(tensors) - SHOWN
    return ", ".join(tensors[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
