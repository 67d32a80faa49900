# SPDX-License-Identifier: Apache-2.0
"""What a verification compares: how to load the file or engine, and the checkpoint in torch, and run cases on both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.precision import torch_dtype
from vorta_trt.runtime.engine import Engine
from vorta_trt.runtime.target import Target
from vorta_trt.runtime.verification.cases import Case

if TYPE_CHECKING:
    from vorta_trt.model import RoutedTransformer
    from vorta_trt.runtime.verification.runners import EngineRunner
    from vorta_trt.runtime.verification.sides import Sides

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What is verified, and against what."""

    target: Target
    checkpoint: Path
    router: Path | None
    executor: str | None
    precision: str
    attention_precision: str
    geometry: AttentionGeometry
    tau: float
    progress: Progress

    def engine(self) -> Engine:
        self.progress(f"running {self.target.path.name}")
        return Engine(self.target.path, executor=self.executor)

    def torch_model(self, precision: str) -> RoutedTransformer:
        """The checkpoint in torch, with the geometry that the file was exported for."""

        from vorta_trt.model import RoutedTransformer

        self.progress(f"running torch in {precision}")
        dtype = torch_dtype(precision)
        return RoutedTransformer.from_pretrained(self.checkpoint, self.router, self.geometry, self.tau, dtype)

    def fp8_attention(self, executor: str) -> bool:
        """Whether attention is computed in fp8: the portable form, which runs everywhere else, is exact."""
        return self.attention_precision == "fp8" and executor == "tensorrt"

    def run(self, engine: EngineRunner, cases: Sequence[Case], modules: Sequence[str] = ()) -> list[Sides]:
        """Runs the cases on `engine` and on torch, which also returns the outputs of `modules`."""
        from vorta_trt.runtime.verification.runners import TorchRunner
        from vorta_trt.runtime.verification.sides import run_sides

        inputs = self.target.inputs
        same = None
        truth = TorchRunner(lambda: self.torch_model("fp32"), inputs, modules=modules)
        if self.precision != "fp32":
            same = TorchRunner(lambda: self.torch_model(self.precision), inputs, modules=modules)
            truth = TorchRunner(lambda: self.torch_model("fp32"), inputs, pinned=same.taken, modules=modules)
        found = run_sides(engine, truth, same, cases)
        return [replace(sides, fp8_attention=self.fp8_attention(engine.executor)) for sides in found]
