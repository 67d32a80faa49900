# SPDX-License-Identifier: Apache-2.0
"""Runs the plan of a bundle on a GPU, with the TensorRT flavour that built it: 8.6, 10, 11, RTX."""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vorta_trt.engines.bundle import Bundle
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.device.cuda_graph import CaptureStream, CudaGraphError
from vorta_trt.runtime.device.device_memory import DeviceMemory
from vorta_trt.runtime.device.device_scratch import DeviceScratch
from vorta_trt.runtime.executors.executor import CLOSED, ContextOptions, DeviceUse
from vorta_trt.runtime.executors.layer_times import LayerTimes, measure_layers
from vorta_trt.runtime.executors.loaded_engine import LoadedEngine, check_device
from vorta_trt.runtime.executors.optimization_profiles import OptimizationProfile, Shape, choose_profile
from vorta_trt.runtime.executors.shaped_context import ShapedContext
from vorta_trt.runtime.executors.tensorrt_api import is_streaming
from vorta_trt.runtime.executors.weight_streaming import Budget
from vorta_trt.runtime.tensors import Array, ArrayKind, byte_size

if TYPE_CHECKING:
    import torch

GRAPH = "cuda graph capture"  # the kind of fallback
MOST_SHAPES = 4  # sets of input shapes whose context, buffers and graph are kept; the least recently used is dropped

Key = tuple[int, tuple[Shape, ...]]


