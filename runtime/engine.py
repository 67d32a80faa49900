# SPDX-License-Identifier: Apache-2.0
"""`Engine`: one transformer, ready to run; the same call whatever runs it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.manifest import ONNX
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.executor import Executor
from vorta_trt.runtime.target import Target, read_target
from vorta_trt.runtime.tensors import (
    Array,
    ArrayKind,
    TensorSpec,
    cast_exactly,
    check_names,
    kind_of,
    numpy_dtype,
    to_numpy,
    to_torch,
)

EXECUTORS = ("tensorrt", "onnxruntime", "reference")
ROUTER_DECIDES = -1


class Engine:
    """A bundle or an exported ONNX file, loaded by an executor.

        with Engine("wan.bundle") as engine:
            sample = engine(hidden_states=latents, timestep=timestep, encoder_hidden_states=prompt)["sample"]

    Args:
        path: a bundle folder, an .onnx file, or an opened `Bundle`.
        executor: "tensorrt" is a bundle's default and needs a GPU that the bundle was built for. "onnxruntime" is an
            .onnx file's default: CPU, fp32 and fp16; of a bundle it runs the model.onnx. "reference" is
            onnx.reference: every type, slow.
        device: for tensorrt, "cuda", "cuda:1" or 1. The others run on the CPU: "cpu" or None.
        verify: hash every file of a bundle before loading it (about a second per gigabyte).

    Attributes:
        inputs, outputs: `TensorSpec`s. metadata: what the exporter wrote (family, geometry,
            precision, ...), None for a file of another origin.

    Raises:
        FileNotFoundError, ValueError, VortaError: no such file, damaged, or it cannot run here; says what to do. There
            is no fallback: an engine that cannot run on this machine's GPU does not silently run elsewhere.
    """

    def __init__(
        self,
        path: str | Path | Bundle,
        *,
        executor: str | None = None,
        device: str | int | None = None,
        verify: bool = True,
    ) -> None:
        if executor is not None and executor not in EXECUTORS:
            raise ValueError(f"executor {executor!r}: must be one of {', '.join(EXECUTORS)}")
        target = _read(path, executor, verify)
        self.path = target.path
        self.metadata = target.metadata
        self._executor = _load(target, executor, device)
        self.closed = False

    @property
    def executor(self) -> str:
        """The name of the executor in use."""
        return self._executor.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._executor.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._executor.outputs

    def __call__(self, **inputs: Any) -> dict[str, Array]:
        """One denoising step.

        Args: the inputs by name, as `Engine.inputs` lists them. `tau` may be left out (the exported default), and so
            may `route_override` (the router decides everywhere). A tensor of another type is converted where that
            changes no value.
        Returns: the outputs by name, NumPy arrays, or torch tensors if any input is one (on the device of the first).
        Raises: TypeError (name, type), ValueError (shape).
        """
        if self.closed:
            raise RuntimeError(f"{self.path}: this engine is closed; open a new one")
        defaults = self._defaults()
        inputs = {name: value for name, value in inputs.items() if value is not None}
        check_names(inputs, self.inputs, optional=tuple(defaults))
        like = self._first_tensor(inputs)
        feeds: dict[str, Array] = {}
        for spec in self.inputs:
            value: Any = inputs[spec.name] if spec.name in inputs else defaults[spec.name]
            array = np.asarray(value) if kind_of(spec.name, value) is None else value
            array = cast_exactly(spec.name, array, spec.dtype)
            spec.check_shape(array.shape)
            feeds[spec.name] = _as_kind(array, self._executor.array_kind)
        self._check_batch(feeds)
        outputs = self._executor.run(feeds)
        if like is None:
            return {name: to_numpy(array) for name, array in outputs.items()}
        return {name: to_torch(array, like.device) for name, array in outputs.items()}

    def close(self) -> None:
        """Frees the session or the GPU memory. May be called twice."""
        if not self.closed:
            self.closed = True
            self._executor.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _defaults(self) -> dict[str, np.ndarray[Any, Any]]:
        """The inputs that may be left out, with the values they then have."""
        defaults: dict[str, np.ndarray[Any, Any]] = {}
        for spec in self.inputs:
            if spec.name == "tau" and self.metadata is not None:
                defaults["tau"] = np.array([self.metadata.tau], np.float32)  # [1]
            elif spec.name == "route_override" and all(isinstance(size, int) for size in spec.shape):
                defaults["route_override"] = np.full(spec.shape, ROUTER_DECIDES, numpy_dtype(spec.dtype))  # [L, N]
        return defaults

    def _first_tensor(self, inputs: dict[str, Any]) -> Any:
        return next((value for name, value in inputs.items() if kind_of(name, value) == "torch"), None)

    def _check_batch(self, feeds: dict[str, Array]) -> None:
        """Axes of one name have one size."""
        seen: dict[str, tuple[str, int]] = {}
        for spec in self.inputs:
            for axis, size in zip(spec.shape, feeds[spec.name].shape, strict=True):
                if not isinstance(axis, str):
                    continue
                other, expected = seen.setdefault(axis, (spec.name, size))
                if size != expected:
                    raise ValueError(
                        f"{spec.name} of shape {tuple(feeds[spec.name].shape)}: {axis} is {size}, but {other} has "
                        f"{expected}; give all inputs of one call the same {axis}"
                    )


def _read(path: str | Path | Bundle, executor: str | None, verify: bool) -> Target:
    try:
        return read_target(path, verify=verify, runtime=executor in (None, "tensorrt"))
    except VortaError as error:
        if executor is None and not isinstance(path, Bundle):
            _say_alternative(Path(path), error)
        raise


def _load(target: Target, executor: str | None, device: str | int | None) -> Executor:
    if target.bundle is None:
        return _load_onnx(target.path, executor or "onnxruntime", device)
    if executor in (None, "tensorrt"):
        from vorta_trt.runtime.tensorrt_executor import TensorRTExecutor

        try:
            return TensorRTExecutor(target.bundle, device)
        except VortaError as error:
            if executor is None:
                _say_alternative(target.bundle.path, error)
            raise
    if target.onnx_path is None:
        raise VortaError(
            f"{target.path}: executor {executor!r} runs the ONNX file of a bundle, and this one was built without it; "
            "build it with --keep-onnx, or give the exported .onnx file"
        )
    return _load_onnx(target.onnx_path, str(executor), device)


def _load_onnx(path: Path, executor: str, device: str | int | None) -> Executor:
    if executor == "tensorrt":
        raise VortaError(
            f"{path}: executor 'tensorrt' runs bundles; build one with: vorta-trt build {path.name} -o NAME.bundle"
        )
    if device not in (None, "cpu"):
        raise ValueError(f"device {device!r}: executor {executor!r} runs on the CPU; leave device out")
    if executor == "reference":
        from vorta_trt.runtime.reference_executor import ReferenceExecutor

        return ReferenceExecutor(path)
    from vorta_trt.runtime.onnxruntime_executor import OnnxRuntimeExecutor

    return OnnxRuntimeExecutor(path)


def _say_alternative(path: Path, error: VortaError) -> None:
    """Adds what runs without this GPU to an error of the default executor, if the bundle has it."""
    if (path / ONNX).is_file():
        remedy = 'to run its model.onnx on the CPU instead, slowly: executor="onnxruntime" ("reference" for bfloat16)'
        error.args = (f"{error}\n  {remedy}", *error.args[1:])


def _as_kind(array: Array, kind: ArrayKind) -> Array:
    return to_numpy(array) if kind == "numpy" else to_torch(array)
