# SPDX-License-Identifier: Apache-2.0
"""An engine of a case's model, measured beside torch. It has weights of its own, so its samples are not compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vorta_trt.benchmarks.step.cases import StepCase
from vorta_trt.benchmarks.step.models import Run
from vorta_trt.model.constants import DENSE_TAU, ROUTER_DECIDES
from vorta_trt.model.precision import torch_dtype
from vorta_trt.runtime import Engine


class CaseEngine:
    """Runs passes of an opened engine on random inputs, batch 1; see `open_engine`.

    Attributes:
        name: Name in the report.
    """

    def __init__(self, engine: Engine, name: str, device: torch.device, seed: int) -> None:
        self._engine, self.name = engine, name
        generator = torch.Generator(device).manual_seed(seed)
        self._inputs: dict[str, Tensor] = {}
        for spec in engine.inputs:
            shape = [size if isinstance(size, int) else 1 for size in spec.shape]
            dtype = torch_dtype(spec.dtype)
            if dtype.is_floating_point:
                random = torch.randn(shape, generator=generator, device=device)
                self._inputs[spec.name] = random.to(dtype)
            else:  # masks: every text token counts
                self._inputs[spec.name] = torch.ones(shape, dtype=dtype, device=device)

    def run(self, routes: Tensor, dense: bool) -> Run:
        """Passes with these routes, int32 [L, N], or dense ones through `tau`, as users ask for them."""
        override = torch.full_like(routes, ROUTER_DECIDES) if dense else routes
        given = {**self._inputs, "route_override": override}
        if dense:
            given["tau"] = torch.full_like(self._inputs["tau"], DENSE_TAU)

        def once(timestep: float) -> Tensor:
            sample: Tensor = self._engine(**{**given, "timestep": torch.full_like(given["timestep"], timestep)})[
                "sample"
            ]
            return sample

        return once


@contextmanager
def open_engine(path: Path, case: StepCase, layers: int, heads: int, device: str, seed: int) -> Iterator[CaseEngine]:
    """The engine of a bundle; ValueError if it is of another model or another size than the case."""
    executor = None if device != "cpu" else "onnxruntime"
    with Engine(path, executor=executor, device=None if device == "cpu" else device) as engine:
        about = engine.metadata
        if about is None:
            raise ValueError(f"bundle {path}: says nothing of its model; build it with vorta-trt build")
        for what, own, wanted in (
            ("family", about.family, case.family),
            ("layers", about.num_layers, layers),
            ("heads", about.num_heads, heads),
            ("grid", about.attention_geometry.grid, case.geometry.grid),
        ):
            if own != wanted:
                raise ValueError(
                    f"bundle {path}: has {what} {own}, and {case.name} has {wanted}; give its --model (and --layers)"
                )
        yield CaseEngine(engine, f"engine, {engine.executor} {about.precision}", torch.device(device), seed)
