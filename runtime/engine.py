# SPDX-License-Identifier: Apache-2.0
"""`Engine`: one transformer, ready to run; the same call whatever runs it."""

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

    The options from `cuda_graph` on concern "tensorrt" alone. The other executors ignore `cuda_graph`, `outputs` and
    `nvtx`, and refuse the rest. An engine that cannot run on this machine's GPU does not silently run elsewhere.

    Args:
        path: A bundle folder, an .onnx file, or an opened `Bundle`.
        component: "transformer", or "transformer_2", the second expert; None takes the first one there is.
        size: Which of a bundle's video sizes, as "81x480x832"; None takes the first.
        executor: "tensorrt" is a bundle's default; it needs a GPU that the bundle was built for, and a torch with
            CUDA. "onnxruntime" is an .onnx file's default: CPU, fp32 and fp16; of a bundle it runs the model.onnx.
            "reference" is onnx.reference: every type, slow.
        device: For tensorrt, "cuda", "cuda:1" or 1. The others run on the CPU: "cpu" or None.
        verify: Hash every file of a bundle before loading it (about a second per gigabyte).
        cuda_graph: Capture a CUDA graph per optimization profile and input shapes in their second call, and replay it
            from then on. Inputs are then copied into buffers of the engine. Where TensorRT does not allow it, the
            engine is launched without, and `fallbacks` counts that. The last 4 sets of shapes are kept.
        outputs: "copy": the outputs of a call are the caller's. "reuse": they lie in buffers of the engine and are
            valid until its next call with the same shapes, by whatever thread; spares a copy. NumPy outputs are always
            copies.
        scratch: A `DeviceScratch` that this engine shares with others; None: memory for activations of its own.
        weight_streaming_budget: Bytes of weights that stay on the GPU, the rest is copied in every call; "auto" goes by
            the free memory. For bundles built with --weight-streaming. Excludes CUDA graphs where not all weights fit.
        nvtx: Ranges of every layer for Nsight Systems, which slow launching down. A range per call is always there.
        fallbacks: Counts what runs otherwise than asked for, or refuses it (strict); None: counts of its own.

    Attributes:
        target: What was loaded: of a bundle, a view of the selected engine.
        closed: Whether it has been closed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or an option is none.
        VortaError: It cannot run here; the message says what to do.
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
        """Of the bundle or the file."""
        return self.target.path

    @property
    def metadata(self) -> ModelMetadata | None:
        """What the exporter wrote (family, geometry, precision, ...); None for a file of another origin."""
        return self.target.metadata

    @property
    def executor(self) -> str:
        """The name of the executor in use."""
        return self._executor.name

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda:N"."""
        return self._executor.device

    @property
    def fallbacks(self) -> Fallbacks:
        """Counts of what ran otherwise than asked for."""
        return self._options.fallbacks

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes."""
        return self._executor.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives."""
        return self._executor.outputs

    @property
    def reuses_outputs(self) -> bool:
        """Whether it was made with outputs="reuse"."""
        return self._options.outputs == "reuse"

    def __call__(self, *, step: object = None, **inputs: Any) -> dict[str, Any]:
        """Runs one denoising step.

        Args:
            step: The step's number, for the NVTX range of this call.
            **inputs: The inputs by name, as `Engine.inputs` lists them: NumPy arrays, torch tensors, anything with
                `__dlpack__`, numbers or lists of numbers. A number serves for an input of shape [1]. What lies on the
                engine's GPU, contiguous, is read where it is or copied there. `tau` may be left out (the exported
                default), and so may `route_override` (the router decides everywhere) and, of an engine for several
                GPUs, `rank` and `head_orders` (see `EngineRank`). Numbers and lists are rounded to the engine's type;
                an array of another type is converted where that changes no value.

        Returns:
            The outputs by name: torch tensors, on the device of the first torch tensor (or array with `__dlpack__`)
            among the inputs; NumPy arrays if there is none. How long they are valid: `outputs`, above.

        Raises:
            TypeError: An input is missing, unknown, or of a type that cannot be converted.
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

        It has a stream, buffers, CUDA graphs and (unless `scratch` says otherwise) memory for activations of its own.
        The options are this engine's where they are left out. Both may be closed in any order; the weights stay as
        long as one is open.
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
        """Bytes on the GPU now: weights, memory for activations, inputs and outputs kept between calls."""
        return self._executor.device_use()

    def room_for(self, batch: int) -> tuple[int, int]:
        """Tells what a call with `batch` samples takes on the GPU besides what the engine holds now.

        Returns:
            Those bytes, and the bytes that are free there; (0, 0) for executors on the CPU.

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
        """Every input of the executor, checked; and the first tensor among them, which says where outputs go."""
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
        """The inputs that may be left out, with the values they then have."""
        defaults: dict[str, Any] = {} if self._rank is None else dict(self._rank.inputs())
        for spec in self.inputs:
            if spec.name == "tau" and self.metadata is not None:
                defaults["tau"] = np.array([self.metadata.tau], np.float32)  # [1]
            elif spec.name == "route_override" and all(isinstance(size, int) for size in spec.shape):
                defaults["route_override"] = np.full(spec.shape, ROUTER_DECIDES, numpy_dtype(spec.dtype))  # [L, N]
        return defaults

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


def _rank(target: Target, executor: str | None, device: str | int | None) -> EngineRank | None:
    """What an engine for several GPUs needs; None for all others."""
    if target.metadata is None or target.metadata.ulysses == 1:
        return None
    if target.bundle is None or executor not in (None, "tensorrt"):
        raise VortaError(
            f"{target.path}: is exported for {target.metadata.ulysses} GPUs, which exchange in the plugins of an "
            f"engine alone; build a bundle of it and run that, or export it without --ulysses"
        )
    from vorta_trt.runtime.parallel.engine_ranks import EngineRank

    if device == "cpu":
        return None  # its executor says why not
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
    """Adds what runs without this GPU to an error of the default executor, if the bundle has it."""
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
    """An output as the caller of the engine gets it."""
    if like is None or isinstance(like, np.ndarray):
        return to_numpy(array)
    return to_torch(array, like.device)
