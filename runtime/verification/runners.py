# SPDX-License-Identifier: Apache-2.0
"""The two sides of a verification as Polygraphy runners, so that its `Comparator` runs and compares them.

The Comparator keeps one runner active at a time, which keeps one model in memory at a time. Tensors cross this border
in float32 or int32 only: Polygraphy and NumPy know bfloat16 badly, and the conversion to and from float32 is exact
because `cases` rounded the inputs to the engine's type.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from polygraphy import util
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from vorta_trt.model.precision import numpy_dtype
from vorta_trt.runtime.engine import Engine
from vorta_trt.runtime.tensors import TensorSpec, to_numpy

if TYPE_CHECKING:
    import torch

    from vorta_trt.model import RoutedTransformer

Feeds = Mapping[str, np.ndarray[Any, Any]]


class EngineRunner(BaseRunner):  # type: ignore[misc]
    """An `Engine` under Polygraphy's interface.

    Args:
        load: makes the engine; called when Polygraphy activates the runner.
    """

    def __init__(self, load: Callable[[], Engine]) -> None:
        super().__init__(prefix="vorta-engine")
        self._load = load
        self._engine: Engine | None = None
        self.executor = ""  # the name of the executor that ran

    @util.check_called_by("activate")  # type: ignore[untyped-decorator]
    def activate_impl(self) -> None:
        self._engine = self._load()
        self.executor = self._engine.executor

    @util.check_called_by("get_input_metadata")  # type: ignore[untyped-decorator]
    def get_input_metadata_impl(self) -> TensorMetadata:
        return _metadata(self._active.inputs)

    @util.check_called_by("infer")  # type: ignore[untyped-decorator]
    def infer_impl(self, feed_dict: Feeds) -> OrderedDict[str, np.ndarray[Any, Any]]:
        feeds = {spec.name: _narrowed(feed_dict[spec.name], spec.dtype) for spec in self._active.inputs}
        outputs = self._active(**feeds)
        self.inference_time = 0.0  # not measured: `vorta-trt bench` is for that
        return OrderedDict((name, _widened(to_numpy(array))) for name, array in outputs.items())

    @util.check_called_by("deactivate")  # type: ignore[untyped-decorator]
    def deactivate_impl(self) -> None:
        self._active.close()
        self._engine = None

    @property
    def _active(self) -> Engine:
        assert self._engine is not None  # Polygraphy calls the methods above between activate and deactivate
        return self._engine


class TorchRunner(BaseRunner):  # type: ignore[misc]
    """A `RoutedTransformer` under Polygraphy's interface.

    Args:
        load: makes the model; called when Polygraphy activates the runner.
        inputs: specs of the engine's inputs.
        pinned: routes [L, B, N] of each run, to be taken instead of the router's own; see `verify`.
        modules: names of submodules whose outputs are returned too, by their names.
    """

    def __init__(
        self,
        load: Callable[[], RoutedTransformer],
        inputs: Sequence[TensorSpec],
        pinned: Sequence[np.ndarray[Any, Any]] | None = None,
        modules: Sequence[str] = (),
    ) -> None:
        super().__init__(prefix="vorta-torch")
        self._load = load
        self._inputs = inputs
        self._pinned = pinned
        self._modules = tuple(modules)
        self._model: RoutedTransformer | None = None
        self.taken: list[np.ndarray[Any, Any]] = []  # routes [L, B, N] of each run so far

    @util.check_called_by("activate")  # type: ignore[untyped-decorator]
    def activate_impl(self) -> None:
        self._model = self._load()

    @util.check_called_by("get_input_metadata")  # type: ignore[untyped-decorator]
    def get_input_metadata_impl(self) -> TensorMetadata:
        return _metadata(self._inputs)

    @util.check_called_by("infer")  # type: ignore[untyped-decorator]
    def infer_impl(self, feed_dict: Feeds) -> OrderedDict[str, np.ndarray[Any, Any]]:
        import torch

        assert self._model is not None
        tensors = {spec.name: torch.from_numpy(np.array(feed_dict[spec.name])) for spec in self._inputs}
        activations = next(spec.dtype for spec in self._inputs if spec.name == "hidden_states")
        for spec in self._inputs:
            if spec.dtype == activations:
                tensors[spec.name] = tensors[spec.name].to(self._model.dtype)
        with torch.inference_mode(), _captured(self._model, self._modules) as captured:
            if self._pinned is None:
                sample, routes = self._model(**tensors)
            else:
                sample, routes = _sample_by_sample(self._model, tensors, self._pinned[len(self.taken)], captured)
        self.taken.append(routes.numpy())
        self.inference_time = 0.0
        outputs = {"sample": sample, "routes": routes, **{name: torch.cat(parts) for name, parts in captured.items()}}
        return OrderedDict((name, _widened(to_numpy(tensor))) for name, tensor in outputs.items())

    @util.check_called_by("deactivate")  # type: ignore[untyped-decorator]
    def deactivate_impl(self) -> None:
        self._model = None


def _sample_by_sample(
    model: RoutedTransformer, tensors: dict[str, torch.Tensor], routes: np.ndarray[Any, Any], captured: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs with the given routes [L, B, N]; `route_override` has no batch axis, so every sample runs alone."""
    import torch

    samples, taken = [], []
    for index in range(routes.shape[1]):
        part = {
            name: tensor if name in ("tau", "route_override") else tensor[index : index + 1]
            for name, tensor in tensors.items()
        }
        part["route_override"] = torch.from_numpy(np.ascontiguousarray(routes[:, index]))  # [L, N]
        sample, route = model(**part)
        samples.append(sample)
        taken.append(route)
    return torch.cat(samples), torch.cat(taken, dim=1)  # [B, C, F, H, W], [L, B, N]


@contextmanager
def _captured(model: torch.nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Outputs of submodules, gathered by forward hooks; one entry per call of the model."""
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs[name].append(output.detach())
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _metadata(specs: Sequence[TensorSpec]) -> TensorMetadata:
    metadata = TensorMetadata()
    for spec in specs:
        shape = tuple(size if isinstance(size, int) else -1 for size in spec.shape)
        dtype = np.dtype(np.int32) if spec.dtype == "int32" else np.dtype(np.float32)
        metadata.add(spec.name, dtype=dtype, shape=shape)
    return metadata


def _widened(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floats as float32, which holds every float16 and bfloat16 exactly."""
    return array if array.dtype.kind in "iub" else array.astype(np.float32)


def _narrowed(array: Any, dtype: str) -> np.ndarray[Any, Any]:
    return np.asarray(array).astype(numpy_dtype(dtype))