class TensorRTExecutor:
    """An engine on one GPU, with one stream; calls from several threads run one after the other.

    Args:
        loaded: The engine; this executor becomes one of its users.
        memory: The GPU memory and stream that this executor uses.
        options: See `Engine`.

    Raises:
        VortaError: This machine cannot run the engine; the message says why and what to do.
    """

    name = "tensorrt"
    array_kind: ArrayKind = "torch"

    def __init__(self, loaded: LoadedEngine, memory: DeviceMemory, options: ContextOptions) -> None:
        self.inputs, self.outputs = loaded.inputs, loaded.outputs
        self.device = f"cuda:{memory.device}"
        self._loaded: LoadedEngine | None = loaded.retain()
        self._memory = memory
        self._options = options
        self._scratch = DeviceScratch() if options.scratch is None else options.scratch
        self._shaped: OrderedDict[Key, ShapedContext] = OrderedDict()
        self._capture_stream: CaptureStream | None = None
        self._graphs = options.cuda_graph
        self._lock = threading.Lock()
        try:
            if self._graphs and is_streaming(loaded.engine):
                options.fallbacks.record(
                    GRAPH,
                    "the engine streams weights, and the host waits for the copies; ask "
                    "for no graph with cuda_graph=False (--no-cuda-graph)",
                )
                self._graphs = False
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(
        cls, bundle: Bundle, device: str | int | None, options: ContextOptions, budget: Budget | None = None
    ) -> TensorRTExecutor:
        """Loads the plan of an opened bundle onto a GPU, such as "cuda", "cuda:1" or 1; None takes the first one."""
        index = device_index(device)
        check_device(bundle, index, device)
        memory = DeviceMemory(index)
        try:
            with memory.current():
                return cls(LoadedEngine(bundle, memory, budget), memory, options)
        except BaseException:
            memory.close()
            raise

    def context(self, options: ContextOptions) -> TensorRTExecutor:
        """Makes an executor on the same weights that has its own stream, buffers and graphs."""
        with self._lock:
            loaded = self._open()
            memory = DeviceMemory(self._memory.device)
            try:
                return TensorRTExecutor(loaded, memory, options)
            except BaseException:
                memory.close()
                raise

    def run(self, feeds: Mapping[str, Array], on_gpu: bool) -> dict[str, Any]:
        """Runs once; see `Executor.run`."""
        with self._lock:
            loaded = self._open()
            with self._memory.stream() as stream, self._freed_on_error():
                return self._run(loaded, feeds, stream, on_gpu)

    def layer_times(self, feeds: Mapping[str, Array], repeats: int) -> LayerTimes:
        """Measures every layer, in a separate execution context."""
        with self._lock:
            loaded = self._open()
            with self._memory.stream() as stream, self._freed_on_error():
                profile, shapes = self._profile_for(loaded, feeds)
                shaped = ShapedContext(loaded, self._memory, profile, shapes, stream, layer_ranges=False)
                try:
                    return measure_layers(
                        loaded, shaped, repeats, lambda: self._run_in_place(shaped, feeds, stream, keep=True)
                    )
                finally:
                    self._memory.synchronize()
                    shaped.close()

    def device_use(self) -> DeviceUse:
        """Bytes on the GPU now."""
        kept = (buffer.nbytes for shaped in list(self._shaped.values()) for buffer in list(shaped.buffers.values()))
        weights = 0 if self._loaded is None else self._loaded.weights
        return DeviceUse(weights=weights, scratch=self._scratch.size, buffers=sum(kept))

    def room_for(self, batch: int) -> tuple[int, int]:
        """Bytes that a call with `batch` samples takes beyond those held now, and bytes that are free."""
        shapes = {s.name: tuple(batch if isinstance(size, str) else size for size in s.shape) for s in self.inputs}
        with self._lock:
            loaded = self._open()
            with self._memory.stream() as stream:
                profile = choose_profile(loaded.profiles, shapes)
                kept = self._shaped.get((profile.index, tuple(shapes.values())))
                shaped = kept or ShapedContext(loaded, self._memory, profile, shapes, stream, layer_ranges=False)
                needed = max(shaped.scratch_bytes - self._scratch.size, 0)
                if kept is None:
                    tensors = {**shapes, **shaped.output_shapes}
                    specs = (*self.inputs, *self.outputs)
                    needed += 2 * sum(byte_size(tensors[spec.name], spec.dtype) for spec in specs)  # buffers and copies
                    self._memory.synchronize()
                    shaped.close()
                return needed, self._memory.free_bytes()[0]

    def close(self) -> None:
        """Waits for running calls, and frees everything that no other context uses. May be called twice."""
        with self._lock:
            if self._loaded is None:
                return
            loaded, self._loaded = self._loaded, None
            with self._memory.current():
                try:
                    self._memory.synchronize()
                    self._drop_contexts()
                    if self._capture_stream is not None:
                        self._capture_stream.close()
                    if self._options.scratch is None:
                        self._scratch.close()
                    self._memory.close()
                finally:
                    loaded.release()
                self._memory.release_unused()

    def __del__(self) -> None:
        if getattr(self, "_loaded", None) is not None and not sys.is_finalizing():
            self.close()

    # --- One run -----------------------------------------------------------------------------------------------------

    def _run(
        self, loaded: LoadedEngine, feeds: Mapping[str, Array], stream: torch.cuda.Stream, on_gpu: bool
    ) -> dict[str, Any]:
        memory = self._memory
        shaped = self._context_for(loaded, feeds, stream)
        if self._graphs:
            outputs = self._run_kept(shaped, feeds, stream)
            if self._options.outputs == "copy" and on_gpu:  # outputs on the host are copied by `deliver`
                outputs = {name: memory.copy(name, buffer) for name, buffer in outputs.items()}
        else:
            keep = not on_gpu or self._options.outputs == "reuse"
            outputs = self._run_in_place(shaped, feeds, stream, keep)
        return {name: memory.deliver(buffer, on_gpu) for name, buffer in outputs.items()}

    def _run_kept(self, shaped: ShapedContext, feeds: Mapping[str, Array], stream: torch.cuda.Stream) -> dict[str, Any]:
        """Runs with inputs and outputs in fixed buffers; from the second run on as a CUDA graph."""
        memory = self._memory
        for spec in self.inputs:
            if spec.name not in shaped.buffers:
                shaped.buffers[spec.name] = memory.keep(spec.name, feeds[spec.name].shape, spec.dtype)
            memory.fill(shaped.buffers[spec.name], feeds[spec.name])
        outputs = self._kept_outputs(shaped)
        with self._scratch.lend(memory, stream, shaped.scratch_bytes) as scratch:
            shaped.bind(shaped.buffers, scratch)
            if shaped.ready_to_capture:
                self._capture(shaped)
            shaped.run(stream)
        return outputs

    def _run_in_place(
        self, shaped: ShapedContext, feeds: Mapping[str, Array], stream: torch.cuda.Stream, keep: bool
    ) -> dict[str, Any]:
        """Runs with the caller's inputs in place; outputs are new tensors, or kept buffers if `keep`."""
        memory = self._memory
        placed = {spec.name: memory.place(spec.name, feeds[spec.name]) for spec in self.inputs}
        shapes = shaped.output_shapes
        outputs = (
            self._kept_outputs(shaped)
            if keep
            else {spec.name: memory.empty(spec.name, shapes[spec.name], spec.dtype) for spec in self.outputs}
        )
        with self._scratch.lend(memory, stream, shaped.scratch_bytes) as scratch:
            shaped.bind({**placed, **outputs}, scratch)
            shaped.run(stream)
        return outputs

    def _kept_outputs(self, shaped: ShapedContext) -> dict[str, Any]:
        for spec in self.outputs:
            if spec.name not in shaped.buffers:
                shape = shaped.output_shapes[spec.name]
                shaped.buffers[spec.name] = self._memory.keep(spec.name, shape, spec.dtype)
        return {spec.name: shaped.buffers[spec.name] for spec in self.outputs}

    def _capture(self, shaped: ShapedContext) -> None:
        """Captures a run on a separate stream, so that other work on the run's stream is not captured."""
        try:
            if self._capture_stream is None:
                self._capture_stream = CaptureStream()
            obstacle = shaped.capture(self._capture_stream)
        except CudaGraphError as error:
            obstacle = str(error)
        if obstacle is not None:
            self._options.fallbacks.record(GRAPH, obstacle)  # in strict mode this raises, on every call
            self._graphs = False  # the engine would refuse a graph for other shapes, too

    # --- Contexts ----------------------------------------------------------------------------------------------------

    def _profile_for(
        self, loaded: LoadedEngine, feeds: Mapping[str, Array]
    ) -> tuple[OptimizationProfile, dict[str, Shape]]:
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self.inputs}
        return choose_profile(loaded.profiles, shapes), shapes

    def _context_for(
        self, loaded: LoadedEngine, feeds: Mapping[str, Array], stream: torch.cuda.Stream
    ) -> ShapedContext:
        profile, shapes = self._profile_for(loaded, feeds)
        key = (profile.index, tuple(shapes.values()))
        if key in self._shaped:
            self._shaped.move_to_end(key)
            return self._shaped[key]
        while len(self._shaped) >= MOST_SHAPES:
            self._memory.synchronize()
            self._shaped.popitem(last=False)[1].close()
        self._shaped[key] = ShapedContext(loaded, self._memory, profile, shapes, stream, self._options.nvtx)
        return self._shaped[key]

    def _drop_contexts(self) -> None:
        while self._shaped:
            self._shaped.popitem()[1].close()

    @contextmanager
    def _freed_on_error(self) -> Iterator[None]:
        """Frees contexts and buffers after a failed run, which may have been out of memory; the next run makes new."""
        try:
            yield
        except VortaError as error:
            self._memory.synchronize()
            self._drop_contexts()
            for each in (error, error.__cause__):
                if each is not None:  # the frames of the traceback hold buffers as long as the error exists
                    traceback.clear_frames(each.__traceback__)
            raise

    def _open(self) -> LoadedEngine:
        if self._loaded is None:
            raise RuntimeError(CLOSED)
        return self._loaded


def device_index(device: str | int | None) -> int:
    """The number in "cuda:1", 1, "cuda" or None; raises ValueError for anything else."""
    if device is None:
        return 0
    match = re.fullmatch(r"(?:cuda)?(?:(?<=cuda):)?(\d*)", str(device))
    if match is None or str(device).endswith(":") or device == "":
        raise ValueError(
            f'device {device!r}: must be "cuda", "cuda:N" or a number N; TensorRT runs on NVIDIA GPUs only'
        )
    return int(match[1] or 0)
