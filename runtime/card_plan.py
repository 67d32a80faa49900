# SPDX-License-Identifier: Apache-2.0
"""`CardPlan`: how a pipeline runs on a card of one size, of the bytes of its parts.

Three stages never run at the same time: encoding the prompt, sampling, decoding the video. What stays on the GPU counts
in each of them. Nor do two experts: their weights are on the GPU together, or in turn. In the order in which things are
given up: text encoder on the GPU, VAE on the GPU, guidance as one batch of two, experts together, all weights of the
engine on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from pydantic import BaseModel

from vorta_trt.engines.layers import readable_bytes
from vorta_trt.runtime.engine_parts import EngineParts
from vorta_trt.runtime.memory_parts import PipelineParts

# CUDA context, kernels, cuBLAS and cuDNN, fragments of allocators: an allowance, not a measurement.
RESERVE = 3 << 29  # 1.5 GiB
ENCODING = 1 << 29  # activations of a text encoder on one prompt: an allowance
STREAMING_SCRATCH = 1 << 29  # for the layers on their way in; an allowance
GUIDANCE = 2  # samples of one denoising step with classifier-free guidance

Stage = Literal["beside", "alone", "too large"]


class CardPlan(BaseModel):
    """How the pipeline runs on a card of `gib` GiB.

    Attributes:
        fits: whether it runs at all. guidance: both samples of a step in one call, or one after the other; None: this
        GPU computes one alone.
        text_encoder, vae: "stays" on the GPU or "leaves" it while the engine samples; None: not in the plan.
        weight_streaming_budget: bytes for `Engine(weight_streaming_budget=...)`; None: all weights fit.
        encoding, decoding: of prompt and video, "beside" the engine, which keeps its activations from one video to the
        next, "alone" (before it is opened, after it is closed), or "too large"; None: unknown.
        experts: whether two experts are on the GPU "together", or "in turn"; None: there is one.
        sampling_bytes: needed while sampling, with everything that stays. remarks: what to do about it.
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
    text_encoder: bool  # whether it stays
    vae: bool


def for_experts(
    gib: float, parts: EngineParts, second: EngineParts, rest: PipelineParts, latents: int, samples: int
) -> CardPlan:
    """Two experts, which share the memory of their activations: in turn, if they do not fit together."""
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
    """One transformer.

    Args:
        gib: Of the card.
        parts: Of the transformer.
        rest: What stands around it.
        latents: Bytes that sampling keeps.
        samples: Of a step that this GPU computes.
    """
    room = int(gib * 2**30) - RESERVE
    can_batch = min(parts.largest_batch, samples) >= GUIDANCE
    choices = [
        _Choice(batched, text, vae)
        for batched, vae, text in product(*((True, False) for _ in range(3)))
        if can_batch or not batched
    ]

    def needed(choice: _Choice, streams: bool = False) -> int:
        """Bytes while sampling, without the weights of the engine.

        One that streams takes activations of its largest batch: only that figure of TensorRT has streaming's own
        scratch memory in it (`tensorrt_api.scratch_for`).
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
    smaller = budget + parts.activations - parts.activations // parts.largest_batch  # of an engine for one sample
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
    """Where a model runs that needs `working` bytes, with `beside` bytes of other parts on the GPU."""
    if model is None or working is None:
        return None
    alone = model + working
    return "beside" if alone + beside <= room else "alone" if alone <= room else "too large"
