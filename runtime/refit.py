# SPDX-License-Identifier: Apache-2.0
"""Puts LoRA files into the engines of a bundle that was built with `refit`, or takes them out again.

An engine always gets the weights of the checkpoint with the LoRA files fused into them. Weights of an earlier refit are
never reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.refit import NewWeights, check_refit, write_refit
from vorta_trt.export.describe import plain_config
from vorta_trt.export.metadata import LoraRecord
from vorta_trt.export.refit_weights import changed_parameters, refit_weights
from vorta_trt.model.lora.spec import LoraSpec
from vorta_trt.model.precision import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from vorta_trt.model import RoutedTransformer

Report = Callable[[str, int, int], None]


def refit(
    bundle: str | Path,
    checkpoint: str | Path,
    lora: Mapping[str, Sequence[LoraSpec]],
    *,
    variant: str | None = None,
    report: Report = lambda what, done, total: None,
) -> Bundle:
    """Gives every engine of a bundle the weights of the checkpoint with LoRA files fused into them.

    Args:
        bundle: The bundle folder.
        checkpoint: The checkpoint that the bundle was built from.
        lora: LoRA files by component; a component without any gets the checkpoint's own weights back.
        variant: Variant in the names of the checkpoint's weight files, as in diffusers.
        report: Progress callback.

    Returns:
        The bundle, opened. After an error it is unchanged.

    Raises:
        BundleError: The bundle is damaged, or was not built with `refit`.
        ValueError: The checkpoint is that of another model, or a LoRA file does not fit it.
        WriteError: The bundle cannot be written.
    """
    opened = Bundle.open(bundle, runtime=False)
    check_refit(opened)
    made = {}
    for component in dict.fromkeys(key.component for key in opened.engines):
        report("loading the checkpoint", 0, 0)
        made[component] = _new_weights(
            opened.select(component), Path(checkpoint), tuple(lora.get(component, ())), variant, report
        )
    return write_refit(opened, made)


def _new_weights(
    view: Bundle, checkpoint: Path, lora: tuple[LoraSpec, ...], variant: str | None, report: Report
) -> NewWeights:
    from vorta_trt.model import RoutedTransformer

    metadata, before = view.manifest.model_metadata(str(view.path)), view.manifest.refit
    assert before is not None
    model = RoutedTransformer.from_pretrained(
        checkpoint,
        None,
        metadata.attention_geometry,
        metadata.tau,
        torch_dtype(metadata.precision),
        component=view.key.component,
        lora=lora,
        variant=variant,
        materialize=False,
    )
    if (model.family, plain_config(model.config)) != (metadata.family, metadata.config):
        raise ValueError(
            f"checkpoint {checkpoint}: its {view.key.component} has another config than that of {view.path}; give the "
            f"checkpoint that the bundle was built from"
        )
    parameters = sorted({*changed_parameters(model), *before.parameters})
    weights = _reported(model, metadata.precision, before.names, before.parameters, len(parameters), report)
    records = [LoraRecord(name=each.name, sha256=each.sha256, strength=each.strength) for each in model.lora]
    return NewWeights(weights, parameters, records)


def _reported(
    model: RoutedTransformer, precision: str, names: Sequence[str], also: Sequence[str], total: int, report: Report
) -> Iterator[tuple[str, Tensor]]:
    for done, each in enumerate(refit_weights(model, precision, names, also)):
        report("writing weights", done, total)
        yield each
