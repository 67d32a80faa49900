# SPDX-License-Identifier: Apache-2.0
"""The VAE's decoder in torch, compiled and with channels last, for where no engine decodes.

It is cut into the same graphs as the engines are (see `VideoParts`), each of fixed shapes, so that torch.compile
compiles each of them once. Results differ from the eager VAE's by the rounding of fused operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.families import get_family
from vorta_trt.model.families.parts import VAE_DECODER, video_parts
from vorta_trt.runtime.pipelines.part_engines import PartComponent

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def compiled_decoder(
    vae: Any, family: str, config: Mapping[str, Any], size: tuple[int, int, int], device: torch.device
) -> PartComponent:
    """What decodes in the place of a VAE.

    Args:
        vae: diffusers', in its type; its modules are moved to the device, and it is used up.
        family: Name of the model family.
        config: Of the transformer.
        size: Of the videos.
        device: Where it runs.

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
    modules: dict[str, Any] = {name: torch.compile(graph.module, dynamic=False) for name, graph in graphs.items()}

    def run(name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        graph = graphs[name]
        feeds = [
            inputs[each] if each in inputs else torch.zeros(example.shape, dtype=example.dtype, device=device)
            for each, example in graph.inputs.items()
        ]
        outputs = modules[name](*feeds)
        return dict(zip(graph.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))

    with torch.device("meta"):
        empty = type(vae).from_config(vae.config).eval()
    made.install(VAE_DECODER, empty, run)
    return PartComponent(empty, vae.dtype, device)
