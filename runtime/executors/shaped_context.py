# SPDX-License-Identifier: Apache-2.0
"""`ShapedContext`: a TensorRT execution context for one profile and one set of input shapes, with its CUDA graph.

A captured graph is bound to the state of the context that it was captured from: shapes, addresses of tensors and of
scratch memory. Changing any of them in the context makes replays undefined (TensorRT's guide, "CUDA Graphs"). So every
set of shapes has a context of its own, which shares weights and scratch memory with the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.device.cuda_graph import CaptureStream, CudaGraph
from vorta_trt.runtime.device.device_memory import DeviceMemory
from vorta_trt.runtime.executors.loaded_engine import LoadedEngine
from vorta_trt.runtime.executors.optimization_profiles import OptimizationProfile, Shape
from vorta_trt.runtime.executors.tensorrt_api import capture_obstacle, checked, scratch_for, set_scratch

if TYPE_CHECKING:
    import torch


class ShapedContext:
    """Made, used and closed inside the context's stream (`DeviceMemory.stream`), by one thread at a time.

    Attributes:
        scratch_bytes: What a run needs.
        output_shapes: By name.
        buffers: Tensors on the GPU that the user of this class keeps here between runs, by name.
    """

    def __init__(
        self,
        loaded: LoadedEngine,
        memory: DeviceMemory,
        profile: OptimizationProfile,
        shapes: Mapping[str, Shape],
        stream: torch.cuda.Stream,
        layer_ranges: bool,
    ) -> None:
        self._loaded, self._memory = loaded, memory
        self.buffers: dict[str, Any] = {}
        self._graph: CudaGraph | None = None
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._ran = False  # TensorRT applies a change of shapes or addresses in the next run: no graph may hold that
        self._context: Any = loaded.make_context(memory, layer_ranges)
        checked(
            loaded.flavour,
            f"choosing {profile}",
            self._context.set_optimization_profile_async,
            profile.index,
            stream.cuda_stream,
            memory=memory,
        )
        for spec in loaded.inputs:
            if not self._context.set_input_shape(spec.name, shapes[spec.name]):
                raise VortaError(f"{spec.name} of shape {shapes[spec.name]}: TensorRT refuses it for {spec}")
        self.output_shapes = self._infer_outputs()
        self.scratch_bytes = scratch_for(loaded.engine, self._context, profile.index)

    def bind(self, tensors: Mapping[str, torch.Tensor], scratch: int) -> None:
        """Says where tensors and scratch memory lie. A change drops the graph."""
        if (scratch, self.scratch_bytes) != self._scratch:
            self._drop_graph()
            set_scratch(self._context, scratch, self.scratch_bytes)
            self._scratch = (scratch, self.scratch_bytes)
        for name, tensor in tensors.items():
            address = tensor.data_ptr()
            if self._addresses.get(name) != address:
                self._drop_graph()
                if not self._context.set_tensor_address(name, address):
                    raise VortaError(f"{name} at address {address:#x}: TensorRT refuses it")
                self._addresses[name] = address

    def run(self, stream: torch.cuda.Stream) -> None:
        """Launches the engine, as its graph if it has been captured."""
        handle = stream.cuda_stream
        if self._graph is not None:
            self._graph.launch(handle)
            return
        checked(self._loaded.flavour, "running the engine", self._context.execute_async_v3, handle, memory=self._memory)
        self._ran = True

    @property
    def ready_to_capture(self) -> bool:
        """Whether nothing has changed since a run, and there is no graph yet."""
        return self._graph is None and self._ran

    def capture(self, stream: CaptureStream) -> str | None:
        """Captures a run into the graph that `run` launches from now on.

        Returns:
            None, or the reason why TensorRT does not allow it.

        Raises:
            CudaGraphError: The capture failed.
        """
        if obstacle := capture_obstacle(self._loaded.engine, self._context, stream.handle):
            return obstacle
        flavour, execute = self._loaded.flavour, self._context.execute_async_v3
        self._graph = stream.capture(lambda handle: checked(flavour, "running the engine", execute, handle))
        return None

    def profile_with(self, profiler: Any) -> None:
        """From now on every run waits for the GPU and reports its layers' times to an `IProfiler`."""
        self._drop_graph()
        self._context.profiler = profiler

    def close(self) -> None:
        """What runs has ended. May be called twice."""
        self._drop_graph()
        self.buffers.clear()
        self._context = None

    def _drop_graph(self) -> None:
        self._ran = False
        if self._graph is not None:
            self._memory.synchronize()
            self._graph.close()
            self._graph = None

    def _infer_outputs(self) -> dict[str, Shape]:
        flavour = self._loaded.flavour
        if missing := checked(flavour, "inferring the output shapes", self._context.infer_shapes):
            raise VortaError(f"TensorRT cannot infer the output shapes; missing: {', '.join(missing)}")
        shapes = {spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in self._loaded.outputs}
        if unknown := [f"{name} {list(shape)}" for name, shape in shapes.items() if min(shape, default=0) < 0]:
            raise VortaError(f"TensorRT does not know the shape of {', '.join(unknown)} before the run; build it again")
        return shapes
