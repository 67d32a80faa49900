# SPDX-License-Identifier: Apache-2.0
"""The cases of `verify`: the router at several thresholds, every branch forced, and a mixture, on random inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vorta_trt.model.constants import DENSE_TAU, ROUTER_DECIDES
from vorta_trt.model.families import ModelInput
from vorta_trt.model.geometry import Branch
from vorta_trt.model.precision import numpy_dtype
from vorta_trt.runtime.tensors import TensorSpec

BRANCHES = {branch.name.lower(): int(branch) for branch in Branch}


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        feeds: All input arrays, by name. Floating values are rounded to the engine's type but stored in float32.
        draw: Number of the draw. The same case with another number has other random inputs.
    """

    name: str
    feeds: dict[str, np.ndarray[Any, Any]]
    draw: int = 0


def make_cases(
    inputs: Sequence[TensorSpec],
    model_inputs: Sequence[ModelInput],
    *,
    default_tau: float,
    has_router: bool,
    batch: int,
    seed: int,
    only: Sequence[str] = (),
    draw: int = 0,
) -> list[Case]:
    """Makes the cases for an engine.

    Args:
        inputs: Specs of the engine's inputs.
        model_inputs: The model family's description of these inputs, e.g. the range of their values.
        default_tau: The routing threshold that the engine was exported with.
        has_router: Whether the model has a router. Without one, every threshold gives the same routes.
        batch: Samples per run.
        seed: Seed of the random inputs.
        only: Names of cases to make; all if empty.
        draw: Number of the draw. Another number gives other inputs for the same seed.

    Raises:
        ValueError: `only` names a case that does not exist.
    """
    thresholds = {f"router, tau {tau:g}": tau for tau in (default_tau, 0.0, DENSE_TAU)}
    if not has_router:
        thresholds = {"no router": default_tau}
    names = [*thresholds, *(f"all {branch}" for branch in BRANCHES), "mixed override"]
    if unknown := sorted(set(only) - set(names)):
        raise ValueError(f"case {unknown[0]!r}: must be one of {', '.join(map(repr, names))}")
    known = {model_input.name: model_input for model_input in model_inputs}
    layers_heads = next(_sizes(spec, batch) for spec in inputs if spec.name == "route_override")  # [L, N]
    cases = []
    for index, name in enumerate(names):
        generator = np.random.default_rng((seed, index, draw))  # a case's inputs do not depend on which others run
        override = np.full(layers_heads, ROUTER_DECIDES, np.int32)
        if name.startswith("all "):
            override[:] = BRANCHES[name.removeprefix("all ")]
        elif name == "mixed override":
            override[:] = generator.integers(ROUTER_DECIDES, len(BRANCHES), override.shape)
        tau = np.array([thresholds.get(name, default_tau)], np.float32)
        fixed = {"tau": tau, "route_override": override}
        feeds = {
            spec.name: fixed[spec.name] if spec.name in fixed else _random(generator, spec, known[spec.name], batch)
            for spec in inputs
        }
        if not only or name in only:
            cases.append(Case(name, feeds, draw))
    return cases


def _random(generator: np.random.Generator, spec: TensorSpec, known: ModelInput, batch: int) -> np.ndarray[Any, Any]:
    shape = _sizes(spec, batch)
    if known.kind == "uniform":
        return generator.uniform(known.low, known.high, shape).astype(np.float32)  # [B]
    if known.kind == "mask":  # [B, T], another number of valid text tokens for each sample
        lengths = generator.integers(1, shape[1], (shape[0], 1), endpoint=True)  # [B, 1]
        return (np.arange(shape[1]) < lengths).astype(np.int32)
    values = generator.standard_normal(shape, np.float32)
    return values.astype(numpy_dtype(spec.dtype)).astype(np.float32)


def _sizes(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else batch for size in spec.shape)
