# SPDX-License-Identifier: Apache-2.0
"""What fp8 products cost a model: error and norm ratio of every linear layer that runs in fp8.

The checkpoint runs in torch, with the same layers in fp8 as the file. Each product is computed twice from the same
input: in fp8 as the operator does, and in float32 with the weight as it was before rounding. The fp8 product goes on to
the next layer. So the error of a layer is the error of its own product alone, and the error of the sample is the joint
effect of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from vorta_trt.model.block_operators.references import linear, norm_modulate, residual_norm_modulate
from vorta_trt.model.fp8_linear import WEIGHT, fp8_layers
from vorta_trt.runtime.verification.distance import distance
from vorta_trt.runtime.verification.report import LinearError, LinearReport

if TYPE_CHECKING:
    from vorta_trt.model import CheckpointReader, RoutedTransformer


_BEFORE: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.vorta.quantize.default: lambda tokens: tokens,
    torch.ops.vorta.joined_quantize.default: lambda first, second: torch.cat((first, second), dim=2),
    torch.ops.vorta.norm_modulate_quantize.default: norm_modulate,
    torch.ops.vorta.residual_norm_modulate_quantize.default: lambda *arguments: residual_norm_modulate(*arguments)[1],
}
"""By operator: a function that computes, from the operator's arguments, the tokens before they are quantised."""


class Fp8Products(TorchDispatchMode):
    """While it is on, products in fp8 are compared with exact ones.

    Args:
        model: The model whose layers are measured.
        reader: The checkpoint that the model was loaded from, with its LoRA files fused.

    Attributes:
        errors: Error of each product, in the order of execution.
    """

    def __init__(self, model: RoutedTransformer, reader: CheckpointReader) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.errors: list[LinearError] = []
        self._reader = reader
        self._names = {layer.weight.data_ptr(): name for name, layer in fp8_layers(model).items()}
        self._tokens = WeakIdKeyDictionary()  # quantised tokens -> the tokens before they were quantised

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if (before := _BEFORE.get(func)) is not None:
            *_, quantized, _ = output
            self._tokens[quantized] = before(*args)
        if func is torch.ops.vorta.fp8_linear.default:
            quantized, _, weight, _, bias, activation = args
            name = self._names[weight.data_ptr()]
            exact = linear(self._tokens[quantized].float(), self._reader.tensor(f"{name}.{WEIGHT}"), bias, activation)
            relative, ratio = distance(output, exact)
            self.errors.append(LinearError(name=name, relative_l2=relative, norm_ratio=ratio))
        return output


def linear_reports(errors: Sequence[LinearError], samples: Sequence[Any], exact: Sequence[Any]) -> list[LinearReport]:
    """Gives a report for each case.

    Args:
        errors: Errors of all products of all cases, one case after the other.
        samples: The sample of each case with fp8 products.
        exact: The sample of each case without fp8 products, in float32.
    """
    layers = len(errors) // len(samples)
    reports = []
    for index, (sample, without) in enumerate(zip(samples, exact, strict=True)):
        relative, ratio = distance(sample, without)
        own = errors[index * layers : (index + 1) * layers]
        reports.append(LinearReport(relative_l2=relative, norm_ratio=ratio, layers=list(own)))
    return reports
