# SPDX-License-Identifier: Apache-2.0
"""Generation in stages that have the memory one after the other: see `memory_mode`.

Between the stages embeddings and latents lie on the host, and whatever a stage has loaded is freed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.families.training import training_family
from vorta_trt.runtime.pipelines.decoding import decode_latents
from vorta_trt.runtime.pipelines.loader import PartsLoader
from vorta_trt.runtime.pipelines.memory_mode import MemoryChoice
from vorta_trt.runtime.pipelines.sampler import Sampled, Sampler
from vorta_trt.runtime.pipelines.transformer import VortaTransformer

OnStage = Callable[[str, int, int], None]  # what is being done, how often it was done, how often it will be; 0: unknown
OpenTransformer = Callable[[], AbstractContextManager[VortaTransformer]]
Embeddings = dict[str, Tensor]  # [1, ...] each, by the names of the pipeline's arguments


def sample_in_stages(
    prompts: Sequence[str],
    arguments: Mapping[str, Any],
    sampler: Sampler,
    loader: PartsLoader,
    open_transformer: OpenTransformer,
    memory: MemoryChoice,
    on_stage: OnStage,
) -> Iterator[Sampled]:
    """Yields the video of every prompt as soon as it is decoded, after the latents of all have been sampled.

    Args:
        arguments: of the pipeline's call; with a negative prompt, if there is classifier-free guidance.
        open_transformer: is called once; what it gives is closed before a video is decoded.
    """
    began = time.perf_counter()
    others = dict(arguments)
    negative = others.pop("negative_prompt", None)
    texts = list(dict.fromkeys([*prompts, *([] if negative is None else [negative])]))
    encoded = _encode(texts, sampler, loader, memory, on_stage)
    against = {} if negative is None else {f"negative_{name}": tensor for name, tensor in encoded[negative].items()}
    conditions = [encoded[prompt] | against for prompt in prompts]
    _free()
    seconds = (time.perf_counter() - began) / len(prompts)  # an equal share of encoding
    on_stage("loading the engine", 0, 0)
    latents = _sample(conditions, others, sampler, loader, open_transformer)
    _free()
    on_stage("loading the VAE", 0, 0)
    pipeline = _moved(loader.load(memory.device, encoders=False), memory.device)
    for number, sampled in enumerate(latents):
        on_stage("decoding", number, len(latents))
        began = time.perf_counter()
        # On the host, so that the GPU does not hold this video while the next is decoded.
        video = decode_latents(pipeline, sampler.planner.family, sampled.output).cpu()
        seconds_of_it = seconds + sampled.seconds + time.perf_counter() - began
        yield replace(sampled, output=video, seconds=seconds_of_it)
    del pipeline
    _free()


@torch.no_grad()
def _encode(
    texts: Sequence[str], sampler: Sampler, loader: PartsLoader, memory: MemoryChoice, on_stage: OnStage
) -> dict[str, Embeddings]:
    """By text, on the host."""
    on_stage("loading the text encoder", 0, 0)
    family = training_family(sampler.planner.family, sampler.planner.config)
    pipeline = _moved(loader.load(memory.device, vae=False), memory.encoders)
    encoded = {}
    for number, text in enumerate(texts):
        on_stage("encoding prompts", number, len(texts))
        tensors = family.encode_caption(pipeline, text, memory.encoders)
        encoded[text] = {name: tensor[None].cpu() for name, tensor in tensors.items()}
    return encoded


def _sample(
    conditions: Sequence[Embeddings],
    arguments: Mapping[str, Any],
    sampler: Sampler,
    loader: PartsLoader,
    open_transformer: OpenTransformer,
) -> list[Sampled]:
    """Latents [1, C, F, H, W] on the host."""
    with open_transformer() as transformer:
        device = transformer.device
        pipeline = loader.load(device, transformer, encoders=False, vae=False)
        latents = []
        for number, condition in enumerate(conditions):
            moved = {name: tensor.to(device) for name, tensor in condition.items()}
            sampled = sampler(number, pipeline, transformer, "latent", **moved, **arguments)
            latents.append(replace(sampled, output=sampled.output.cpu()))
        return latents


def _moved(pipeline: Any, device: torch.device) -> Any:
    return pipeline if device.type == "cpu" else pipeline.to(device)  # which warns of 16 bits on the CPU


def _free() -> None:
    """What nobody refers to any more; also in cycles, and what torch keeps for later, which TensorRT cannot use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
