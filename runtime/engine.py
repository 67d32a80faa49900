# SPDX-License-Identifier: Apache-2.0
"""`Engine`: one transformer, ready to run, with the same interface for all executors."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from vorta_trt.engines.bundle import Bundle
from vorta_trt.export.names import OPSET_17
from vorta_trt.model.constants import HEAD_ORDERS, ROUTER_DECIDES
from vorta_trt.model.precision import numpy_dtype
from vorta_trt.model.video_size import VideoSize
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.device.nvtx import nvtx_range
from vorta_trt.runtime.executors import EXECUTORS
from vorta_trt.runtime.executors.executor import ContextOptions, DeviceUse, Executor, Outputs
from vorta_trt.runtime.executors.weight_streaming import Budget, check_budget
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.target import Target, read_target
from vorta_trt.runtime.tensors import Array, TensorSpec, as_input, check_names, kind_of, to_numpy, to_torch

if TYPE_CHECKING:
    from vorta_trt.export.metadata import ModelMetadata
    from vorta_trt.runtime.device.device_scratch import DeviceScratch
    from vorta_trt.runtime.executors.layer_times import LayerTimes
    from vorta_trt.runtime.parallel.engine_ranks import EngineRank


class Engine:
    """A bundle or an exported ONNX file, loaded by an executor.

        with Engine("model.bundle") as engine:
            sample = engine(hidden_states=latents, timestep=timestep, encoder_hidden_states=prompt)["sample"]

    Threads may share an engine: their calls run one after the other. For calls that overlap, give each thread a
    `context()`, or an engine of its own.

    The options from `cuda_graph` to `nvtx` concern "tensorrt" alone. The other executors ignore `cuda_graph`, `outputs`
    and `nvtx`, and refuse `scratch` and `weight_streaming_budget`. An engine that cannot run on this machine's GPU does
    not silently run elsewhere.

    Args:
        path: A bundle folder, an .onnx file, or an opened `Bundle`.
        component: "transformer", or "transformer_2" for the second expert; None takes the first one there is.
        size: Which of a bundle's video sizes, as "81x480x832"; None takes the first.
        executor: "tensorrt", the default for bundles, needs a GPU that the bundle was built for, and a torch with CUDA.
            "onnxruntime", the default for .onnx files, runs fp32 and fp16 on the CPU; for a bundle it runs the
            model.onnx inside. "reference" is onnx.reference, which runs every type, slowly.
        device: For "tensorrt", "cuda", "cuda:1" or 1. The other executors run on the CPU: "cpu" or None.
        verify: Whether to hash every file of a bundle before loading it (about a second per gigabyte).
        cuda_graph: Whether to capture a CUDA graph in the second call with an optimization profile and input shapes,
            and replay it from then on. Inputs are then copied into buffers of the engine. Where TensorRT does not allow
            a graph, the engine is launched without one, and `fallbacks` counts it. The graphs of the last 4 sets of
            shapes are kept.
        outputs: With "copy", the outputs of a call belong to the caller. With "reuse", which saves a copy, they are in
            buffers of the engine and are valid until the next call with the same shapes, by any thread. NumPy outputs
            are always copies.
        scratch: A `DeviceScratch` with the memory for activations, which this engine shares with others; None makes one
            for this engine alone.
        weight_streaming_budget: Bytes of weights that stay on the GPU; the rest is copied in every call. "auto" chooses
            by the free memory. It is for bundles built with --weight-streaming, and excludes CUDA graphs unless all
            weights fit.
        nvtx: Whether to mark every layer with an NVTX range for Nsight Systems, which slows launches down. Every call
            has a range in any case.
        fallbacks: Counts what runs otherwise than asked for, or refuses it (strict); None makes new counts.

    Attributes:
        target: The loaded file, or for a bundle a view of the selected engine.
        closed: Whether the engine has been closed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or an option is invalid.
        VortaError: The engine cannot run here; the message says what to do.
    """

    def __init__(
        self,
        path: str | Path | Bundle,
        component: str | None = None,
        size: str | VideoSize | None = None,
        *,
        executor: str | None = None,
        device: str | int | None = None,
        verify: bool = True,
        cuda_graph: bool = True,
        outputs: Outputs = "copy",
        scratch: DeviceScratch | None = None,
        weight_streaming_budget: Budget | None = None,
        nvtx: bool = False,
        fallbacks: Fallbacks | None = None,
    ) -> None:
        if executor is not None and executor not in EXECUTORS:
            raise ValueError(f"executor {executor!r}: must be one of {', '.join(EXECUTORS)}")
        check_budget(weight_streaming_budget)
        options = ContextOptions(cuda_graph, outputs, scratch, nvtx, Fallbacks() if fallbacks is None else fallbacks)
        target = read_target(path, component=component, size=size, verify=verify)
        rank = _rank(target, executor, device)
        self._set(target, _load(target, executor, device, options, weight_streaming_budget), options, rank)

    def _set(self, target: Target, executor: Executor, options: ContextOptions, rank: EngineRank | None) -> None:
        self.target = target
        self._rank = rank
        self._executor = executor
        self._options = options
        self.closed = False

    @property
    def path(self) -> Path:
        """Path of the bundle or the file."""
        return self.target.path

    @property
    def metadata(self) -> ModelMetadata | None:
        """The exporter's metadata (family, geometry, precision, ...); None for files that vorta-trt did not export."""
        return self.target.metadata

    @property
    def executor(self) -> str:
        """The name of the executor in use."""
        return self._executor.name

    @property
    def device(self) -> str:
        """The device that the engine runs on: "cpu" or "cuda:N"."""
        return self._executor.device

    @property
    def fallbacks(self) -> Fallbacks:
        """Counts of what ran otherwise than asked for."""
        return self._options.fallbacks

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the inputs."""
        return self._executor.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of the outputs."""
        return self._executor.outputs

    @property
    def reuses_outputs(self) -> bool:
        """Whether the engine was made with outputs="reuse"."""
        return self._options.outputs == "reuse"

    def __call__(self, *, step: object = None, **inputs: Any) -> dict[str, Any]:
        """Runs one denoising step.

        Args:
            step: The step's number, for the NVTX range of this call.
            **inputs: The inputs by name, as `Engine.inputs` lists them: NumPy arrays, torch tensors, anything with
                `__dlpack__`, numbers or lists of numbers. A number may stand for an input of shape [1]. A contiguous
                tensor on the engine's GPU is read in place or copied on the GPU. `tau` may be left out (then it is the
                exported default), and so may `route_override` (then the router decides everywhere) and, for an engine
                for several GPUs, `rank` and `head_orders` (see `EngineRank`). Numbers and lists are rounded to the
                engine's type; an array of another type is converted only where that changes no value.

        Returns:
            The outputs by name: torch tensors, on the device of the first torch tensor (or array with `__dlpack__`)
            among the inputs; NumPy arrays if there is none. The option `outputs` decides how long they are valid.

        Raises:
            TypeError: An input is missing or unknown, or its type cannot be converted.
            ValueError: An input has a shape that the engine does not take.
            VortaError: TensorRT fails, or the GPU's memory is used up.
        """
        feeds, like = self._feeds(inputs)
        with nvtx_range(f"{self.path.name} step {step}" if step is not None else self.path.name):
            with nullcontext() if self._rank is None else self._rank.watched():
                outputs = self._executor.run(feeds, on_gpu=_on_gpu(like))
            if self._rank is not None and HEAD_ORDERS not in inputs:
                self._rank.place(to_torch(outputs["routes"]))
            return {name: _like(array, like) for name, array in outputs.items()}

    def context(
        self,
        *,
        cuda_graph: bool | None = None,
        outputs: Outputs | None = None,
        scratch: DeviceScratch | None = None,
        nvtx: bool | None = None,
    ) -> Engine:
        """A second engine on the same weights, whose calls may overlap with those of this one.

        It has its own stream, buffers, CUDA graphs and (without `scratch`) memory for activations. Options that are
        left out are those of this engine. Both engines may be closed in any order; the weights stay as long as one is
        open.
        """
        self._check_open()
        if self.device == "cpu":
            _refuse_on_cpu(self.executor, scratch=scratch)
        options = self._options
        options = ContextOptions(
            cuda_graph=options.cuda_graph if cuda_graph is None else cuda_graph,
            outputs=options.outputs if outputs is None else outputs,
            scratch=scratch,
            nvtx=options.nvtx if nvtx is None else nvtx,
            fallbacks=options.fallbacks,
        )
        made = Engine.__new__(Engine)
        made._set(self.target, self._executor.context(options), options, self._rank)
        return made

    def profile(self, *, repeats: int = 10, **inputs: Any) -> LayerTimes:
        """Measures every layer over `repeats` runs with these inputs, as a call takes them.

        Raises:
            VortaError: The executor is not "tensorrt", or the run fails.
        """
        feeds, _ = self._feeds(inputs)
        return self._executor.layer_times(feeds, repeats)

    def device_use(self) -> DeviceUse:
        """Bytes that the engine holds on the GPU now: weights, activations, inputs and outputs kept between calls."""
        return self._executor.device_use()

    def room_for(self, batch: int) -> tuple[int, int]:
        """Computes how much more GPU memory a call with `batch` samples takes than the engine holds now.

        Returns:
            These additional bytes, and the bytes that are free on the GPU; (0, 0) for executors on the CPU.

        Raises:
            ValueError: The engine does not take such a batch.
        """
        self._check_open()
        return self._executor.room_for(batch)

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

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(f"{self.path}: this engine is closed; open a new one")

    def _feeds(self, inputs: dict[str, Any]) -> tuple[dict[str, Array], Array | None]:
        """All inputs of the executor, checked; and the first tensor among them, whose device the outputs get."""
        self._check_open()
        defaults = self._defaults()
        inputs = {name: value for name, value in inputs.items() if value is not None}
        check_names(inputs, self.inputs, optional=tuple(defaults))
        arrays = {spec.name: as_input(spec, {**defaults, **inputs}[spec.name]) for spec in self.inputs}
        tensors = (name for name, value in inputs.items() if kind_of(name, value) in ("torch", "dlpack"))
        like = next((arrays[name] for name in tensors), None)
        self._check_batch(arrays)
        convert = to_numpy if self._executor.array_kind == "numpy" else to_torch
        return {name: convert(array) for name, array in arrays.items()}, like

    def _defaults(self) -> dict[str, Any]:
        """Default values of the inputs that may be left out, by name."""
        defaults: dict[str, Any] = {} if self._rank is None else dict(self._rank.inputs())
        for spec in self.inputs:
            if spec.name == "tau" and self.metadata is not None:
                defaults["tau"] = np.array([self.metadata.tau], np.float32)  # [1]
            elif spec.name == "route_override" and all(isinstance(size, int) for size in spec.shape):
                defaults["route_override"] = np.full(spec.shape, ROUTER_DECIDES, numpy_dtype(spec.dtype))  # [L, N]
        return defaults

    def _check_batch(self, feeds: dict[str, Array]) -> None:
        """Raises ValueError unless axes of the same name have the same size in all inputs."""
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


