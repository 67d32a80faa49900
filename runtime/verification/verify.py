# SPDX-License-Identifier: Apache-2.0
"""Does an exported file or a built engine compute what the checkpoint computes?

The truth is torch in float32. A file in float32 must agree to rounding; one in float16 or bfloat16 may be off by twice
of what torch itself is off in that type. Where a checkpoint in 16 bits routes a head elsewhere than the same checkpoint
in 32, because its timestep embedding is rounded, the truth takes the 16-bit routes: what is compared is arithmetic, and
the routes are compared on their own, with torch in the same type. Torch has no attention in fp8 here: an engine that
was built for it may be off by 5e-2, whatever its type. Linear layers in fp8 torch does have: a file with some may be
off by twice what torch with the same layers in fp8 is off.

    cases -> sides run one after another (sides) -> errors and rule (report)
          -> after a failure that may be bad luck, other inputs (redraw)
          -> after a failure, the same after every module (layers)

A model of real size has so many near-tied coreset choices that some differ between any two programs in fp32, too; the
fp32 rule is for small models, and for real ones with heads that are all full or sliding.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from vorta_trt.export.metadata import LoraRecord, ModelMetadata
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model.experts import NOISE, in_words
from vorta_trt.model.lora.spec import LoraSpec, sha256_of
from vorta_trt.model.precision import PrecisionName
from vorta_trt.runtime.executors import ON_CPU
from vorta_trt.runtime.executors.onnx_executors import check_portable
from vorta_trt.runtime.target import Target, read_target
from vorta_trt.runtime.verification.cases import Case, make_cases
from vorta_trt.runtime.verification.redraw import Outcome, redraw
from vorta_trt.runtime.verification.report import LayerReport, VerifyReport, rule
from vorta_trt.runtime.verification.sides import Progress, Subject


def verify(
    target: str | Path,
    checkpoint: str | Path,
    router: str | Path | None = None,
    *,
    lora: Sequence[LoraSpec] = (),
    variant: str | None = None,
    precision: PrecisionName | None = None,
    executor: str | None = None,
    batch: int = 1,
    seed: int | None = None,
    cases: Sequence[str] = (),
    layers: bool | None = None,
    component: str | None = None,
    size: str | None = None,
    progress: Progress = lambda stage: None,
) -> VerifyReport:
    """Compares an ONNX file or an engine of a bundle with the torch checkpoint it was made from.

    Args:
        target: An exported .onnx file or a bundle.
        checkpoint: What it was exported from, as for `RoutedTransformer.from_pretrained`.
        router: The router that it was exported with.
        lora: The LoRA files that were fused into it, in their order.
        variant: Of the names of the checkpoint's weight files.
        precision: The precision that it must have; None takes its own.
        executor: As for `Engine`, whose default it has, except that ONNX files in bf16 run in "reference".
        batch: Samples per run.
        seed: Of the random inputs; None draws one (the report says which).
        cases: Names of the cases to run, see `make_cases`; all if empty.
        layers: Compare after every module, too; None does so if a case fails.
        component: Which of two experts, as for `read_target`.
        size: Which video size of a bundle, as for `read_target`.
        progress: Is told what runs now.

    Returns:
        What was found. Numbers that disagree are no exception: see its `passed`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The file was exported from something else; the message names the mismatch.
        VortaError: Something cannot be loaded.
    """
    start = time.perf_counter()
    if batch < 1:
        raise ValueError(f"batch {batch}: must be at least 1; use 2")
    seed = secrets.randbits(32) if seed is None else seed
    progress(f"reading {Path(target).name}")
    found = read_target(Path(target), component=component, size=size)
    subject = _subject(found, Path(checkpoint), router, tuple(lora), variant, precision, executor, progress)

    def draw(only: Sequence[str], number: int = 0) -> list[Case]:
        assert subject.target.metadata is not None
        return make_cases(
            subject.target.inputs,
            subject.target.metadata.model_inputs(),
            default_tau=subject.tau,
            has_router=router is not None,
            batch=batch,
            seed=seed,
            only=only,
            draw=number,
        )

    todo = draw(cases)
    ran, sides = subject.run(todo)
    outcomes = [Outcome(*each) for each in zip(todo, sides, strict=True)]
    outcomes = redraw(outcomes, lambda name, number: draw([name], number)[0], lambda more: subject.run(more)[1])
    failed = [outcome.case for outcome in outcomes if not outcome.report.passed]
    return VerifyReport(
        target=str(target),
        component=found.key.component,
        size=found.key.size,
        checkpoint=str(checkpoint),
        router=None if router is None else str(router),
        executor=ran,
        precision=subject.precision,
        batch=batch,
        seed=seed,
        attention_precision=subject.attention_precision,
        linear_precision="same" if subject.linear_keep is None else "fp8",
        rule=rule(subject.precision, subject.fp8_attention(ran), subject.linear_keep is not None),
        cases=[outcome.report for outcome in outcomes],
        layers=_layer_report(subject, [*failed, *todo][0], not failed)
        if layers or (layers is None and failed)
        else None,
        seconds=round(time.perf_counter() - start, 1),
    )


def _subject(
    target: Target,
    checkpoint: Path,
    router: str | Path | None,
    lora: tuple[LoraSpec, ...],
    variant: str | None,
    precision: str | None,
    executor: str | None,
    progress: Progress,
) -> Subject:
    """Refuses what cannot be compared."""
    path, metadata = target.path, target.metadata
    if target.onnx_path is not None and (target.bundle is None or executor in ON_CPU):
        check_portable(read_onnx(target.onnx_path))  # before torch has run
    if metadata is None:
        raise ValueError(f"{path}: vorta-trt did not export it (no metadata), so there is nothing to compare it with")
    if precision is not None and precision != metadata.precision:
        raise ValueError(
            f"precision {precision!r}: {path} is in {metadata.precision}; leave it out, or export with "
            f"--precision {precision}"
        )
    if metadata.has_router and router is None:
        raise ValueError(f"{path}: was exported with a router, so it must be compared with one; give --router")
    if not metadata.has_router and router is not None:
        raise ValueError(f"{path}: was exported without a router, so every head is full; leave --router out")
    refit = None if target.bundle is None else target.bundle.manifest.refit
    check_lora(path, metadata, metadata.lora if refit is None else refit.lora, lora)
    if executor is None and target.bundle is None and metadata.precision == "bf16":
        executor = "reference"  # ONNX Runtime has no bfloat16 convolution on the CPU
    return Subject(
        target=target,
        checkpoint=checkpoint,
        router=None if router is None else Path(router),
        lora=lora,
        variant=variant,
        executor=executor,
        precision=metadata.precision,
        attention_precision=metadata.attention_precision,
        linear_keep=metadata.linear_keep if metadata.linear_precision == "fp8" else None,
        geometry=metadata.attention_geometry,
        tau=metadata.tau,
        progress=progress,
    )


def check_lora(path: Path, metadata: ModelMetadata, fused: Sequence[LoraRecord], given: Sequence[LoraSpec]) -> None:
    """Raises ValueError unless the LoRA files that are given are those that were fused."""
    ours = [(sha256_of(lora.path), lora.strength) for lora in given]
    if ours != [(lora.sha256, lora.strength) for lora in fused]:
        experts = len(metadata.experts) > 1
        whose = f"{NOISE[metadata.component]}=" if experts else ""
        which = f", {in_words([metadata.component])}" if experts else ""
        names = " ".join(f"--lora {whose}{lora.name}:{lora.strength:g}" for lora in fused)
        raise ValueError(
            f"{path}{which}: was exported with {'; '.join(map(str, fused)) or 'no LoRA'}, so it must be compared with "
            f"the same; {'give ' + names if fused else 'leave --lora out'}"
        )


def _layer_report(subject: Subject, case: Case, case_passed: bool) -> LayerReport:
    from vorta_trt.runtime.verification.layers import compare_layers

    return compare_layers(subject, case, case_passed)
