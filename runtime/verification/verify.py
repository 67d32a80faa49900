# SPDX-License-Identifier: Apache-2.0
"""Does an exported file or a built engine compute what the checkpoint computes?

The truth is torch in float32. A file in float32 must agree with it up to rounding. A file in float16 or bfloat16 may
have twice the error that torch itself has in that type. In 16 bits the timestep embedding is rounded, so a checkpoint
may route a head to another branch than in 32 bits. There the truth takes the 16-bit routes, so that only arithmetic is
compared; the routes are compared separately, with those of torch in the same type. Torch has no fp8 attention here: an
engine that was built for it may have an error of 5e-2, whatever its type. Torch does have fp8 linear layers: a file
with some may have twice the error of torch with the same layers in fp8.

    cases -> sides run one after another (sides) -> errors and rule (report)
          -> after a failure that may be bad luck, runs on other inputs (redraw)
          -> after a failure, a comparison after every module (layers)

A model of real size has so many near-tied coreset choices that some differ between any two programs, in fp32 as well.
So the fp32 rule suits small models, and models of real size whose heads are all full or sliding.
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
        checkpoint: The checkpoint that the target was exported from, as for `RoutedTransformer.from_pretrained`.
        router: The router that the target was exported with.
        lora: The LoRA files that were fused into the target, in their order.
        variant: Variant in the names of the checkpoint's weight files, as in diffusers.
        precision: The precision that the target must have; None accepts any.
        executor: Name of the executor, as for `Engine`. None takes `Engine`'s default, but "reference" for ONNX files
            in bf16.
        batch: Samples per run.
        seed: Seed of the random inputs. None draws a fresh one, which the report names.
        cases: Names of the cases to run, see `make_cases`; all if empty.
        layers: Whether to compare after every module, too; None does so if a case fails.
        component: Which of two experts to verify, as for `read_target`.
        size: Which video size of a bundle to verify, as for `read_target`.
        progress: Callback that is told what runs now.

    Returns:
        The report. Errors beyond the limit raise no exception; they make its `passed` False.

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
    """The subject of a verification; refuses targets and options that cannot be compared."""
    path, metadata = target.path, target.metadata
    if target.onnx_path is not None and (target.bundle is None or executor in ON_CPU):
        check_portable(read_onnx(target.onnx_path))  # before torch runs, which takes long
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
