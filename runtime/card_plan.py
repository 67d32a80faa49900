# SPDX-License-Identifier: Apache-2.0
"""`CardPlan`: how a pipeline runs on a card with a given amount of memory, computed from the bytes of its parts.

Three stages run one after the other: encoding the prompt, sampling, decoding the video. A part that stays on the GPU
counts in each of them. Two experts also run one after the other; their weights are on the GPU together, or in turn. If
not everything fits, the plan gives up one thing after the other, in this order: the text encoder stays on the GPU, the
VAE stays on the GPU, guidance runs as one batch of two, both experts are on the GPU together, all weights of the engine
are on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from pydantic import BaseModel

from vorta_trt.engines.layers import readable_bytes
from vorta_trt.runtime.engine_parts import EngineParts
from vorta_trt.runtime.memory_parts import PipelineParts

# Reserved for CUDA context, kernels, cuBLAS and cuDNN, and fragmentation: an allowance, not a measurement.
RESERVE = 3 << 29  # 1.5 GiB
ENCODING = 1 << 29  # activations of a text encoder on one prompt: an allowance
STREAMING_SCRATCH = 1 << 29  # buffers for the layers that are being streamed in: an allowance
GUIDANCE = 2  # samples of one denoising step with classifier-free guidance

Stage = Literal["beside", "alone", "too large"]


class CardPlan(BaseModel):
    """How the pipeline runs on a card of `gib` GiB.

    Attributes:
        fits: Whether the pipeline runs on the card at all.
        guidance: Whether both samples of a step run in one call, or one after the other; None if this GPU computes only
            one of them.
        text_encoder: Whether the text encoders stay on the GPU or leave it while the engine samples; None if they are
            not in the plan.
        vae: Whether the VAE stays on the GPU or leaves it while the engine samples; None if it is not in the plan.
        weight_streaming_budget: Bytes for `Engine(weight_streaming_budget=...)`; None if all weights fit.
        encoding: Whether the prompt is encoded "beside" the engine, which keeps its activations between videos, "alone"
            before the engine is opened, or is "too large"; None if it is unknown.
        decoding: Whether the video is decoded "beside" the engine, "alone" after it is closed, or is "too large"; None
            if it is unknown.
        experts: Whether two experts are on the GPU "together" or "in turn"; None if there is one transformer.
        sampling_bytes: Bytes that are needed while sampling, including everything that stays on the GPU.
        remarks: Advice, such as how to build an engine that fits better.
    """

    gib: float
    fits: bool
    guidance: Literal["batched", "sequential"] | None
    text_encoder: Literal["stays", "leaves"] | None
    vae: Literal["stays", "leaves"] | None
    weight_streaming_budget: int | None
    encoding: Stage | None
    decoding: Stage | None
    sampling_bytes: int
    remarks: list[str]
    experts: Literal["together", "in turn"] | None = None

    def line(self) -> str:
        """Gives the plan as one line of text."""
        if not self.fits:
            return f"{self.gib:g} GiB: does not fit; " + "; ".join(self.remarks)
        parts = [] if self.guidance is None else [f"guidance {self.guidance}"]
        for name, place in (("text encoder", self.text_encoder), ("VAE", self.vae)):
            if place is not None:
                parts.append(f"{name} {place}")
        if self.experts is not None:
            parts.append(f"experts {self.experts}")
        if self.weight_streaming_budget is not None:
            parts.append(f"weights streamed, {readable_bytes(self.weight_streaming_budget)} of them on the GPU")
        if self.encoding == "alone":
            parts.append("prompt encoded before the engine is opened")
        if self.decoding == "alone":
            parts.append("video decoded after the engine is closed")
        if self.encoding == "too large":
            parts.append("encoding needs more than the card has")
        if self.decoding == "too large":
            parts.append("decoding needs more than the card has (--vae-tiling, or --vae-precision fp16, takes less)")
        needed = readable_bytes(self.sampling_bytes)
        said = [", ".join(parts)] if parts else []
        return f"{self.gib:g} GiB: {'; '.join([*said, f'sampling takes {needed}', *self.remarks])}"


@dataclass(frozen=True)
class _Choice:
    batched: bool
    text_encoder: bool  # whether it stays on the GPU
    vae: bool  # whether it stays on the GPU


def for_experts(
    gib: float, parts: EngineParts, second: EngineParts, rest: PipelineParts, latents: int, samples: int
) -> CardPlan:
    """The plan of two experts, which share one activation memory; they run in turn if they do not fit together."""
    shared = replace(
        parts,
        activations=max(parts.activations, second.activations),
        streams=parts.streams and second.streams,
        resizes=parts.resizes and second.resizes,
    )
    together = for_card(gib, replace(shared, weights=parts.weights + second.weights), rest, latents, samples)
    if together.weight_streaming_budget is None:
        return together.model_copy(update={"experts": "together"})
    in_turn = for_card(gib, replace(shared, weights=max(parts.weights, second.weights)), rest, latents, samples)
    return in_turn.model_copy(update={"experts": "in turn"})


def for_card(gib: float, parts: EngineParts, rest: PipelineParts, latents: int, samples: int) -> CardPlan:
    """The plan of one transformer.

    Args:
        gib: Memory of the card in GiB.
        parts: Bytes of the transformer.
        rest: Bytes of the other parts of the pipeline.
        latents: Bytes of latents and similar tensors that sampling keeps.
        samples: Number of samples of a step that this GPU computes.
    """
    room = int(gib * 2**30) - RESERVE
    can_batch = min(parts.largest_batch, samples) >= GUIDANCE
    choices = [
        _Choice(batched, text, vae)
        for batched, vae, text in product(*((True, False) for _ in range(3)))
        if can_batch or not batched
    ]

    def needed(choice: _Choice, streams: bool = False) -> int:
        """Bytes that are needed while sampling, without the weights of the engine.

        An engine that streams weights counts with the activations of its largest batch, because only that figure of
        TensorRT includes the scratch memory of streaming (`tensorrt_api.scratch_for`).
        """
        batch = GUIDANCE if choice.batched else 1
        staying = (rest.text_encoder or 0) * choice.text_encoder + (rest.vae or 0) * choice.vae
        activations = parts.activations if streams else parts.activations_for(batch)
        return activations + parts.tensors_for(batch) + latents + staying

    chosen = next((choice for choice in choices if needed(choice) + parts.weights <= room), None)
    budget, remarks = None, [] if can_batch or samples < GUIDANCE else [_one_sample(parts)]
    if chosen is None:
        chosen = _Choice(batched=False, text_encoder=False, vae=False)
        budget = room - needed(chosen, streams=True) - STREAMING_SCRATCH
        remarks += _streaming_remarks(parts, budget)
    weights = parts.weights if budget is None else max(budget, 0) + STREAMING_SCRATCH
    streamable = parts.can_stream and (parts.streams or not parts.built)
    text, vae = (rest.text_encoder or 0) * chosen.text_encoder, (rest.vae or 0) * chosen.vae
    sampling = needed(chosen, streams=budget is not None)
    beside = sampling - text - vae + weights
    return CardPlan(
        gib=gib,
        fits=budget is None or (budget > 0 and streamable),
        guidance=None if samples < GUIDANCE else "batched" if chosen.batched else "sequential",
        text_encoder=None if rest.text_encoder is None else "stays" if chosen.text_encoder else "leaves",
        vae=None if rest.vae is None else "stays" if chosen.vae else "leaves",
        weight_streaming_budget=None if budget is None else max(budget, 0),
        encoding=_stage(rest.text_encoder, ENCODING, beside + vae, room),
        decoding=_stage(rest.vae, rest.decoding, beside + text, room),
        sampling_bytes=sampling + weights + RESERVE,
        remarks=remarks,
    )


def _one_sample(parts: EngineParts) -> str:
    return "the engine takes one sample a call: guidance can only be sequential (build --batch 1:1:2 for both)"


def _streaming_remarks(parts: EngineParts, budget: int) -> list[str]:
    # The budget that an engine for one sample would have.
    smaller = budget + parts.activations - parts.activations // parts.largest_batch
    if budget <= 0:
        remedy = "build with --batch 1, or take a smaller video" if smaller > 0 else "take a smaller video"
        return [f"activations alone need more; {remedy}, or another card"]
    if not parts.can_stream:
        return ["the weights do not fit, and TensorRT 8.6 cannot stream them; build with TensorRT 10 or newer, or RTX"]
    flags = [] if parts.streams else ["--weight-streaming"]
    flags += [f"--batch 1 (keeps {readable_bytes(min(smaller, parts.weights))})"] if smaller > budget else []
    problem = "the weights do not fit; " if parts.built and not parts.streams else ""
    return [f"{problem}build with {' and '.join(flags)}"] if flags else []


def _stage(model: int | None, working: int | None, beside: int, room: int) -> Stage | None:
    """How a model runs that needs `working` bytes, with `beside` bytes of other parts on the GPU."""
    if model is None or working is None:
        return None
    alone = model + working
    return "beside" if alone + beside <= room else "alone" if alone <= room else "too large"