def _rank(target: Target, executor: str | None, device: str | int | None) -> EngineRank | None:
    """The additional inputs of an engine for several GPUs; None for other engines."""
    if target.metadata is None or target.metadata.ulysses == 1:
        return None
    if target.bundle is None or executor not in (None, "tensorrt"):
        raise VortaError(
            f"{target.path}: is exported for {target.metadata.ulysses} GPUs, which exchange in the plugins of an "
            f"engine alone; build a bundle of it and run that, or export it without --ulysses"
        )
    from vorta_trt.runtime.parallel.engine_ranks import EngineRank

    if device == "cpu":
        return None  # the executor refuses the CPU with its own message
    number = int(str("0" if device is None else device).removeprefix("cuda").removeprefix(":") or 0)
    library = target.bundle.plugin_library(number)
    assert library is not None  # its layers are plugins
    return EngineRank(library, target.metadata, target.path, f"cuda:{number}")


def _load(
    target: Target, executor: str | None, device: str | int | None, options: ContextOptions, budget: Budget | None
) -> Executor:
    if target.bundle is None:
        return _load_onnx(target.path, executor or "onnxruntime", device, options, budget)
    if executor in (None, "tensorrt"):
        from vorta_trt.runtime.executors.tensorrt_executor import TensorRTExecutor

        try:
            return TensorRTExecutor.load(target.bundle, device, options, budget)
        except VortaError as error:
            if executor is None:
                _say_alternative(target, error)
            raise
    if target.onnx_path is None:
        raise VortaError(
            f"{target.path}: executor {executor!r} runs the ONNX file of a bundle, and this one was built without it; "
            "build it with --keep-onnx, or give the exported .onnx file"
        )
    return _load_onnx(target.onnx_path, str(executor), device, options, budget)


