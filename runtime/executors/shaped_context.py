# SPDX-License-Identifier: Apache-2.0
"""`ShapedContext`: a TensorRT execution context for one profile and one set of input shapes, with its CUDA graph.

A captured graph depends on the state of the context that it was captured from: shapes, addresses of tensors and of
scratch memory. If any of these changes in the context, replays are undefined (TensorRT's guide, "CUDA Graphs"). So
every set of shapes has its own context. All contexts share weights and scratch memory.
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
    """An execution context for one profile and one set of input shapes.

    It must be made, used and closed inside `DeviceMemory.stream`, by one thread at a time.

    Attributes:
        scratch_bytes: Bytes of scratch memory that a run needs.
        output_shapes: Shapes of the outputs, by name.
        buffers: Tensors on the GPU, by name, that the user of this class keeps here between runs.
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
        self._ran = False  # TensorRT applies new shapes or addresses in the next run, which must not be captured
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
        """Sets the addresses of tensors and scratch memory. If one changes, the graph is dropped."""
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
        """Launches the engine: its graph if it has been captured, otherwise layer by layer."""
        handle = stream.cuda_stream
        if self._graph is not None:
            self._graph.launch(handle)
            return
        checked(self._loaded.flavour, "running the engine", self._context.execute_async_v3, handle, memory=self._memory)
        self._ran = True

    @property
    def ready_to_capture(self) -> bool:
        """Whether the engine has run with the current shapes and addresses, and there is no graph yet."""
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
        """Makes every later run wait for the GPU and report the times of its layers to an `IProfiler`."""
        self._drop_graph()
        self._context.profiler = profiler

    def close(self) -> None:
        """Frees the context; all its runs must have ended. May be called twice."""
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
