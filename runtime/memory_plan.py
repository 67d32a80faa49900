# SPDX-License-Identifier: Apache-2.0
"""`MemoryPlan`: what of a pipeline fits a GPU, and how it has to run to fit; and the same question to an open engine.

Three stages never run at the same time: encoding the prompt, sampling, decoding the video. What stays on the GPU counts
in each of them. Nor do two experts: their weights are on the GPU together, or in turn. In the order in which things are
given up: text encoder on the GPU, VAE on the GPU, guidance as one batch of two, experts together, all weights of the
engine on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from vorta_trt.engines.layers import readable_bytes
from vorta_trt.runtime.memory_parts import (
    EngineParts,
    PipelineParts,
    engine_parts,
    parts_of_rank,
    pipeline_parts,
    sampling_bytes,
)
from vorta_trt.runtime.target import Target

if TYPE_CHECKING:
    from vorta_trt.runtime.engine import Engine

CARDS = (24.0, 80.0, 141.0)  # GiB
# CUDA context, kernels, cuBLAS and cuDNN, fragments of allocators: an allowance, not a measurement.
RESERVE = 3 << 29  # 1.5 GiB
ENCODING = 1 << 29  # activations of a text encoder on one prompt: an allowance
STREAMING_SCRATCH = 1 << 29  # for the layers on their way in; an allowance
GUIDANCE = 2  # samples of one denoising step with classifier-free guidance


Stage = Literal["beside", "alone", "too large"]


class CardPlan(BaseModel):
    """How the pipeline runs on a card of `gib` GiB.

    Attributes:
        fits: whether it runs at all. guidance: both samples of a step in one call, or one after the other.
        text_encoder, vae: "stays" on the GPU or "leaves" it while the engine samples; None: not in the plan.
        weight_streaming_budget: bytes for `Engine(weight_streaming_budget=...)`; None: all weights fit.
        encoding, decoding: of prompt and video, "beside" the engine, which keeps its activations from one video to the
        next, "alone" (before it is opened, after it is closed), or "too large"; None: unknown.
        experts: whether two experts are on the GPU "together", or "in turn"; None: there is one.
        sampling_bytes: needed while sampling, with everything that stays. remarks: what to do about it.
    """

    gib: float
    fits: bool
    guidance: Literal["batched", "sequential"]
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
        parts = [f"guidance {self.guidance}"]
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
        for name, stage in (("encoding", self.encoding), ("decoding", self.decoding)):
            if stage == "too large":
                parts.append(f"{name} needs more than the card has")
        needed = readable_bytes(self.sampling_bytes)
        return f"{self.gib:g} GiB: {', '.join(parts)}; sampling takes {needed}" + "".join(
            f"; {r}" for r in self.remarks
        )


class MemoryPlan(BaseModel):
    """Bytes by part, and what follows for each card. None: unknown, or not given.

    Of several GPUs that share a pass, it is the plan of the first, which alone holds text encoder and VAE.
    """

    weights: int
    second_weights: int | None  # of the second of two experts
    activations: dict[int, int]  # by batch
    activations_stated: bool  # by the builder; else estimated
    plugin_workspace: int | None  # part of the activations, at the largest batch
    inputs_and_outputs: dict[int, int]  # by batch, the caller's copies included
    latents: int
    text_encoder: int | None
    vae: int | None
    decoding: int | None
    reserve: int
    cards: list[CardPlan]
    gpus: int = 1
    exchange: int = 0  # part of the activations, at the largest batch

    def lines(self) -> Iterator[str]:
        """The plan as text."""
        source = "the builder's figure" if self.activations_stated else "estimated"
        by_batch = ", ".join(f"{readable_bytes(size)} for batch {batch}" for batch, size in self.activations.items())
        second = "" if self.second_weights is None else f", of the second expert {readable_bytes(self.second_weights)}"
        if self.gpus > 1:
            yield f"of the first of {self.gpus} GPUs that share a pass; the others need no text encoder and no VAE"
        yield f"GPU memory weights {readable_bytes(self.weights)}{second}"
        yield f"           activations {by_batch} ({source})"
        if self.plugin_workspace is not None:
            yield f"           of them plugin workspace {readable_bytes(self.plugin_workspace)} for the largest batch"
        if self.gpus > 1:
            yield f"           of them buffers of the exchange {readable_bytes(self.exchange)} for the largest batch"
        tensors = ", ".join(f"{readable_bytes(size)} for batch {b}" for b, size in self.inputs_and_outputs.items())
        yield f"           inputs and outputs {tensors}; latents of sampling {readable_bytes(self.latents)}"
        rest = (("text encoder", self.text_encoder), ("VAE", self.vae), ("decoding, estimated", self.decoding))
        known = ", ".join(f"{name} {readable_bytes(size)}" for name, size in rest if size is not None)
        yield f"           {known or 'text encoder and VAE not counted (--checkpoint)'}"
        yield f"           CUDA, kernels and fragments {readable_bytes(self.reserve)}, an allowance"
        yield from (f"  {card.line()}" for card in self.cards)


def plan_memory(
    target: Target,
    checkpoint: Path | None = None,
    cards: Sequence[float] = CARDS,
    second: Target | None = None,
    gpus: int | None = None,
) -> MemoryPlan:
    """Plans the memory of a bundle or an ONNX file.

    Args:
        target: What runs.
        checkpoint: A diffusers pipeline folder, for text encoder and VAE.
        cards: GiB of each card.
        second: The second of two experts.
        gpus: How many share the tokens and heads of a pass, see `parts_of_rank`; None: as many as the engine is built
            for.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A card that is none, or a number of GPUs that cannot share the heads.
    """
    if wrong := [card for card in cards if card <= 0]:
        raise ValueError(f"memory {wrong[0]:g}: must be the GiB of a card; use e.g. 24")
    rest = pipeline_parts(checkpoint, target.metadata, target.bundle)
    gpus = shared_by(target, gpus)
    parts = _parts(target, gpus)
    other = None if second is None else _parts(second, gpus)
    latents = sampling_bytes(target.metadata)
    batches = sorted({1, min(GUIDANCE, parts.largest_batch)})

    def for_card(gib: float) -> CardPlan:
        if other is None:
            return _for_card(gib, parts, rest, latents)
        return _for_experts(gib, parts, other, rest, latents)

    return MemoryPlan(
        weights=parts.weights,
        second_weights=None if other is None else other.weights,
        activations={batch: parts.activations_for(batch) for batch in batches},
        activations_stated=parts.stated,
        plugin_workspace=parts.workspace,
        inputs_and_outputs={batch: parts.tensors_for(batch) for batch in batches},
        latents=latents,
        text_encoder=rest.text_encoder,
        vae=rest.vae,
        decoding=rest.decoding,
        reserve=RESERVE,
        cards=[for_card(card) for card in cards],
        gpus=gpus,
        exchange=parts.exchange,
    )


def shared_by(target: Target, gpus: int | None) -> int:
    """How many GPUs share a pass; raises ValueError if an engine for several is asked for another number."""
    built_for = 1 if target.metadata is None else target.metadata.ulysses
    if built_for > 1 and gpus not in (None, built_for):
        raise ValueError(f"gpus {gpus}: {target.path} is for {built_for} GPUs that share every pass; leave it out")
    return gpus or built_for


def _parts(target: Target, gpus: int) -> EngineParts:
    parts = engine_parts(target)
    if gpus == 1:
        return parts
    if target.metadata is None:
        raise ValueError(f"{target.path}: says nothing of its heads and tokens, which {gpus} GPUs would share")
    return parts_of_rank(parts, target.metadata, gpus)


@dataclass(frozen=True)
class _Choice:
    batched: bool
    text_encoder: bool  # whether it stays
    vae: bool


def _for_experts(gib: float, parts: EngineParts, second: EngineParts, rest: PipelineParts, latents: int) -> CardPlan:
    """Two experts, which share the memory of their activations: in turn, if they do not fit together."""
    shared = replace(
        parts,
        activations=max(parts.activations, second.activations),
        streams=parts.streams and second.streams,
        resizes=parts.resizes and second.resizes,
    )
    together = _for_card(gib, replace(shared, weights=parts.weights + second.weights), rest, latents)
    if together.weight_streaming_budget is None:
        return together.model_copy(update={"experts": "together"})
    in_turn = _for_card(gib, replace(shared, weights=max(parts.weights, second.weights)), rest, latents)
    return in_turn.model_copy(update={"experts": "in turn"})


def _for_card(gib: float, parts: EngineParts, rest: PipelineParts, latents: int) -> CardPlan:
    room = int(gib * 2**30) - RESERVE
    can_batch = parts.largest_batch >= GUIDANCE
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
    budget, remarks = None, [] if can_batch else [_one_sample(parts)]
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
        guidance="batched" if chosen.batched else "sequential",
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


# --- An open engine --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuidanceFit:
    """Whether both samples of guidance fit into one call of an engine; true or false as a whole.

    Attributes:
        needed_bytes: GPU memory that such a call takes besides what the engine holds. free_bytes: what there is.
        reason: both in words, for a message or `Fallbacks.record("batched guidance", fit.reason)`.
    """

    fits: bool
    needed_bytes: int
    free_bytes: int
    reason: str

    def __bool__(self) -> bool:
        return self.fits


def batched_guidance_fits(engine: Engine, *, reserve: int = RESERVE) -> GuidanceFit:
    """Asks the engine, on the GPU as it is now, whether a call with two samples fits; nothing is allocated.

    Args:
        engine: An open one; engines on the CPU only look at the batch that they take.
        reserve: Bytes to leave free for the rest of the pipeline.
    """
    largest = max((spec.maximum[0] for spec in engine.inputs if spec.maximum), default=GUIDANCE)
    if largest < GUIDANCE:
        return GuidanceFit(
            False, 0, 0, f"the engine takes {largest} sample a call; build it with --batch 1:1:{GUIDANCE} for two"
        )
    needed, free = engine.room_for(GUIDANCE)
    fits = engine.device == "cpu" or needed + reserve <= free
    return GuidanceFit(
        fits,
        needed,
        free,
        f"a call with {GUIDANCE} samples takes {readable_bytes(needed)} more, {readable_bytes(free)} are free on "
        f"{engine.device}, {readable_bytes(reserve)} of them kept for the rest",
    )
