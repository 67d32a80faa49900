# SPDX-License-Identifier: Apache-2.0
"""Gives an empty diffusers model its weights from a checkpoint, or placeholders for weights that stay on disk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vorta_trt.model.checkpoint import STORED_TYPES, CheckpointReader
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.fp8_linear import fixed_types

# First bit pattern of a placeholder's value; the n-th placeholder has the n-th number from there. All are normal
# numbers, and all differ, so that no exporter takes two parameters of one shape for the same constant.
_PLACEHOLDER_BITS = {
    torch.float32: (torch.int32, 0x3F000000),
    torch.float16: (torch.int16, 0x3800),
    torch.bfloat16: (torch.int16, 0x3F00),
    torch.float8_e4m3fn: (torch.uint8, 0x30),  # all equal: too few numbers to tell them apart
}


def load_weights(
    model: nn.Module, reader: CheckpointReader, dtype: torch.dtype, always_loaded: tuple[str, ...] | None
) -> frozenset[str]:
    """Gives `model` (on meta) its parameters; those not under `always_loaded` (None: all) become placeholders.

    Returns the names of the placeholders.
    """
    keep_float32 = get_family(reader.family).float32_modules()
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    parameters, fixed = dict(model.named_parameters()), fixed_types(model)
    missing = [name for name in parameters if name not in reader]
    if missing:
        raise CheckpointError(
            f"checkpoint {reader.origin}: lacks {len(missing)} of {len(parameters)} tensors, first {missing[0]!r}; its "
            f"config.json and weights must belong together; download it again"
        )
    unexpected = [
        name for name in reader.names() if name not in parameters and not any(part in name for part in ignored)
    ]
    if unexpected:
        raise CheckpointError(
            f"checkpoint {reader.origin}: has {len(unexpected)} tensors that its config.json does not describe, first "
            f"{unexpected[0]!r}; its config.json and weights must belong together"
        )
    on_disk = []
    for index, (name, parameter) in enumerate(parameters.items()):
        if reader.shape(name) != tuple(parameter.shape):
            raise CheckpointError(
                f"checkpoint {reader.origin}: {name} has shape {reader.shape(name)}, its config.json asks for "
                f"{tuple(parameter.shape)}; its config.json and weights must belong together"
            )
        if name not in fixed and reader.stored_type(name) not in STORED_TYPES:
            raise CheckpointError(
                f"checkpoint {reader.origin}: {name} is stored as {reader.stored_type(name)}, quantised; must be one "
                f"of {', '.join(STORED_TYPES)}; use the checkpoint in bfloat16, float16 or float32"
            )
        # diffusers' rule: a module it names keeps its parameters in float32 whatever dtype was asked for.
        target = fixed.get(name) or (torch.float32 if keep_float32.intersection(name.split(".")) else dtype)
        if always_loaded is None or name.startswith(always_loaded):
            value = nn.Parameter(reader.tensor(name).to(target), requires_grad=name not in fixed)
        else:
            value = nn.Parameter(_placeholder(tuple(parameter.shape), target, index), requires_grad=False)
            on_disk.append(name)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, value)
    return frozenset(on_disk)


def _placeholder(shape: tuple[int, ...], dtype: torch.dtype, index: int) -> Tensor:
    bits, first = _PLACEHOLDER_BITS[dtype]
    return torch.tensor(first + (index if dtype.itemsize > 1 else 0), dtype=bits).view(dtype).expand(shape)
