# SPDX-License-Identifier: Apache-2.0
"""Runs an exported ONNX file with ONNX's own reference evaluator: pure NumPy, every type, slow. For bfloat16 checks."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.export.reference_form import for_reference_evaluator
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.host_memory import mapping
from vorta_trt.runtime.executors.executor import CLOSED, NO_LAYER_TIMES, ContextOptions, DeviceUse
from vorta_trt.runtime.executors.onnx_file import check_portable, graph_specs
from vorta_trt.runtime.tensors import Array, ArrayKind

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator

    from vorta_trt.runtime.executors.layer_times import LayerTimes


class ReferenceExecutor:
    """`onnx.reference.ReferenceEvaluator` on the function body that the file carries.

    Args:
        path: the .onnx file; external data is found beside it and loaded whole.
    Raises:
        FileNotFoundError, ValueError: no such file, not an ONNX model, or one without portable form.
    """

    name = "reference"
    device = "cpu"
    array_kind: ArrayKind = "numpy"

    def __init__(self, path: Path) -> None:
        from onnx.reference import ReferenceEvaluator

        file = read_onnx(path)
        check_portable(file)
        self.inputs, self.outputs = graph_specs(file.model)
        with mapping((*file.data_files, file.place)[0]):
            model = file.load_weights()
        self._lock = threading.Lock()  # an evaluator keeps its results in itself
        self._evaluator: ReferenceEvaluator | None = ReferenceEvaluator(for_reference_evaluator(model))

    def run(self, feeds: Mapping[str, Array], on_gpu: bool = False) -> dict[str, Any]:
        names = [spec.name for spec in self.outputs]
        with self._lock:
            if self._evaluator is None:
                raise RuntimeError(CLOSED)
            return dict(zip(names, self._evaluator.run(names, dict(feeds)), strict=True))

    def context(self, options: ContextOptions) -> ReferenceExecutor:
        if self._evaluator is None:
            raise RuntimeError(CLOSED)
        return copy(self)  # with the same lock: the contexts take turns

    def layer_times(self, feeds: Mapping[str, Array], repeats: int) -> LayerTimes:
        raise VortaError(NO_LAYER_TIMES.format(name=self.name))

    def device_use(self) -> DeviceUse:
        return DeviceUse()

    def room_for(self, batch: int) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        self._evaluator = None
