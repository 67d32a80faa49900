# SPDX-License-Identifier: Apache-2.0
"""The weights of an exported model that a LoRA changes, under their names in the exported file: what a refit replaces.

They are always computed from the base weights of the checkpoint, never from an engine's weights, so that one LoRA can
replace another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from vorta_trt.export.names import TRANSPOSED
from vorta_trt.export.skeleton import precision_of, skeleton_of

if TYPE_CHECKING:
    from vorta_trt.model import RoutedTransformer


def changed_parameters(model: RoutedTransformer) -> list[str]:
    """The parameters that the LoRA files of a model change, by their names in torch, sorted."""
    return sorted({name for lora in model.lora for names in lora.used.values() for name in names})


def refit_weights(
    model: RoutedTransformer, precision: str, in_file: Iterable[str], also: Iterable[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """The weights that a refit sets, one at a time, as the exporter writes them.

    Args:
        model: The checkpoint with the LoRA files that the engine is to have; its weights may lie on disk.
        precision: Precision of the exported file.
        in_file: Names of the weights in the exported file, some of which are transposed there.
        also: Parameters that an earlier refit changed. Those that no LoRA changes now get the checkpoint's values back.

    Yields:
        Name in the exported file, and value.

    Raises:
        ValueError: The exported file has no such weight, so it is of another model.
    """
    names = {name.removesuffix(TRANSPOSED): name for name in in_file}
    _, weights = skeleton_of(model, precision_of(model, precision))
    for parameter in sorted({*changed_parameters(model), *also}):
        if parameter not in names or parameter not in weights:
            raise ValueError(
                f"parameter {parameter}: is no weight of the exported file, so that is of another model; build it again"
            )
        value = weights[parameter].load()
        name = names[parameter]
        yield name, (value.t() if name.endswith(TRANSPOSED) else value).contiguous()
