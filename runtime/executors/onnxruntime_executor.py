# SPDX-License-Identifier: Apache-2.0
"""Runs an exported ONNX file with ONNX Runtime on the CPU: the function body of the operator, in fp32 or fp16."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.engines.telemetry import disable_telemetry
from vorta_trt.export.onnx_file import OnnxFile, read_onnx
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.host_memory import mapping
from vorta_trt.runtime.executors.executor import CLOSED, NO_LAYER_TIMES, ContextOptions, DeviceUse
from vorta_trt.runtime.executors.onnx_file import check_portable, graph_specs, needs_bfloat16
from vorta_trt.runtime.tensors import Array, ArrayKind

if TYPE_CHECKING:
    import onnxruntime

    from vorta_trt.runtime.executors.layer_times import LayerTimes


class OnnxRuntimeExecutor:
    """One session of ONNX Runtime's CPU provider.

    Args:
        path: the .onnx file; external data is found beside it.
    Raises:
        FileNotFoundError, ValueError: no such file, not an ONNX model, one in bfloat16, or one without portable form.
    """

    name = "onnxruntime"
    device = "cpu"
    array_kind: ArrayKind = "numpy"

    def __init__(self, path: Path) -> None:
        file = read_onnx(path)
        check_portable(file)
        model = file.model
        if needs_bfloat16(model):
            raise ValueError(
                f"{path} is in bfloat16: ONNX Runtime has no bfloat16 convolution on the CPU; "
                'use executor="reference" (exact, slow), or export it with --precision fp32 or fp16'
            )
        self.inputs, self.outputs = graph_specs(model)
        self._session: onnxruntime.InferenceSession | None = _session(file)

    def run(self, feeds: Mapping[str, Array], on_gpu: bool = False) -> dict[str, Any]:
        if (session := self._session) is None:
            raise RuntimeError(CLOSED)
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))  # any number of threads at a time

    def context(self, options: ContextOptions) -> OnnxRuntimeExecutor:
        if self._session is None:
            raise RuntimeError(CLOSED)
        return copy(self)  # the session is shared, and freed when both are closed

    def layer_times(self, feeds: Mapping[str, Array], repeats: int) -> LayerTimes:
        raise VortaError(NO_LAYER_TIMES.format(name=self.name))

    def device_use(self) -> DeviceUse:
        return DeviceUse()

    def room_for(self, batch: int) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        self._session = None


def _session(file: OnnxFile) -> onnxruntime.InferenceSession:
    disable_telemetry()
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they come as exceptions too
    model: str | bytes = str(file.place)
    if file.data_files:  # ONNX Runtime follows no link out of the model's folder
        model, folder = file.without_links()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        with mapping((*file.data_files, file.place)[0]):
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.Fail,
        errors.RuntimeException,
    ) as error:
        raise ValueError(
            f"{file.path}: ONNX Runtime cannot load it ({_first_line(error)}); export the model again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