def _load_onnx(
    path: Path, executor: str, device: str | int | None, options: ContextOptions, budget: Budget | None
) -> Executor:
    if executor == "tensorrt":
        raise VortaError(
            f"{path}: executor 'tensorrt' runs bundles; build one with: vorta-trt build {path.name} -o NAME.bundle"
        )
    if device not in (None, "cpu"):
        raise ValueError(f"device {device!r}: executor {executor!r} runs on the CPU; leave device out")
    _refuse_on_cpu(executor, weight_streaming_budget=budget, scratch=options.scratch)
    from vorta_trt.runtime.executors.onnx_executors import OnnxRuntimeExecutor, ReferenceExecutor

    return ReferenceExecutor(path) if executor == "reference" else OnnxRuntimeExecutor(path)


def _refuse_on_cpu(executor: str, **options: object) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"{given[0]}: executor {executor!r} runs on the CPU; leave it out")


def _say_alternative(target: Target, error: VortaError) -> None:
    """Adds to an error of the default executor how to run the bundle's ONNX file on the CPU, if it has one."""
    portable = target.metadata is None or target.metadata.opset != OPSET_17
    if target.onnx_path is not None and portable:
        remedy = (
            'to run its model.onnx on the CPU instead, slowly: executor="onnxruntime", on the command line '
            '--executor onnxruntime ("reference" for bfloat16)'
        )
        error.args = (f"{error}\n  {remedy}", *error.args[1:])


def _on_gpu(like: Array | None) -> bool:
    return like is not None and not isinstance(like, np.ndarray) and like.is_cuda


def _like(array: Any, like: Array | None) -> Any:
    """Converts an output to the kind and device that the caller gets."""
    if like is None or isinstance(like, np.ndarray):
        return to_numpy(array)
    return to_torch(array, like.device)
