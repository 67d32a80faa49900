# SPDX-License-Identifier: Apache-2.0
"""The work of `vorta-trt inspect`: reports on a bundle or an ONNX file, with memory plan and picture of the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel

from vorta_trt.engines.errors import SelectionError
from vorta_trt.engines.inspect import BundleReport, OnnxReport, inspect_bundle, inspect_onnx
from vorta_trt.engines.layers import LayerGraph, from_onnx, read_layers
from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model.constants import TRANSFORMER_2
from vorta_trt.model.geometry import Branch
from vorta_trt.runtime.memory_plan import CARDS, MemoryPlan, plan_memory, shared_by
from vorta_trt.runtime.parallel.rank_plan import RankPlan, plan_ranks
from vorta_trt.runtime.parallel.rates import PassWork
from vorta_trt.runtime.target import Target, check_targets, read_target


class Plans(BaseModel):
    """How a transformer fits into the memory of GPUs, and how long it is predicted to take on several of them."""

    memory_plan: MemoryPlan | None
    pass_plans: dict[str, RankPlan] = {}  # predicted times of one pass, by the mix of routes

    def plan_lines(self) -> Iterator[str]:
        """Gives the plans as text."""
        yield from () if self.memory_plan is None else self.memory_plan.lines()
        for mix, plan in self.pass_plans.items():
            parts = plan.balanced
            yield (
                f"a pass on {plan.gpus} GPUs, {mix}: {parts.total:.3g} s, {_times(plan.speedup)} than on one; "
                f"attention {parts.attention:.3g}, exchanges {parts.exchange:.3g}; predicted from {plan.source}"
            )


def _times(speedup: float) -> str:
    return f"{speedup:.2f} times faster" if speedup >= 1 else f"{1 / speedup:.2f} times slower"


class BundleInspection(BundleReport, Plans):
    """The contents of a bundle, and its plans."""

    def lines(self) -> Iterator[str]:
        """Gives the report as text."""
        yield from super().lines()
        yield from self.plan_lines()


class OnnxInspection(OnnxReport, Plans):
    """The contents of an ONNX file, and the plans of the engine that would be built from it."""

    def lines(self) -> Iterator[str]:
        """Gives the report as text."""
        yield from super().lines()
        yield from self.plan_lines()


def inspect_target(
    path: Path,
    *,
    check: bool = False,
    plot: Path | None = None,
    cards: Sequence[float] = CARDS,
    checkpoint: Path | None = None,
    component: str | None = None,
    size: str | None = None,
    gpus: int | None = None,
) -> BundleInspection | OnnxInspection:
    """Reads a bundle folder or an .onnx file; nothing is loaded into TensorRT unless a GPU here can run the bundle.

    Args:
        path: Path of a bundle or an ONNX file.
        check: Whether to hash every file of a bundle.
        plot: File to draw the layer graph into (.png, .svg, .pdf); None draws none.
        cards: Memory sizes in GiB of the cards in the memory plan.
        checkpoint: A pipeline folder, for the plan's text encoder and VAE.
        component: Component of the engine to show, as for `read_target`; for an ONNX file it may be the second expert.
        size: Video size of the engine to show, as for `read_target`.
        gpus: Number of GPUs that share a pass, for which memory and time are planned. None takes the number that the
            engine is built for; if that is one, no time is predicted.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, its second expert does not belong to it, or a picture of this kind cannot be
            drawn.
        VortaError: The file is damaged.
    """
    target = read_target(path, component=component, size=size)
    report = inspect_onnx(target.path) if target.bundle is None else inspect_bundle(path, check, component, size)
    if report.is_part and gpus is not None:
        raise ValueError(f"gpus {gpus}: {path} is no transformer, whose tokens and heads GPUs share; leave it out")
    plan = None if report.is_part else plan_memory(target, checkpoint, cards, _second(path, target), gpus)
    timed = gpus is not None or (plan is not None and plan.gpus > 1)
    passes = _pass_plans(target.metadata, shared_by(target, gpus)) if timed and target.metadata is not None else {}
    if plot is not None:
        from vorta_trt.engines.picture import draw_layers

        draw_layers(_layers(target), plot, title=target.path.name)
    if isinstance(report, BundleReport):
        return BundleInspection(**dict(report), memory_plan=plan, pass_plans=passes)
    return OnnxInspection(**dict(report), memory_plan=plan, pass_plans=passes)


def _pass_plans(metadata: ModelMetadata, gpus: int) -> dict[str, RankPlan]:
    """Plans of one pass for two mixes of routes: all heads full, and one half each in the two sparse branches."""
    work = PassWork.of(metadata)
    full = torch.zeros(1, work.layers, work.heads, dtype=torch.int32)
    sparse = full + torch.tensor([int(Branch.CORESET), int(Branch.SLIDING)]).repeat(-(-work.heads // 2))[: work.heads]
    mixes = {"every head full": full, "half of the heads coreset, half sliding": sparse}
    return {mix: plan_ranks(work, routes, ulysses=gpus) for mix, routes in mixes.items()}


def _second(path: Path, target: Target) -> Target | None:
    """The second of two experts; None if a bundle lacks it. An exported file must have it."""
    metadata = target.metadata
    if metadata is None or TRANSFORMER_2 not in metadata.experts or metadata.component == TRANSFORMER_2:
        return None
    try:
        second = read_target(path, component=TRANSFORMER_2, size=target.key.size)
    except SelectionError:
        if target.bundle is None:
            raise
        return None  # only callers that run both experts need it
    check_targets([target, second])
    return second


def _layers(target: Target) -> LayerGraph:
    if target.bundle is None:
        return from_onnx(read_onnx(target.path).model)
    layers = target.bundle.layers_path
    if layers is None:
        raise ValueError(f"{target.path}: holds no layers.json to draw; build it again, or inspect the ONNX file")
    return read_layers(layers)
