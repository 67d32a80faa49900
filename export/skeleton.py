# SPDX-License-Identifier: Apache-2.0
"""A model without its weights, to be traced, and its weights one by one, to be written.

The skeleton is a copy of the model whose parameters are placeholders that take no memory. So tracing never touches a
weight, whether the model holds its weights or leaves them on disk, and no pass over the graph can copy or fold one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vorta_trt.export.timestep_table import tabulate_timesteps
from vorta_trt.model.fp8_linear import fixed_types
from vorta_trt.model.precision import PRECISIONS, precision_name, torch_dtype

if TYPE_CHECKING:
    from vorta_trt.model import RoutedTransformer


@dataclass(frozen=True)
class Weight:
    """A parameter: its shape and dtype in the exported file, and how to get its value (on the CPU)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def precision_of(model: RoutedTransformer, precision: str | None) -> str:
    """Name of the precision to export in; None is the model's own.

    A float32 model can be exported in any precision: rounding its weights is what loading it in that precision does.
    The half types cannot be widened or changed into each other without a second rounding.

    Raises:
        ValueError: unknown, or not reachable from the model's dtype.
    """
    own = precision_name(model.dtype)
    wanted = own if precision is None else precision
    if wanted is None or wanted not in PRECISIONS:
        given = f"model of dtype {model.dtype}" if precision is None else f"precision {precision!r}"
        raise ValueError(f"{given}: must be one of {', '.join(PRECISIONS)}; use precision='bf16'")
    if wanted != own and own != "fp32":
        raise ValueError(
            f"precision {wanted!r} of a model in {model.dtype}: its weights are rounded already; load it with "
            f"RoutedTransformer.from_pretrained(..., dtype={torch_dtype(wanted)}), or export it as {own!r}"
        )
    return wanted


def skeleton_of(model: RoutedTransformer, precision: str) -> tuple[RoutedTransformer, dict[str, Weight]]:
    """A copy of `model` on the CPU, in eval mode, with placeholders for parameters; and the weights by name."""
    dtypes = _parameter_dtypes(model, torch_dtype(precision))
    weights: dict[str, Weight] = {}
    replaced: dict[int, object] = {}  # memo of deepcopy: objects in it are not copied
    for name, parameter in model.named_parameters():
        shape, dtype = tuple(parameter.shape), dtypes[name]
        weights[name] = Weight(shape, dtype, _loader(model, name, dtype))
        # Every placeholder has memory of its own (one element), so that no two parameters look tied.
        placeholder = torch.zeros((), dtype=dtype).expand(shape)
        replaced[id(parameter)] = nn.Parameter(placeholder, requires_grad=False)
    for buffer in model.buffers():
        replaced[id(buffer)] = buffer.detach().to("cpu")
    reader = getattr(model, "_reader", None)
    if reader is not None:
        replaced[id(reader)] = reader  # open files are shared
    skeleton = copy.deepcopy(model, replaced).eval()
    skeleton.block_ops = "plugin"  # the file has nodes of our operators; an engine may still compute them natively
    tabulate_timesteps(skeleton)
    return skeleton, weights


def _parameter_dtypes(model: RoutedTransformer, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of every parameter in a model that is loaded in `dtype`: diffusers' rule, and routers in float32."""
    if dtype == model.dtype:
        return {name: parameter.dtype for name, parameter in model.named_parameters()}
    keep_float32, fixed = {"router", *model.facts().float32_modules()}, fixed_types(model)
    return {
        name: fixed.get(name) or (torch.float32 if keep_float32.intersection(name.split(".")) else dtype)
        for name, _ in model.named_parameters()
    }


def _loader(model: RoutedTransformer, name: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: model.load_parameter(name).to("cpu", dtype)
