# SPDX-License-Identifier: Apache-2.0
"""`MemoryPlan`: whether a pipeline fits a GPU, and how it has to run to fit; the same question for an open engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, computed_field

from vorta_trt.engines.layers import readable_bytes
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.host_memory import MOST_GIB
from vorta_trt.runtime.card_plan import GUIDANCE, RESERVE, CardPlan, for_card, for_experts
from vorta_trt.runtime.engine_parts import Described, EngineParts, engine_parts, model_parts, parts_of_rank
from vorta_trt.runtime.memory_parts import pipeline_parts, sampling_bytes
from vorta_trt.runtime.parallel.layout import in_groups
from vorta_trt.runtime.target import Target

if TYPE_CHECKING:
    from vorta_trt.runtime.engine import Engine

CARDS = (24.0, 80.0, 141.0)  # GiB


class MemoryPlan(BaseModel):
    """Bytes by part, and the plan for each card. None stands for unknown or not given.

    For several GPUs, it is the plan of the first one, which alone has the text encoder.
    """

    weights: int
    second_weights: int | None  # weights of the second of two experts
    activations: dict[int, int]  # by batch
    activations_stated: bool  # whether the builder states them; otherwise they are estimated
    plugin_workspace: int | None  # part of the activations, at the largest batch
    inputs_and_outputs: dict[int, int]  # by batch, including the caller's copies
    latents: int
    text_encoder: int | None
    vae: int | None
    decoding: int | None
    reserve: int
    cards: list[CardPlan]
    gpus: int = 1  # number of GPUs that share a pass
    guidance: int = 1  # number of groups of such GPUs, which compute the passes of a step at the same time
    exchange: int = 0  # part of the activations, at the largest batch

    @computed_field  # type: ignore[prop-decorator]
    @property
    def sampling(self) -> dict[int, int]:
        """Bytes of GPU memory while sampling, by batch, without text encoder and VAE."""
        rest = self.weights + (self.second_weights or 0) + self.latents + self.reserve
        return {batch: size + self.inputs_and_outputs[batch] + rest for batch, size in self.activations.items()}

    def lines(self) -> Iterator[str]:
        """The plan as text."""
        source = "the builder's figure" if self.activations_stated else "estimated"
        by_batch = _by_batch(self.activations)
        second = "" if self.second_weights is None else f", of the second expert {readable_bytes(self.second_weights)}"
        if self.gpus * self.guidance > 1:
            yield f"of the first of {in_groups(self.guidance, self.gpus)}; the others need no text encoder"
        yield f"GPU memory weights {readable_bytes(self.weights)}{second}"
        yield f"           activations {by_batch} ({source})"
        if self.plugin_workspace is not None:
            yield f"           of them plugin workspace {readable_bytes(self.plugin_workspace)} for the largest batch"
        if self.gpus > 1:
            yield f"           of them buffers of the exchange {readable_bytes(self.exchange)} for the largest batch"
        tensors = _by_batch(self.inputs_and_outputs)
        yield f"           inputs and outputs {tensors}; latents of sampling {readable_bytes(self.latents)}"
        rest = (("text encoder", self.text_encoder), ("VAE", self.vae), ("decoding, estimated", self.decoding))
        known = ", ".join(f"{name} {readable_bytes(size)}" for name, size in rest if size is not None)
        yield f"           {known or 'text encoder and VAE not counted (--checkpoint)'}"
        yield f"           CUDA, kernels and fragments {readable_bytes(self.reserve)}, an allowance"
        both = "" if self.second_weights is None else " with both experts"
        yield f"           in all {_by_batch(self.sampling)} while sampling{both}, without text encoder and VAE"
        yield from (f"  {card.line()}" for card in self.cards)


Runs = Target | RoutedTransformer


def plan_memory(
    target: Runs,
    checkpoint: Path | None = None,
    cards: Sequence[float] = CARDS,
    second: Runs | None = None,
    gpus: int | None = None,
    guidance: int = 1,
    passes: int = GUIDANCE,
    vae_precision: str | None = None,
    compile_vae: bool = False,
) -> MemoryPlan:
    """Plans the memory of a bundle, an ONNX file or a model in torch.

    Args:
        target: The transformer, or the first of two experts. The plans of cards are meant for engines.
        checkpoint: A diffusers pipeline folder, for text encoder and VAE.
        cards: Memory of each card in GiB.
        second: The second of two experts.
        gpus: Number of GPUs that share the tokens and heads of a pass, see `parts_of_rank`; None takes the number that
            the engine is built for.
        guidance: Number of groups of such GPUs, 2 with guidance in parallel.
        passes: Number of passes of a step, 2 with guidance.
        vae_precision: Precision of a VAE in torch; None takes the family's.
        compile_vae: Whether a VAE in torch decodes compiled, which takes more.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The memory of a card is not a valid size, or the GPUs cannot share the heads evenly.
    """
    if wrong := [card for card in cards if not 0 < card < MOST_GIB]:
        raise ValueError(f"memory {wrong[0]:g}: must be the GiB of a card; use e.g. 24")
    described = _described(target)
    bundle = target.bundle if isinstance(target, Target) else None
    rest = pipeline_parts(checkpoint, described, bundle, vae_precision, compile_vae)
    gpus = shared_by(target, gpus)
    samples = -(-passes // guidance)  # number of samples of a step on one GPU
    parts = _parts(target, gpus, samples)
    other = None if second is None else _parts(second, gpus, samples)
    running = [parts] if other is None else [parts, other]
    latents = sampling_bytes(described)
    batches = sorted({1, min(samples, parts.largest_batch)})

    def on_card(gib: float) -> CardPlan:
        if other is None:
            return for_card(gib, parts, rest, latents, samples)
        return for_experts(gib, parts, other, rest, latents, samples)

    return MemoryPlan(
        weights=parts.weights,
        second_weights=None if other is None else other.weights,
        activations={batch: max(each.activations_for(batch) for each in running) for batch in batches},
        activations_stated=parts.stated,
        plugin_workspace=parts.workspace,
        inputs_and_outputs={batch: parts.tensors_for(batch) for batch in batches},
        latents=latents,
        text_encoder=rest.text_encoder,
        vae=rest.vae,
        decoding=rest.decoding,
        reserve=RESERVE,
        cards=[on_card(card) for card in cards],
        gpus=gpus,
        guidance=guidance,
        exchange=parts.exchange,
    )


def shared_by(target: Runs, gpus: int | None) -> int:
    """The number of GPUs that share a pass; raises ValueError if `gpus` is not the number that an engine is for."""
    if isinstance(target, RoutedTransformer) or target.metadata is None:
        return gpus or 1
    built_for = target.metadata.ulysses
    if built_for > 1 and gpus not in (None, built_for):
        raise ValueError(f"gpus {gpus}: {target.path} is for {built_for} GPUs that share every pass; leave it out")
    return gpus or built_for


def _described(target: Runs) -> Described | None:
    return target.metadata if isinstance(target, Target) else target


def _parts(target: Runs, gpus: int, samples: int) -> EngineParts:
    if isinstance(target, RoutedTransformer):
        return parts_of_rank(model_parts(target, samples), target, gpus)
    parts = engine_parts(target)
    if gpus == 1:
        return parts
    if target.metadata is None:
        raise ValueError(f"{target.path}: says nothing of its heads and tokens, which {gpus} GPUs would share")
    return parts_of_rank(parts, target.metadata, gpus)


def _by_batch(sizes: Mapping[int, int]) -> str:
    return ", ".join(f"{readable_bytes(size)} for batch {batch}" for batch, size in sizes.items())


# --- An open engine --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuidanceFit:
    """Whether both samples of guidance fit into one call of an engine. The object is true if they fit.

    Attributes:
        needed_bytes: GPU memory that such a call takes in addition to what the engine holds.
        free_bytes: Free GPU memory.
        reason: Both figures in words, for a message or `Fallbacks.record("batched guidance", fit.reason)`.
    """

    fits: bool
    needed_bytes: int
    free_bytes: int
    reason: str

    def __bool__(self) -> bool:
        return self.fits


def batched_guidance_fits(engine: Engine, *, reserve: int = RESERVE) -> GuidanceFit:
    """Whether a call with two samples fits into the memory that is free on the GPU now; no batch is allocated.

    Args:
        engine: An open engine. For an engine on the CPU only its largest batch counts.
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
