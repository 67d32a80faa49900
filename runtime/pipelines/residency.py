# SPDX-License-Identifier: Apache-2.0
"""Residency: what is freed between the stages of generation, which are encode, denoise and decode.

resident: Nothing is freed. Everything is loaded once, and stays for any number of requests.
sequential: Every stage frees what it has loaded. In a request, the text encoders encode all prompts and are freed; the
engine is opened, samples the latents of all videos and is closed; the VAE decodes them.
auto: Chooses by the memory plan of `runtime.memory_plan` for the memory that is free on the GPU now. The choice is
sequential where the plan encodes the prompt before the engine is opened, or decodes the video after it is closed, or
where the engine does not fit.

Of two experts, one is loaded at a time (`Transformers`) in sequential requests on the CPU, and on a GPU where both do
not fit together. If the caller asks for "resident", both are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from vorta_trt.model.constants import TRANSFORMER_2
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.card_plan import GUIDANCE, RESERVE, CardPlan
from vorta_trt.runtime.device.device_memory import DeviceMemory
from vorta_trt.runtime.engine_parts import engine_parts
from vorta_trt.runtime.executors.loaded_engine import check_device
from vorta_trt.runtime.executors.tensorrt_executor import device_index
from vorta_trt.runtime.memory_plan import plan_memory
from vorta_trt.runtime.pipelines.experts import Source
from vorta_trt.runtime.target import Target, read_target

CPU = torch.device("cpu")


class Residency(str, Enum):
    """What is freed between the stages; see the module's docstring."""

    AUTO = "auto"
    RESIDENT = "resident"
    SEQUENTIAL = "sequential"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"residency {value!r}: must be one of {', '.join(residency.value for residency in cls)}")


@dataclass(frozen=True)
class ResidencyChoice:
    """The chosen residency, and the reason for it.

    Attributes:
        residency: RESIDENT or SEQUENTIAL.
        reason: The reason for the choice, in words.
        device: Device of the VAE and, if resident, of the text encoders.
        encoders: Device of the text encoders, if sequential. It is the CPU if they are too large for the GPU.
        cpu_offload: Whether, if resident, text encoders and VAE are on the GPU only while they are used.
        stream_weights: Whether the engine is opened with a weight streaming budget, which is "auto" unless the caller
            has given one.
        in_turn: Whether only one of two experts is loaded at a time.
    """

    residency: Residency
    reason: str
    device: torch.device = CPU
    encoders: torch.device = CPU
    cpu_offload: bool = False
    stream_weights: bool = False
    in_turn: bool = False

    @property
    def is_sequential(self) -> bool:
        """Whether every stage frees what it has loaded."""
        return self.residency is Residency.SEQUENTIAL

    def to_dict(self) -> dict[str, object]:
        """The choice as an object for JSON."""
        return {
            "residency": self.residency.value,
            "reason": self.reason,
            "cpu_offload": self.cpu_offload,
            "weight_streaming": self.stream_weights,
            "experts_in_turn": self.in_turn,
        }


