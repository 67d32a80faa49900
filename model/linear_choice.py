# SPDX-License-Identifier: Apache-2.0
"""Which linear layers of a model have fp8 products, and which stay in the type of the activations.

The choice is a list of patterns that the user can see and change: a layer whose name matches one of them stays. `*`
stands for any text, dots included. The word `default` in a list stands for the family's own. Some layers always stay:
the timestep path with the routers, and the last projection, whose weight tells the model's type.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, get_args

from vorta_trt.plugins.operator_schema import LinearPrecision

if TYPE_CHECKING:
    from torch import nn

    from vorta_trt.model.families import ModelFamily

FEATURE_MULTIPLE = 16  # K and O must be multiples of it: the kernels load 16 bytes at once
DEFAULT = "default"  # stands for the family's patterns in a list of patterns
_LAST_PROJECTION = "proj_out"
_ROUTER = "router"


@dataclass(frozen=True)
class LinearChoice:
    """Which linear layers of a model have fp8 products, and which have not.

    Attributes:
        keep: The patterns, with `default` replaced by the family's.
        fp8: Names of the layers with fp8 products, in the model's order.
        kept: Names of the others.
    """

    keep: tuple[str, ...]
    fp8: tuple[str, ...]
    kept: tuple[str, ...]


def check_linear_precision(precision: str, keep: Sequence[str] | None) -> None:
    """Raises ValueError for an unknown precision, or for patterns without fp8."""
    if precision not in get_args(LinearPrecision):
        known = " or ".join(map(repr, get_args(LinearPrecision)))
        raise ValueError(f"linear_precision {precision!r}: must be {known}; leave it out for 'same'")
    if keep is not None and precision != "fp8":
        raise ValueError(
            f"linear_keep {list(keep)} with linear_precision {precision!r}: says which layers have no fp8 products, "
            f"and none has; use linear_precision 'fp8', or leave it out"
        )


def choose_linears(
    model: nn.Module, family: ModelFamily, keep: Sequence[str] | None, unquantised: Collection[str] = ()
) -> LinearChoice:
    """Chooses the layers with fp8 products by name and size.

    Args:
        model: The diffusers model, its parameters possibly on the meta device.
        family: Family of the model, which has the default list, and the layers that always stay.
        keep: Patterns; None is `default`.
        unquantised: Layers that the checkpoint itself holds in 16 bits beside others in 8; `default` includes them.

    Raises:
        ValueError: A pattern that matches no layer, or patterns that leave no layer with fp8 products.
    """
    from torch import nn

    patterns = _expanded(keep, (*family.linear_keep, *unquantised))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pattern in keep or ():
        if pattern not in (DEFAULT, *family.linear_keep) and not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(
                f"linear_keep {pattern!r}: matches no linear layer of this model; use names such as "
                f"{', '.join(map(repr, list(layers)[-3:]))}, with * for any part"
            )
    chosen = tuple(
        name
        for name, layer in layers.items()
        if _can_be_fp8(name, layer, family) and not any(fnmatchcase(name, pattern) for pattern in patterns)
    )
    if not chosen:
        raise ValueError(
            f"linear_keep {list(patterns)}: none of the {len(layers)} linear layers is left for fp8 products (features "
            f"must be multiples of {FEATURE_MULTIPLE}); keep fewer, or use linear_precision 'same'"
        )
    return LinearChoice(patterns, chosen, tuple(name for name in layers if name not in set(chosen)))


def collapsed(names: Iterable[str]) -> dict[str, int]:
    """Names with their numbers as `*`, and how many there are of each: "blocks.*.attn1.to_q" -> 40."""
    counts: dict[str, int] = {}
    for name in names:
        stack = ".".join("*" if part.isdecimal() and index == 1 else part for index, part in enumerate(name.split(".")))
        counts[stack] = counts.get(stack, 0) + 1
    return counts


def _expanded(keep: Sequence[str] | None, default: Sequence[str]) -> tuple[str, ...]:
    given = (DEFAULT,) if keep is None else keep
    patterns = [each for pattern in given for each in (default if pattern == DEFAULT else (pattern,))]
    return tuple(dict.fromkeys(patterns))


def _can_be_fp8(name: str, layer: nn.Linear, family: ModelFamily) -> bool:
    """Whether a layer may have e4m3 weights at all."""
    parts = name.split(".")
    fixed = name == _LAST_PROJECTION or _ROUTER in parts or f"{name}.".startswith(family.always_loaded)
    in_float32 = bool(family.float32_modules().intersection(parts))
    fits = layer.in_features % FEATURE_MULTIPLE == 0 and layer.out_features % FEATURE_MULTIPLE == 0
    return fits and not fixed and not in_float32 and name != family.modulation_projection
