# SPDX-License-Identifier: Apache-2.0
"""Runs an exported ONNX file with ONNX's own reference evaluator: pure NumPy, every type, slow. For bfloat16 checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.engines.onnx_file import read_onnx
from vorta_trt.export.reference_form import for_reference_evaluator
from vorta_trt.runtime.onnx_file import graph_specs
from vorta_trt.runtime.tensors import Array, ArrayKind

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator


class ReferenceExecutor:
    """`onnx.reference.ReferenceEvaluator` on the function body that the file carries.

    Args:
        path: the .onnx file; external data is found beside it and loaded whole.
    Raises:
        FileNotFoundError, ValueError: no such file, or not an ONNX model.
    """

    name = "reference"
    array_kind: ArrayKind = "numpy"

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        model = read_onnx(path).model
        self.inputs, self.outputs = graph_specs(model)
        onnx.load_external_data_for_model(model, str(path.parent))
        self._evaluator: ReferenceEvaluator | None = ReferenceEvaluator(for_reference_evaluator(model))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._evaluator is None:
            raise RuntimeError("the executor is closed; make a new Engine")
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._evaluator.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        self._evaluator = None