def choose_residency(
    residency: Residency,
    source: Source,
    checkpoint: Path,
    *,
    size: str | None = None,
    executor: str | None = None,
    device: str | int | None = None,
    cpu_offload: bool = False,
    stream_weights: bool = False,
    vae_precision: str | None = None,
    compile_vae: bool = False,
) -> ResidencyChoice:
    """Chooses the residency; if there is a GPU, by a memory plan. Nothing is loaded.

    Args:
        residency: The residency that the caller asks for.
        source: A bundle, an ONNX file or a model.
        checkpoint: The pipeline folder.
        size: Size of the videos, for a bundle of several sizes.
        executor: Name of the executor, as for `Engine`.
        device: Device of the engine, as for `Engine`.
        cpu_offload: Whether the caller asks for CPU offload.
        stream_weights: Whether the caller asks for weight streaming.
        vae_precision: Precision of a VAE in torch; None takes the family's.
        compile_vae: Whether the VAE's decoder is compiled.

    Raises:
        ValueError: An option would have no effect.
    """
    is_model, sequential = isinstance(source, RoutedTransformer | tuple), residency is Residency.SEQUENTIAL
    if sequential and cpu_offload:
        raise ValueError("cpu_offload: has no effect in residency sequential, which frees text encoders; leave it out")
    if sequential and is_model:
        raise ValueError("residency sequential: opens and closes an engine, and a routed model stays; leave it out")
    asked: dict[str, Any] = {"cpu_offload": cpu_offload, "stream_weights": stream_weights}
    if residency is Residency.RESIDENT:
        return ResidencyChoice(residency, "asked for", **asked)
    if isinstance(source, RoutedTransformer | tuple):
        return ResidencyChoice(Residency.RESIDENT, "a routed model stays where it is", **asked)
    target = read_target(source, size=size)
    two = target.metadata is not None and len(target.metadata.experts) > 1
    if target.bundle is None or executor not in (None, "tensorrt"):
        if sequential:
            return ResidencyChoice(residency, "asked for", in_turn=two, **asked)
        return ResidencyChoice(Residency.RESIDENT, "the model runs on the CPU", **asked)
    index = device_index(device)
    try:
        check_device(target.bundle, index, device)
    except VortaError as error:  # a resident engine is opened before all else, and raises this error with a remedy
        return ResidencyChoice(Residency.RESIDENT, str(error), **asked)
    on_gpu = torch.cuda.is_available()  # else text encoders and VAE run on the CPU
    free = max(_free_bytes(index) * 10 // 2**30 / 10, 0.1)  # GiB, rounded down
    second = read_target(source, component=TRANSFORMER_2, size=size) if two else None
    folder = checkpoint if on_gpu else None
    plan = plan_memory(target, folder, [free], second, vae_precision=vae_precision, compile_vae=compile_vae)
    (card,) = plan.cards
    return by_plan(residency, card, torch.device("cuda", index) if on_gpu else CPU, **asked)


def by_plan(
    residency: Residency,
    card: CardPlan,
    device: torch.device,
    *,
    cpu_offload: bool = False,
    stream_weights: bool = False,
) -> ResidencyChoice:
    """The choice that follows from the memory plan for the free memory of the GPU.

    Args:
        residency: The residency that the caller asks for: AUTO or SEQUENTIAL.
        card: The memory plan.
        device: Device of text encoders and VAE.
        cpu_offload: Whether the caller asks for CPU offload.
        stream_weights: Whether the caller asks for weight streaming.
    """
    reason = f"free on the GPU are {card.line()}"
    encoders, in_turn = CPU if card.encoding == "too large" else device, card.experts == "in turn"
    if residency is Residency.SEQUENTIAL:
        return ResidencyChoice(residency, f"asked for; {reason}", device, encoders, False, stream_weights, in_turn)
    stream_weights |= card.fits and card.weight_streaming_budget is not None
    beside = {card.encoding, card.decoding} <= {"beside", None}
    if device.type == "cuda" and not (card.fits and beside):
        return ResidencyChoice(Residency.SEQUENTIAL, reason, device, encoders, False, stream_weights, in_turn)
    cpu_offload |= "leaves" in (card.text_encoder, card.vae)
    return ResidencyChoice(Residency.RESIDENT, reason, device, device, cpu_offload, stream_weights, in_turn)


def check_same_residency(choices: Sequence[ResidencyChoice]) -> None:
    """Raises VortaError unless all ranks chose alike, since they exchange the results of stages in the same order."""
    found: dict[str, list[int]] = {}
    for rank, choice in enumerate(choices):
        found.setdefault(f"{choice.residency.value}{', experts in turn' if choice.in_turn else ''}", []).append(rank)
    if len(found) > 1:
        what = "; ".join(f"{name} on rank {', '.join(map(str, ranks))}" for name, ranks in found.items())
        raise VortaError(
            f"residency auto: is {what}, since other programs leave them different memory ({choices[0].reason}); close "
            f"those, or ask for residency resident or sequential"
        )


def fits_beside(targets: Sequence[Target], device: torch.device) -> bool:
    """Whether engines, of which one runs at a time, fit into the free memory of a GPU; always False on the CPU."""
    if device.type != "cuda":
        return False
    parts = [engine_parts(target) for target in targets]
    batches = (min(GUIDANCE, part.largest_batch) for part in parts)
    running = max(
        part.activations_for(batch) + part.tensors_for(batch) for part, batch in zip(parts, batches, strict=True)
    )
    return sum(part.weights for part in parts) + running + RESERVE <= _free_bytes(device.index or 0)


def _free_bytes(index: int) -> int:
    memory = DeviceMemory(index)
    try:
        return memory.free_bytes()[0]
    finally:
        memory.close()
