# SPDX-License-Identifier: Apache-2.0
"""`PipelineParts`: the VAE and text encoders of a pipeline folder, checked, as graphs to be exported."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vorta_trt.export.describe import plain_config
from vorta_trt.export.names import OPSET
from vorta_trt.export.onnx_export import Progress
from vorta_trt.export.part_export import export_part
from vorta_trt.export.part_metadata import PartMetadata
from vorta_trt.model.checkpoint import CheckpointReader
from vorta_trt.model.checkpoint_place import checkpoint_name, find_place
from vorta_trt.model.configs import read_json
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.families.parts import PartGraph, video_parts
from vorta_trt.model.pipeline_folder import (
    check_pipeline,
    component_class,
    empty_part,
    has_variant,
    load_part,
    quiet_libraries,
    vae_config,
)
from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.video_size import VideoSize

ALL = "all"
PURPOSE = "exporting VAE and text encoders"


class PipelineParts:
    """The VAE and text encoders of a pipeline folder, to be exported. `graphs` loads a component when it is its turn.

    Args:
        checkpoint: The pipeline folder, or its transformer's folder.
        size: Size of the videos.
        parts: Names of the parts, as `VideoParts.components` has them, or "all".
        precision: Precision of weights and activations: "fp32", "fp16" or "bf16". Weights that the libraries keep in
            float32 stay so.
        opset: Opset of the standard operators: 23, or 17 for TensorRT 8.6.
        variant: Variant of the weight files, a part of their names, as in diffusers.

    Raises:
        CheckpointError: The folder has none of these parts, a damaged one, or the VAE of another model.
        FileNotFoundError: A file of the folder is missing.
        ValueError: The name of a part or the precision is unknown.
    """

    def __init__(
        self,
        checkpoint: Path,
        size: VideoSize,
        parts: Sequence[str],
        precision: str,
        *,
        opset: int = OPSET,
        variant: str | None = None,
    ) -> None:
        with CheckpointReader(checkpoint, variant=variant) as reader:
            self._family, config = get_family(reader.family), reader.config
        folder = find_place(checkpoint).pipeline
        if folder is None:
            raise CheckpointError(
                f"checkpoint {checkpoint}: is a transformer alone, without VAE and text encoders to export; give the "
                f"whole pipeline folder"
            )
        self._folder, self._variant = folder, variant
        self._index = check_pipeline(folder, self._family, config, purpose=PURPOSE, variant=variant)
        vae_config(self._index, self._family, config, folder)
        made = video_parts(self._family, config, (size.frames, size.height, size.width))
        there = () if made is None else tuple(made.components)
        if unknown := [name for name in parts if name not in (*there, ALL)]:
            has = f"this model has {', '.join(there)}" if there else f"{self._family} models have none yet"
            raise ValueError(f"part {unknown[0]!r}: cannot be exported: {has}; use one of these, or all")
        if made is None:
            raise ValueError(f"parts {', '.join(parts)}: {self._family} models have none yet; leave it out")
        self._made = made
        self.names = tuple(name for name in there if name in parts or ALL in parts)
        self._size, self._precision, self._opset = size, precision, opset
        self._dtype = torch_dtype(precision)

    def graph_names(self) -> list[str]:
        """Names of all graphs; nothing is loaded."""
        return [graph.name for part in self.names for graph in self._graphs(part, self._empty(part))]

    def weight_bytes(self) -> int:
        """Bytes of all graphs' weights; nothing is loaded."""
        item = self._dtype.itemsize
        graphs = [graph for part in self.names for graph in self._graphs(part, self._empty(part))]
        return item * sum(parameter.numel() for graph in graphs for parameter in graph.module.parameters())

    def graphs(self) -> Iterator[tuple[PartGraph, PartMetadata]]:
        """The graphs, with weights; one component at a time is loaded."""
        loaded: tuple[str, Any] = "", None
        for part in self.names:
            name = self._made.components[part]
            if loaded[0] != name:
                loaded = "", None
                gc.collect()
                loaded = name, self._load(name)
            graphs = self._graphs(part, loaded[1])
            for graph in graphs:
                yield graph, self._metadata(part, graph, graphs)

    def export(self, path: Path, graph: PartGraph, metadata: PartMetadata, progress: Progress | None = None) -> Path:
        """Exports one of `graphs`; see `export_part`."""
        return export_part(graph, path, metadata, progress)

    def _graphs(self, part: str, component: Any) -> list[PartGraph]:
        return self._made.graphs(part, component)

    def _empty(self, part: str) -> Any:
        return empty_part(self._index, self._made.components[part], self._folder)

    def _load(self, name: str) -> Any:
        options: dict[str, Any] = {"dtype": self._dtype} if name.startswith("text_encoder") else {}
        if has_variant(self._folder / name, self._variant):
            options["variant"] = self._variant
        with quiet_libraries():
            component = load_part(component_class(self._index, name, self._folder), self._folder / name, options)
        if not name.startswith("text_encoder"):  # diffusers' own `to` warns of modules to keep, even if there are none
            torch.nn.Module.to(component, self._dtype)
        assert isinstance(component, nn.Module)
        return component.eval()

    def _metadata(self, part: str, graph: PartGraph, graphs: Sequence[PartGraph]) -> PartMetadata:
        name = self._made.components[part]
        return PartMetadata(
            vorta_trt_version=version("vorta-trt"),
            graph=graph.name,
            graphs=tuple(each.name for each in graphs),
            part=part,
            component=name,
            component_class=self._index.components[name],
            config=plain_config(read_json(self._folder / name / "config.json", name)),
            family=self._family.name,
            checkpoint=checkpoint_name(self._folder),
            precision=self._precision,
            opset=self._opset,
            size=str(self._size) if graph.of_size else None,
        )
