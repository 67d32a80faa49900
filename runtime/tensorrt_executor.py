# SPDX-License-Identifier: Apache-2.0
"""Runs the plan of a bundle on a GPU, with the TensorRT flavour that built it.

Everything that can be checked without the GPU has been checked when `Bundle.open` returns: hashes, flavour and version,
compute capability, plugin ABI and kernels. What is left for this file is what only TensorRT itself can say.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.flavours import Flavour
from vorta_trt.engines.gpu import driver_report
from vorta_trt.engines.plugin import load_plugin
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.device_memory import DeviceMemory, device_memory
from vorta_trt.runtime.target import manifest_spec
from vorta_trt.runtime.tensors import Array, ArrayKind


class TensorRTExecutor:
    """One deserialised engine with one execution context, on one GPU.

    Args:
        bundle: an opened bundle.
        device: "cuda", "cuda:1" or 1; None is the first GPU.
        memory: where the tensors live; by default torch's CUDA memory, or cuda-python's where torch has none.
    Raises:
        VortaError: this machine cannot run the engine; says why and what to do.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, device: str | int | None = None, memory: DeviceMemory | None = None) -> None:
        self.inputs = tuple(map(manifest_spec, bundle.manifest.inputs))
        self.outputs = tuple(map(manifest_spec, bundle.manifest.outputs))
        self._engine: Any = None
        self._context: Any = None
        index = device_index(device)
        self._flavour = bundle.flavour
        if not (ability := self._flavour.can_run()):
            raise VortaError(f"{bundle.path}: {self._flavour.title} cannot run here: {ability.reason}")
        if index >= (count := len(driver_report().devices)):
            raise VortaError(f"device {device}: this machine has {count} GPU(s); use cuda:0 to cuda:{count - 1}")
        if (library := bundle.plugin_library()) is not None:
            load_plugin(self._flavour, library.path)
        self._memory = memory or device_memory(index)
        self.array_kind: ArrayKind = self._memory.array_kind
        try:
            self._runtime = self._flavour.module.Runtime(self._flavour.logger)
            self._engine = _deserialise(self._flavour, self._runtime, bundle.plan_path)
            self._context = _call(
                self._flavour, "creating the execution context", self._engine.create_execution_context
            )
            self._check_tensors(bundle.path)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        context = self._context
        if context is None:
            raise RuntimeError("the executor is closed; make a new Engine")
        with self._memory.stream() as stream:
            buffers = {}
            for spec in self.inputs:
                array = feeds[spec.name]
                if not context.set_input_shape(spec.name, tuple(array.shape)):
                    raise VortaError(f"{spec.name} of shape {tuple(array.shape)}: TensorRT refuses it for {spec}")
                buffers[spec.name] = self._memory.upload(array)
            if missing := context.infer_shapes():
                raise VortaError(f"TensorRT cannot infer the output shapes; missing: {', '.join(missing)}")
            for spec in self.outputs:
                buffers[spec.name] = self._memory.empty(tuple(context.get_tensor_shape(spec.name)), spec.dtype)
            for name, buffer in buffers.items():
                context.set_tensor_address(name, self._memory.pointer(buffer))
            _call(self._flavour, "running the engine", context.execute_async_v3, stream)
            return {spec.name: self._memory.download(buffers[spec.name]) for spec in self.outputs}

    def close(self) -> None:
        self._memory.close()  # waits for what is running
        # TensorRT wants its objects freed from the inside out.
        self._context = None
        self._engine = None
        self._runtime = None

    def _check_tensors(self, path: Path) -> None:
        """The plan and the manifest must name the same tensors (the hashes match, so this is a bug of the build)."""
        names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        if names != (listed := {spec.name for spec in (*self.inputs, *self.outputs)}):
            raise VortaError(
                f"{path}: the plan has tensors {sorted(names)}, the manifest {sorted(listed)}; build it again"
            )


def device_index(device: str | int | None) -> int:
    """The number in "cuda:1", 1, "cuda" or None; ValueError for anything else."""
    if device is None:
        return 0
    match = re.fullmatch(r"(?:cuda)?(?:(?<=cuda):)?(\d*)", str(device))
    if match is None or str(device).endswith(":") or device == "":
        raise ValueError(
            f'device {device!r}: must be "cuda", "cuda:N" or a number N; TensorRT runs on NVIDIA GPUs only'
        )
    return int(match[1] or 0)


def _deserialise(flavour: Flavour, runtime: Any, plan: Path) -> Any:
    with _mapped(plan) as content:
        return _call(flavour, f"loading {plan}", runtime.deserialize_cuda_engine, content)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file as memory; paged in as TensorRT reads it, so that a plan of many gigabytes is not held twice."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _call(flavour: Flavour, what: str, function: Any, *arguments: Any) -> Any:
    """The function's result; a VortaError with what TensorRT logged if that is None or False."""
    with flavour.hub.collect() as collected:
        result = function(*arguments)
    if result is None or result is False:
        said = "; ".join(collected.errors or collected.warnings) or "it logged no reason"
        raise VortaError(f"{what} failed in {flavour.title} {flavour.version}: {said}")
    return result
