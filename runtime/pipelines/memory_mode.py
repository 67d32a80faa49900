# SPDX-License-Identifier: Apache-2.0
"""Whether engine, text encoders and VAE are loaded together, or have the memory one after the other.

resident: everything is loaded once, and stays for any number of requests.
staged: in every request, the text encoders encode all prompts and go; the engine is opened, samples the latents of all
videos and is closed; the VAE decodes them.
auto: staged where the memory plan of `runtime.memory_plan`, made for what is free on the GPU now, has the prompt
encoded before the engine is opened, or the video decoded after it is closed, or finds that not even the engine fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from vorta_trt.engines.bundle import Bundle
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.device.device_memory import DeviceMemory
from vorta_trt.runtime.executors.loaded_engine import check_device
from vorta_trt.runtime.executors.tensorrt_executor import device_index
from vorta_trt.runtime.memory_plan import CardPlan, plan_memory
from vorta_trt.runtime.target import read_target

CPU = torch.device("cpu")


class MemoryMode(str, Enum):
    AUTO = "auto"
    RESIDENT = "resident"
    STAGED = "staged"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"memory mode {value!r}: must be one of {', '.join(mode.value for mode in cls)}")


@dataclass(frozen=True)
class MemoryChoice:
    """What was chosen, and why.

    Attributes:
        mode: RESIDENT or STAGED. reason: in words. device: where the VAE and, resident, the text encoders run.
        encoders: where the text encoders run, staged: on the CPU if they are too large for the GPU.
        cpu_offload: resident, text encoders and VAE are on the GPU only while they are used.
        stream_weights: the engine is opened with a weight streaming budget; "auto", if the caller has given none.
    """

    mode: MemoryMode
    reason: str
    device: torch.device = CPU
    encoders: torch.device = CPU
    cpu_offload: bool = False
    stream_weights: bool = False

    @property
    def is_staged(self) -> bool:
        return self.mode is MemoryMode.STAGED

    def to_dict(self) -> dict[str, object]:
        return {
            "mode": self.mode.value,
            "reason": self.reason,
            "cpu_offload": self.cpu_offload,
            "weight_streaming": self.stream_weights,
        }


def choose_memory(
    mode: MemoryMode,
    source: str | Path | Bundle | RoutedTransformer,
    checkpoint: Path,
    *,
    executor: str | None = None,
    device: str | int | None = None,
    cpu_offload: bool = False,
    stream_weights: bool = False,
) -> MemoryChoice:
    """Asks the memory plan, if there is a GPU to ask about; loads nothing.

    Args:
        source: bundle, ONNX file or model. checkpoint: the pipeline folder. executor, device: as for `Engine`.
        cpu_offload, stream_weights: whether that has been asked for.
    Raises: ValueError, for what has no effect.
    """
    if mode is MemoryMode.STAGED and cpu_offload:
        raise ValueError("cpu_offload: has no effect in memory mode staged, which frees text encoders; leave it out")
    if mode is MemoryMode.STAGED and isinstance(source, RoutedTransformer):
        raise ValueError("memory mode staged: opens and closes an engine, and a routed model stays; leave it out")
    asked: dict[str, Any] = {"cpu_offload": cpu_offload, "stream_weights": stream_weights}
    if mode is MemoryMode.RESIDENT:
        return MemoryChoice(mode, "asked for", **asked)
    if isinstance(source, RoutedTransformer):
        return MemoryChoice(MemoryMode.RESIDENT, "a routed model stays where it is", **asked)
    target = read_target(source)
    if target.bundle is None or executor not in (None, "tensorrt"):
        if mode is MemoryMode.STAGED:
            return MemoryChoice(mode, "asked for", **asked)
        return MemoryChoice(MemoryMode.RESIDENT, "the model runs on the CPU", **asked)
    index = device_index(device)
    try:
        check_device(target.bundle, index, device)
    except VortaError as error:  # the engine says this, too, and with a remedy: resident, it is opened before all else
        return MemoryChoice(MemoryMode.RESIDENT, str(error), **asked)
    on_gpu = torch.cuda.is_available()  # else text encoders and VAE run on the CPU
    free = max(_free_bytes(index) * 10 // 2**30 / 10, 0.1)  # GiB, rounded down
    (card,) = plan_memory(target, checkpoint if on_gpu else None, [free]).cards
    return by_plan(mode, card, torch.device("cuda", index) if on_gpu else CPU, **asked)


def by_plan(
    mode: MemoryMode, card: CardPlan, device: torch.device, *, cpu_offload: bool = False, stream_weights: bool = False
) -> MemoryChoice:
    """What follows from AUTO or STAGED and the plan for what is free on the GPU.

    Args:
        device: of text encoders and VAE. cpu_offload, stream_weights: whether that has been asked for.
    """
    reason = f"free on the GPU are {card.line()}"
    encoders = CPU if card.encoding == "too large" else device
    if mode is MemoryMode.STAGED:
        return MemoryChoice(mode, f"asked for; {reason}", device, encoders, stream_weights=stream_weights)
    stream_weights |= card.fits and card.weight_streaming_budget is not None
    beside = {card.encoding, card.decoding} <= {"beside", None}
    if device.type == "cuda" and not (card.fits and beside):
        return MemoryChoice(MemoryMode.STAGED, reason, device, encoders, stream_weights=stream_weights)
    cpu_offload |= "leaves" in (card.text_encoder, card.vae)
    return MemoryChoice(MemoryMode.RESIDENT, reason, device, device, cpu_offload, stream_weights)


def _free_bytes(index: int) -> int:
    memory = DeviceMemory(index)
    try:
        return memory.free_bytes()[0]
    finally:
        memory.close()
