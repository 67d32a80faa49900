# SPDX-License-Identifier: Apache-2.0
"""Runs VAE and text encoders with engines, from a bundle or from files beside an ONNX file, as diffusers components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.export.onnx_file import part_files, read_onnx
from vorta_trt.export.part_metadata import PartMetadata
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.families.parts import VAE_DECODER, VAE_ENCODER, video_parts
from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.engine import Engine
from vorta_trt.runtime.pipelines.experts import Source
from vorta_trt.runtime.pipelines.recorded import StandIn
from vorta_trt.runtime.target import read_target


def part_graphs(source: Source) -> dict[str, PartMetadata]:
    """Metadata of the VAE's and text encoders' graphs in a source, by graph name; for a bundle, of all its sizes."""
    if isinstance(source, RoutedTransformer | tuple):
        return {}
    target = read_target(source)
    if target.bundle is not None:
        records = target.bundle.whole.parts
        return {record.component: record.part_metadata(str(target.path)) for record in records}
    found = {}
    for graph, file in part_files(target.path).items():
        metadata = read_onnx(file).part
        assert metadata is not None  # `part_files` lists only files with such metadata
        found[graph] = metadata
        if target.metadata is not None:
            metadata.check_with(target.metadata, file, target.path)
    return found


class PartEngines:
    """Makes the components that engines run, and holds these engines.

    Args:
        source: Source of the transformer: a bundle, an ONNX file or a model.
        family: Name of the model family.
        config: Config of the transformer.
        options: Options of `Engine`: executor, device.

    Attributes:
        parts: Names of the parts that the source has graphs for.
    """

    def __init__(self, source: Source, family: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._source, self._family, self._config, self._options = source, family, config, options
        self._metadata = part_graphs(source)
        self.parts = frozenset(metadata.part for metadata in self._metadata.values())
        self._engines: dict[tuple[str, str], Engine] = {}

    def part_of(self, component: str, *, encodes: bool) -> str | None:
        """Name of the part that runs a component; None if there is none.

        Args:
            component: Name of the component in the pipeline, such as "vae".
            encodes: For a VAE, whether it encodes images; otherwise it decodes latents.
        """
        wanted = (VAE_ENCODER if encodes else VAE_DECODER) if component == "vae" else component
        return wanted if wanted in self.parts else None

    def covers(self, components: Mapping[str, bool]) -> frozenset[str]:
        """Names of the components that engines run entirely, so that their weights are not needed.

        Args:
            components: For each component, by name, whether it encodes images.
        """
        return frozenset(
            name
            for name, encodes in components.items()
            if all(self.part_of(name, encodes=each) for each in ((True, False) if encodes else (False,)))
        )

    def component(self, part: str, empty: Any, size: tuple[int, int, int], device: torch.device) -> PartComponent:
        """Makes a component whose graphs are run by engines.

        Args:
            part: Name of the part, as `part_of` returns it.
            empty: The component of diffusers, without weights.
            size: Frames, height and width of the videos.
            device: The device that the pipeline runs on.

        Raises:
            CheckpointError: The pipeline folder has another component than the one that the engine was made of.
        """
        metadata = next(each for each in self._metadata.values() if each.part == part)
        own = {name: value for name, value in dict(_config(empty)).items() if name in metadata.config}
        for name, value in own.items():
            if _plain(value) != _plain(metadata.config[name]):
                raise CheckpointError(
                    f"{metadata.component}/config.json: {name} {value!r}, but the engine {part} was made of one with "
                    f"{metadata.config[name]!r}; give the pipeline folder {metadata.checkpoint!r} that it was made from"
                )
        made = video_parts(get_family(self._family), self._config, size)
        assert made is not None  # parts are exported only for families that have it
        made.install(part, empty, _Runner(self, VideoSize(*size), device))
        return PartComponent(empty, torch_dtype(metadata.precision), device)

    def engine(self, graph: str, size: VideoSize) -> Engine:
        """The engine of a graph, loaded when it is first asked for."""
        metadata = self._metadata[graph]
        key = graph, "" if metadata.size is None else str(size)
        if key not in self._engines:
            self._engines[key] = Engine(
                self._source,  # type: ignore[arg-type]
                component=graph,
                size=None if metadata.size is None else size,
                verify=False,
                cuda_graph=False,
                **self._options,
            )
        return self._engines[key]

    def close(self) -> None:
        """Frees the engines; they are loaded again when they are needed. May be called twice."""
        while self._engines:
            self._engines.popitem()[1].close()


class PartComponent(StandIn):
    """A component whose graphs are run by engines. Everything else is the code of the component's own class."""

    def __init__(self, part: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(part, dtype, device)
        self._part = part

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Forward call of a text encoder."""
        return self._part.forward(*arguments, **named)

    def encode(self, *arguments: Any, **named: Any) -> Any:
        """`encode` of a VAE."""
        return self._part.encode(*arguments, **named)

    def decode(self, *arguments: Any, **named: Any) -> Any:
        """`decode` of a VAE."""
        return self._part.decode(*arguments, **named)

    def enable_tiling(self) -> None:
        """`enable_tiling` of a VAE."""
        self._part.enable_tiling()

    @property
    def decoder(self) -> nn.Module:
        """Decoder of a VAE, which calls the graphs."""
        decoder: nn.Module = self._part.decoder
        return decoder


class _Runner:
    """Runs graphs by name on tensors of the pipeline's device; an input that is left out is filled with zeros."""

    def __init__(self, engines: PartEngines, size: VideoSize, device: torch.device) -> None:
        self._engines, self._size, self._device = engines, size, device

    def __call__(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        engine = self._engines.engine(name, self._size)
        feeds = {}
        for spec in engine.inputs:
            dtype = torch_dtype(spec.dtype)
            if spec.name in inputs:
                feeds[spec.name] = inputs[spec.name].to(dtype).contiguous()
            else:
                feeds[spec.name] = torch.zeros([int(size) for size in spec.shape], dtype=dtype, device=self._device)
        return engine(**feeds)


def _config(component: Any) -> Mapping[str, Any]:
    config = component.config
    return config if isinstance(config, Mapping) else config.to_dict()


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
