# SPDX-License-Identifier: Apache-2.0
"""The VAE's decoder in torch, compiled and with channels last, for where no engine decodes.

It is cut into the same graphs as the engines are (see `VideoParts`), each of fixed shapes and strides, so that
torch.compile compiles each of them once; a graph that runs once in a video is not worth that, and stays eager. While
they run, cuDNN measures its algorithms for every shape and keeps the fastest, but where deterministic ones are asked
for. Results differ from the eager VAE's by the rounding of fused operators and of the algorithms that were chosen.
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
    """What decodes in the place of a VAE.

    Args:
        vae: diffusers', in its type; its modules are moved to the device, and it is used up.
        family: Name of the model family.
        config: Of the transformer.
        size: Of the videos.
        device: Where it runs.
        measures: cuDNN chooses its algorithms by measuring them.

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
    """With channels last and strides that follow from the shape alone: a graph is compiled for the strides, too."""
    if tensor.dim() not in _CHANNELS_LAST:
        return tensor.contiguous()
    layout = _CHANNELS_LAST[tensor.dim()]
    tensor = tensor.contiguous(memory_format=layout)
    # Strides of axes with one element may still be any.
    return tensor.as_strided(tensor.shape, torch.empty_like(tensor, device="meta", memory_format=layout).stride())


@contextmanager
def _measured_algorithms() -> Iterator[None]:
    """Within the block, cuDNN times its algorithms when it sees a shape first; other settings stay."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = before or not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    try:
        yield
    finally:
        cudnn.benchmark = before
