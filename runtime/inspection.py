# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt inspect`: one call for bundles and ONNX files, with a memory plan and, if asked, a picture of layers."""

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
    """What of a transformer fits where, and how long it is predicted to take on several GPUs."""

    memory_plan: MemoryPlan | None
    pass_plans: dict[str, RankPlan] = {}  # of one pass, by mix of routes

    def plan_lines(self) -> Iterator[str]:
        """Gives the plans as text."""
        yield from () if self.memory_plan is None else self.memory_plan.lines()
        for mix, plan in self.pass_plans.items():
            parts = plan.balanced
            yield (
                f"a pass on {plan.gpus} GPUs, {mix}: {parts.total:.3g} s, {plan.speedup:.2f} times faster than on one; "
                f"attention {parts.attention:.3g}, exchanges {parts.exchange:.3g}; predicted from {plan.source}"
            )


class BundleInspection(BundleReport, Plans):
    """What is in a bundle, and what of it fits where."""

    def lines(self) -> Iterator[str]:
        """Gives the report as text."""
        yield from super().lines()
        yield from self.plan_lines()


class OnnxInspection(OnnxReport, Plans):
    """What is in an ONNX file, and what of its engine would fit where."""

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
        path: Of a bundle or a file.
        check: Hash every file of a bundle.
        plot: Draw the layer graph into this file (.png, .svg, .pdf).
        cards: GiB of the cards of the memory plan.
        checkpoint: A pipeline folder, for the plan's text encoder and VAE.
        component: Which engine of a bundle is shown, as for `read_target`; its second expert for an ONNX file.
        size: The same.
        gpus: Plan memory and time of this many GPUs that share a pass; None: of as many as the engine is for, of one
            without time.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, its second expert does not belong to it, or a picture of this kind cannot be drawn.
        VortaError: It is damaged.
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
    """Of one pass: with every head full, and with half of the heads in either sparse branch."""
    work = PassWork.of(metadata)
    full = torch.zeros(1, work.layers, work.heads, dtype=torch.int32)
    sparse = full + torch.tensor([int(Branch.CORESET), int(Branch.SLIDING)]).repeat(-(-work.heads // 2))[: work.heads]
    mixes = {"every head full": full, "half of the heads coreset, half sliding": sparse}
    return {mix: plan_ranks(work, routes, ulysses=gpus) for mix, routes in mixes.items()}


def _second(path: Path, target: Target) -> Target | None:
    """The second of two experts beside the first, if a bundle has it; an exported file must."""
    metadata = target.metadata
    if metadata is None or TRANSFORMER_2 not in metadata.experts or metadata.component == TRANSFORMER_2:
        return None
    try:
        second = read_target(path, component=TRANSFORMER_2, size=target.key.size)
    except SelectionError:
        if target.bundle is None:
            raise
        return None  # which is for those to say who run both
    check_targets([target, second])
    return second


def _layers(target: Target) -> LayerGraph:
    if target.bundle is None:
        return from_onnx(read_onnx(target.path).model)
    layers = target.bundle.layers_path
    if layers is None:
        raise ValueError(f"{target.path}: holds no layers.json to draw; build it again, or inspect the ONNX file")
    return read_layers(layers)
