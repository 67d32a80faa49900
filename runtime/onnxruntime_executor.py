# SPDX-License-Identifier: Apache-2.0
"""Runs an exported ONNX file with ONNX Runtime on the CPU: the function body of the operator, in fp32 or fp16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.engines.onnx_file import read_onnx
from vorta_trt.runtime.onnx_file import graph_specs, needs_bfloat16
from vorta_trt.runtime.tensors import Array, ArrayKind

if TYPE_CHECKING:
    import onnxruntime


class OnnxRuntimeExecutor:
    """One session of ONNX Runtime's CPU provider.

    Args:
        path: the .onnx file; external data is found beside it.
    Raises:
        FileNotFoundError, ValueError: no such file, not an ONNX model, or one in bfloat16.
    """

    name = "onnxruntime"
    array_kind: ArrayKind = "numpy"

    def __init__(self, path: Path) -> None:
        model = read_onnx(path).model
        if needs_bfloat16(model):
            raise ValueError(
                f"{path} is in bfloat16: ONNX Runtime has no bfloat16 convolution on the CPU; "
                'use executor="reference" (exact, slow), or export it with --precision fp32 or fp16'
            )
        self.inputs, self.outputs = graph_specs(model)
        self._session: onnxruntime.InferenceSession | None = _session(path)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise RuntimeError("the executor is closed; make a new Engine")
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        self._session = None


def _session(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they come as exceptions too
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.Fail,
        errors.RuntimeException,
    ) as error:
        raise ValueError(
            f"{path}: ONNX Runtime cannot load it ({_first_line(error)}); export the model again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
