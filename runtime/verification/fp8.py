# SPDX-License-Identifier: Apache-2.0
"""What fp8 attention costs a model: error and norm ratio of every layer's attention, and of the sample.

The checkpoint runs in torch, in the type of the file. Each layer's attention is computed twice from the same inputs, in
that type and in fp8, and the fp8 output goes on to the next layer. So the error of a layer is the error of its own
attention alone, and the error of the sample is the joint effect of all layers. On a GPU with fp8 kernels, the kernels
compute both outputs. Elsewhere, and for files in float32, which the kernels do not take, `model/fp8_emulation.py`
computes them, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vorta_trt.model.fp8_emulation import attend_in_fp8
from vorta_trt.model.operator import attention_attributes, routed_attention
from vorta_trt.model.reference import attend_exactly, routed_attention_reference
from vorta_trt.plugins.gpu import ComputeCapability
from vorta_trt.plugins.kernel_support import best_family
from vorta_trt.plugins.library import load_library
from vorta_trt.runtime.verification.distance import distance
from vorta_trt.runtime.verification.report import AttentionError, Fp8Report

if TYPE_CHECKING:
    from vorta_trt.model import RoutedTransformer

Attend = Callable[..., tuple[Tensor, Tensor]]
"""Takes the operator's arguments. Returns two outputs: computed in fp8, and computed in the type of the query."""


def measure_fp8(
    run: Callable[[], Sequence[np.ndarray[Any, Any]]],
    expected: Sequence[np.ndarray[Any, Any]],
    model: RoutedTransformer,
) -> list[Fp8Report]:
    """Runs cases with fp8 attention.

    Args:
        run: Runs the model on all cases and returns a sample for each.
        expected: The sample of each case without fp8.
        model: The model that `run` runs.

    Returns:
        A report for each case.
    """
    by_kernels = fp8_kernels_serve(model.dtype, model.head_dim)
    with Fp8Attention(_by_kernels if by_kernels else _by_emulation) as attention:
        samples = run()
    layers = len(attention.errors) // len(expected)
    reports = []
    for index, (sample, exact) in enumerate(zip(samples, expected, strict=True)):
        relative, ratio = distance(sample, exact)
        reports.append(
            Fp8Report(
                source="kernels" if by_kernels else "emulation",
                relative_l2=relative,
                norm_ratio=ratio,
                layers=attention.errors[index * layers : (index + 1) * layers],
            )
        )
    return reports


class Fp8Attention(TorchDispatchMode):
    """While it is on, routed attention is computed in fp8.

    Attributes:
        errors: Error of each call of the operator, in the order of the calls: one for each layer of each run.
    """

    def __init__(self, attend: Attend) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.errors: list[AttentionError] = []
        self._attend = attend

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.ops.vorta.routed_attention.default:
            return func(*args, **(kwargs or {}))
        in_fp8, exact = self._attend(*args)
        relative, ratio = distance(in_fp8, exact)
        self.errors.append(AttentionError(relative_l2=relative, norm_ratio=ratio))
        return in_fp8


def fp8_kernels_serve(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the current GPU has fp8 kernels for these inputs."""
    if dtype == torch.float32 or not torch.cuda.is_available():
        return False
    family = best_family(load_library(), "fp8", ComputeCapability(*torch.cuda.get_device_capability()))
    return family is not None and family.takes(head_dim)


def _by_kernels(
    query: Tensor, key: Tensor, value: Tensor, routes: Tensor, text_length: Tensor | None, *attributes: Any
) -> tuple[Tensor, Tensor]:
    geometry, scale, _ = attention_attributes(attributes)
    q, k, v, taken = (tensor.cuda() for tensor in (query, key, value, routes))
    lengths = None if text_length is None else text_length.cuda()
    in_fp8, exact = (
        routed_attention(q, k, v, taken, geometry, lengths, scale, precision).to(query.device)
        for precision in ("fp8", "same")
    )
    return in_fp8, exact


def _by_emulation(
    query: Tensor, key: Tensor, value: Tensor, routes: Tensor, text_length: Tensor | None, *attributes: Any
) -> tuple[Tensor, Tensor]:
    geometry, scale, _ = attention_attributes(attributes)
    in_fp8, exact = (
        routed_attention_reference(query, key, value, routes, geometry, text_length, scale, softmax)
        for softmax in (attend_in_fp8, attend_exactly)
    )
    return in_fp8, exact
