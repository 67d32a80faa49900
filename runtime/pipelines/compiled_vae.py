# SPDX-License-Identifier: Apache-2.0
"""The VAE's decoder in torch, compiled and in the channels-last memory format; used where no engine decodes.

The decoder is cut into the same graphs as the engines (see `VideoParts`). Each graph has fixed shapes and strides, so
torch.compile compiles it once. A graph that runs only once per video stays eager, since compiling it does not pay off.
While the graphs run, cuDNN measures its algorithms for every shape and keeps the fastest, unless deterministic
algorithms are asked for. Results differ from those of the eager VAE by the rounding of fused operators and of the
chosen algorithms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.families import get_family
from vorta_trt.model.families.parts import VAE_DECODER, video_parts
from vorta_trt.runtime.pipelines.part_engines import PartComponent

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def compiled_decoder(
    vae: Any,
    family: str,
    config: Mapping[str, Any],
    size: tuple[int, int, int],
    device: torch.device,
    *,
    measures: bool = True,
) -> PartComponent:
    """Makes a component that decodes in place of a VAE.

    Args:
        vae: The VAE of diffusers, in the type that it is to compute in. Its modules are moved to the device; it must
            not be used afterwards.
        family: Name of the model family.
        config: Config of the transformer.
        size: Frames, height and width of the videos.
        device: The device that the decoder runs on.
        measures: Whether cuDNN chooses its algorithms by measuring them.

    Raises:
        ValueError: The family's VAE is not cut into graphs.
    """
    made = video_parts(get_family(family), config, size)
    if made is None:
        raise ValueError(f"compile_vae: the VAE of {get_family(family)} is not cut into graphs yet; leave it out")
    nn.Module.to(vae, device)
    for parameter in vae.parameters():
        if parameter.dim() in _CHANNELS_LAST:
            parameter.data = parameter.data.contiguous(memory_format=_CHANNELS_LAST[parameter.dim()])
    graphs = {graph.name: graph for graph in made.graphs(VAE_DECODER, vae)}
    modules: dict[str, Any] = {
        name: graph.module if graph.runs_once else torch.compile(graph.module, dynamic=False)
        for name, graph in graphs.items()
    }

    def run(name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        graph = graphs[name]
        feeds = [
            _laid_out(
                inputs[each] if each in inputs else torch.zeros(example.shape, dtype=example.dtype, device=device)
            )
            for each, example in graph.inputs.items()
        ]
        with _measured_algorithms() if measures else nullcontext():
            outputs = modules[name](*feeds)
        return dict(zip(graph.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))

    with torch.device("meta"):
        empty = type(vae).from_config(vae.config).eval()
    made.install(VAE_DECODER, empty, run)
    return PartComponent(empty, vae.dtype, device)


def _laid_out(tensor: Tensor) -> Tensor:
    """The tensor in channels-last format, with strides that follow from its shape alone.

    A compiled graph is specific to the strides of its inputs.
    """
    if tensor.dim() not in _CHANNELS_LAST:
        return tensor.contiguous()
    layout = _CHANNELS_LAST[tensor.dim()]
    tensor = tensor.contiguous(memory_format=layout)
    # `contiguous` does not fix the strides of axes with one element.
    return tensor.as_strided(tensor.shape, torch.empty_like(tensor, device="meta", memory_format=layout).stride())


@contextmanager
def _measured_algorithms() -> Iterator[None]:
    """Within the block, cuDNN times its algorithms when a shape is new, unless deterministic ones are asked for."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = before or not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    try:
        yield
    finally:
        cudnn.benchmark = before
