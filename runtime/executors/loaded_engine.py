# SPDX-License-Identifier: Apache-2.0
"""The plan of a bundle in GPU memory, whose weights any number of execution contexts share.

Checks that do not need TensorRT come first: files and hashes when the bundle is opened; then, in `check_device`,
flavour and version, compute capability, plugin ABI and kernels. TensorRT finds the remaining problems.
"""

from __future__ import annotations

import threading
from typing import Any

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.errors import BundleError
from vorta_trt.engines.plugin import load_plugin, make_runtime
from vorta_trt.engines.refit import apply_refit
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.gpu import driver_report
from vorta_trt.plugins.kernel_support import prepare_gpu
from vorta_trt.runtime.device.device_memory import DeviceMemory
from vorta_trt.runtime.executors.optimization_profiles import read_profiles, widest
from vorta_trt.runtime.executors.tensorrt_api import checked, make_context, runtime_config
from vorta_trt.runtime.executors.weight_streaming import Budget, set_budget
from vorta_trt.runtime.target import manifest_spec


class LoadedEngine:
    """One deserialised engine on one GPU; it is freed when the last of its users has released it.

    Attributes:
        inputs: Specs of the inputs, with the widest range over all profiles.
        outputs: Specs of the outputs.
        profiles: Optimization profiles of the plan.
        weights: Bytes of weights on the GPU.
        engine: TensorRT's engine object.
    """

    def __init__(self, bundle: Bundle, memory: DeviceMemory, budget: Budget | None) -> None:
        manifest = bundle.manifest
        self.path = bundle.path
        self.flavour = bundle.flavour
        self.engine: Any = None
        self._lock = threading.RLock()  # garbage collection inside make_context may call release
        self._users = 0
        if (library := bundle.plugin_library(memory.device)) is not None:
            load_plugin(self.flavour, library.path)
        memory.release_unused()
        try:
            self._runtime = make_runtime(self.flavour, manifest.has_plugin_in_plan)
            size = manifest.engine.memory.weights or bundle.plan_bytes
            self.engine = self._deserialise(bundle, memory, size)
            self.weights = size
            apply_refit(self.flavour, self.engine, bundle)
            if budget is not None:
                self.weights = set_budget(self.flavour, self.engine, memory, budget)
            inputs = tuple(map(manifest_spec, manifest.inputs))
            self.outputs = tuple(map(manifest_spec, manifest.outputs))
            self._check_tensors([spec.name for spec in (*inputs, *self.outputs)])
            self.profiles = read_profiles(self.engine, inputs)
            self.inputs = tuple(widest(spec, self.profiles) for spec in inputs)
            self._config = runtime_config(self.flavour.module, self.engine)
        except BaseException:
            self._free()
            raise

    def make_context(self, memory: DeviceMemory, layer_ranges: bool) -> Any:
        """Makes an execution context without memory for activations; the caller drops it before `release`."""
        with self._lock:
            arguments = (self.flavour.module, self.engine, self._config, layer_ranges)
            return checked(self.flavour, "creating the execution context", make_context, *arguments, memory=memory)

    def retain(self) -> LoadedEngine:
        """Counts one more user."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Counts one user less; frees the engine when the last user has released it."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._free()

    def _free(self) -> None:
        # TensorRT requires its objects to be freed in the reverse order of their creation.
        self._config = None
        self.engine = None
        self._runtime = None

    def _deserialise(self, bundle: Bundle, memory: DeviceMemory, size: int) -> Any:
        with bundle.open_plan() as content:
            what, deserialise = f"loading {bundle.plan_path}", self._runtime.deserialize_cuda_engine
            return checked(self.flavour, what, deserialise, content, memory=memory, needed=size)

    def _check_tensors(self, listed: list[str]) -> None:
        """Raises VortaError unless plan and manifest name the same tensors, which only a bug of the build prevents."""
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        if set(names) != set(listed):
            raise VortaError(
                f"{self.path}: the plan has tensors {sorted(names)}, the manifest {sorted(listed)}; build it again"
            )
        host = self.flavour.module.TensorLocation.HOST
        if on_host := [name for name in names if self.engine.get_tensor_location(name) == host]:
            raise VortaError(
                f"{self.path}: the plan reads {', '.join(on_host)} on the host, to infer shapes from it, and this "
                "executor gives every input on the GPU; export and build the model again"
            )


def check_device(bundle: Bundle, index: int, device: object) -> None:
    """Raises VortaError unless this machine has GPU number `index`, and the engine runs on it."""
    if problems := bundle.check_runtime(index):
        raise BundleError(bundle.path, problems)
    devices = driver_report().devices
    if devices and index >= len(devices):
        raise VortaError(
            f"device {device}: this machine has {len(devices)} GPU(s); use cuda:0 to cuda:{len(devices) - 1}"
        )
    if not (ability := bundle.flavour.can_run(index)):
        raise VortaError(f"{bundle.path}: {bundle.flavour.title} cannot run here: {ability.reason}")
    if (library := bundle.plugin_library(index)) is not None:
        prepare_gpu(library, index)
