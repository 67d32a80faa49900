# SPDX-License-Identifier: Apache-2.0
"""Executors that run an exported ONNX file on the CPU: ONNX Runtime, and ONNX's own reference evaluator.

Both run the portable function body of the operator that the file carries.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.engines.telemetry import disable_telemetry
from vorta_trt.export.onnx_file import OnnxFile, read_onnx
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.host_memory import is_out_of_memory, mapping
from vorta_trt.runtime.executors.executor import CLOSED, ContextOptions, DeviceUse
from vorta_trt.runtime.tensors import Array, ArrayKind, TensorSpec

if TYPE_CHECKING:
    import onnx

    from vorta_trt.runtime.executors.layer_times import LayerTimes

NOT_PORTABLE = (
    "has no portable form of vorta::RoutedAttention, as files of opset 17 for TensorRT 8.6 have none; export the model "
    "without --opset to run it here"
)


class OnnxExecutor:
    """Base of both executors; a subclass loads the file and may change how it runs.

    Args:
        path: The .onnx file; external data is found beside it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no ONNX model, has no portable form, or is in a type that the executor does not run.
    """

    name: str
    device = "cpu"
    array_kind: ArrayKind = "numpy"

    def __init__(self, path: Path) -> None:
        file = read_onnx(path)
        check_portable(file)
        self.inputs, self.outputs = graph_specs(file.model)
        self._path = path
        with _refusals(path, "load"):
            self._session: Any = self._load(file)

    def _load(self, file: OnnxFile) -> Any:
        """Makes the session, which has a method `run(names, feeds)`."""
        raise NotImplementedError

    def run(self, feeds: Mapping[str, Array], on_gpu: bool = False) -> dict[str, Any]:
        """Runs once; any number of threads may call it at the same time."""
        names = [spec.name for spec in self.outputs]
        session = self._opened()
        with _refusals(self._path, "run"):
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    def context(self, options: ContextOptions) -> OnnxExecutor:
        """Makes another executor of the same session, which is freed when both are closed."""
        self._opened()
        return copy(self)

    def layer_times(self, feeds: Mapping[str, Array], repeats: int) -> LayerTimes:
        """Raises VortaError, since these executors cannot measure layers."""
        raise VortaError(f"executor {self.name!r} has no times per layer; run the bundle with executor 'tensorrt'")

    def device_use(self) -> DeviceUse:
        """Zeros, since these executors hold nothing on a GPU."""
        return DeviceUse()

    def room_for(self, batch: int) -> tuple[int, int]:
        """Zeros, since no call takes memory of a GPU."""
        return 0, 0

    def close(self) -> None:
        """Frees the session once all its contexts are closed as well. May be called twice."""
        self._session = None

    def _opened(self) -> Any:
        if (session := self._session) is None:
            raise RuntimeError(CLOSED)
        return session


class OnnxRuntimeExecutor(OnnxExecutor):
    """One session of ONNX Runtime's CPU provider, for files in fp32 or fp16."""

    name = "onnxruntime"

    def _load(self, file: OnnxFile) -> Any:
        if needs_bfloat16(file.model):
            raise ValueError(
                f"{file.path} is in bfloat16: ONNX Runtime has no bfloat16 convolution on the CPU; "
                'use executor="reference" (exact, slow), or export it with --precision fp32 or fp16'
            )
        disable_telemetry()
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # so that OMP_NUM_THREADS applies to both
        options.log_severity_level = 3  # only errors, which are raised as exceptions as well
        model: str | bytes = str(file.place)
        if file.data_files:  # ONNX Runtime follows no link out of the model's folder
            model, folder = file.without_links()
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        with mapping(_largest(file)):
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class ReferenceExecutor(OnnxExecutor):
    """`onnx.reference.ReferenceEvaluator`: pure NumPy, every type, slow. For bfloat16 checks; loads all weights."""

    name = "reference"

    def _load(self, file: OnnxFile) -> Any:
        from onnx.reference import ReferenceEvaluator

        from vorta_trt.export.reference_form import for_reference_evaluator

        self._lock = threading.Lock()  # an evaluator holds intermediate results; contexts share lock and evaluator
        with mapping(_largest(file)):
            model = file.load_weights()
        return ReferenceEvaluator(for_reference_evaluator(model))

    def run(self, feeds: Mapping[str, Array], on_gpu: bool = False) -> dict[str, Any]:
        """Runs once; calls of all contexts run one after the other."""
        with self._lock:
            return super().run(feeds, on_gpu)


@contextmanager
def _refusals(path: Path, verb: str) -> Iterator[None]:
    """Turns errors of ONNX Runtime and onnx about a file into a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if library not in ("onnxruntime", "onnx") or is_out_of_memory(error):
            raise
        title = {"onnxruntime": "ONNX Runtime", "onnx": "ONNX's reference evaluator"}[library]
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{path}: {title} cannot {verb} it ({reason}); export the model again") from error


def _largest(file: OnnxFile) -> Path:
    return max((file.place, *file.data_files), key=lambda path: path.stat().st_size)


def check_portable(file: OnnxFile) -> None:
    """Raises ValueError for a file that only TensorRT with the plugin can run."""
    if not file.is_portable:
        raise ValueError(f"{file.path}: {NOT_PORTABLE}")


def graph_specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Specs of the graph's inputs and outputs, in the file's order."""
    return tuple(map(_spec, model.graph.input)), tuple(map(_spec, model.graph.output))


def needs_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether weights or inputs are bfloat16, for which ONNX Runtime's CPU provider lacks kernels (Conv, for one)."""
    import onnx

    types = [initializer.data_type for initializer in model.graph.initializer]
    types += [value.type.tensor_type.elem_type for value in model.graph.input]
    return onnx.TensorProto.BFLOAT16 in types


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"axis{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    known = tensor.elem_type != onnx.TensorProto.UNDEFINED
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else "undefined"
    return TensorSpec(value.name, dtype, shape)
