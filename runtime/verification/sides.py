# SPDX-License-Identifier: Apache-2.0
"""Runs an engine, and the checkpoint in torch, on the same cases, and measures how far apart they are.

The sides run one after the other, and each is loaded only while it runs, so one model is in memory at a time. Inputs
(see `cases`) and outputs are kept in float32 or int32, which hold every value of the engine's types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.lora.fused import FusedReader
from vorta_trt.model.lora.spec import LoraSpec
from vorta_trt.model.precision import numpy_dtype, torch_dtype
from vorta_trt.runtime.engine import Engine
from vorta_trt.runtime.target import Target
from vorta_trt.runtime.tensors import TensorSpec, to_numpy
from vorta_trt.runtime.verification.cases import Case
from vorta_trt.runtime.verification.fp8 import measure_fp8
from vorta_trt.runtime.verification.fp8_linears import Fp8Products, linear_reports
from vorta_trt.runtime.verification.report import Fp8Report, LinearError, LinearReport, TensorError, limit

if TYPE_CHECKING:
    import torch

    from vorta_trt.model import RoutedTransformer

Outputs = Mapping[str, "np.ndarray[Any, Any]"]
Progress = Callable[[str], None]
ROUTES, SAMPLE = "routes", "sample"


@dataclass(frozen=True)
class Sides:
    """The outputs of one case.

    Attributes:
        engine: Outputs of the engine.
        truth: Outputs of torch in fp32.
        same_dtype: Outputs of torch in the engine's type, with the engine's fp8 products. None for an fp32 engine
            without fp8 products.
        fp8_attention: Whether the engine computed its attention in fp8.
        fp8_linears: What fp8 products of linear layers do to the model. None where the file has none, or modules are
            compared.
        fp8: What fp8 attention does to the model. None where the file does not ask for it, or modules are compared.
    """

    engine: Outputs
    truth: Outputs
    same_dtype: Outputs | None
    fp8_attention: bool = False
    fp8: Fp8Report | None = None
    fp8_linears: LinearReport | None = None

    def error(self, name: str, engine_name: str | None = None) -> TensorError:
        """How far the output `name` is from the truth, and what the rule allows; `engine_name` is its engine name."""
        truth = self.truth[name]
        max_abs, relative = _distance(self.engine[engine_name or name], truth)
        torch_max_abs, torch_relative = (
            (None, None) if self.same_dtype is None else _distance(self.same_dtype[name], truth)
        )
        return TensorError(
            name=name,
            max_abs=max_abs,
            relative_l2=relative,
            torch_max_abs=torch_max_abs,
            torch_relative_l2=torch_relative,
            limit=limit(torch_relative, self.fp8_attention),
        )

    def different(self, name: str) -> int:
        """How many elements of an integer output differ between the engine and torch in the engine's type."""
        expected = (self.same_dtype or self.truth)[name]
        given = self.engine[name]
        return int((given != expected).sum()) if given.shape == expected.shape else expected.size


@dataclass(frozen=True)
class Subject:
    """The file or bundle that is verified, and the checkpoint that it is compared with.

    Attributes:
        executor: Name of the executor that runs the target, as for `Engine`.
        lora: The LoRA files that are fused into the checkpoint.
        variant: Variant in the names of the checkpoint's weight files, as in diffusers.
        precision: Precision of the exported file.
        linear_keep: Patterns of the linear layers that are not in fp8; None if no layer is in fp8.
        geometry: The attention geometry that the file was exported for.
        tau: The routing threshold that the file was exported with.
        progress: Callback that is told what runs now.
    """

    target: Target
    checkpoint: Path
    router: Path | None
    lora: tuple[LoraSpec, ...]
    variant: str | None
    executor: str | None
    precision: str
    attention_precision: str
    linear_keep: tuple[str, ...] | None
    geometry: AttentionGeometry
    tau: float
    progress: Progress

    def fp8_attention(self, executor: str) -> bool:
        """Whether an executor computes attention in fp8. Only TensorRT does; all others run the exact portable form."""
        return self.attention_precision == "fp8" and executor == "tensorrt"

    def run(
        self, cases: Sequence[Case], load: Callable[[], Engine] | None = None, modules: Sequence[str] = ()
    ) -> tuple[str, list[Sides]]:
        """Runs the cases on an engine and on torch.

        Args:
            cases: The cases to run.
            load: Opens the engine; None opens the target.
            modules: Names of submodules whose outputs in torch are returned, too.

        Returns:
            The name of the executor that ran, and a `Sides` per case.
        """
        self.progress(f"running {self.target.path.name}")
        with (
            Engine(self.target.bundle or self.target.path, executor=self.executor) if load is None else load() as engine
        ):
            executor = engine.executor
            ours = [run_engine(engine, case) for case in cases]
        same: list[Outputs] | None = None
        pinned: list[np.ndarray[Any, Any]] | None = None
        fp8: list[Fp8Report] | None = None
        wants_fp8 = self.attention_precision == "fp8" and not modules
        products: list[LinearError] = []
        if self.precision != "fp32" or self.linear_keep is not None:
            model = self._torch(self.precision, self.linear_keep)
            with self._measured(model, products):
                same = run_torch(model, self.target.inputs, cases, modules=modules)
            pinned = [outputs[ROUTES] for outputs in same]
            fp8 = self._fp8(model, cases, same) if wants_fp8 else None
            del model  # only one model is in memory at a time
        model = self._torch("fp32")
        truth = run_torch(model, self.target.inputs, cases, pinned, modules)
        if wants_fp8 and fp8 is None:
            fp8 = self._fp8(model, cases, truth)
        linears: list[LinearReport] | None = None
        if same is not None and products and not modules:
            samples, exact_samples = ([outputs[SAMPLE] for outputs in side] for side in (same, truth))
            linears = linear_reports(products, samples, exact_samples)
        none = [None] * len(cases)
        in_fp8 = self.fp8_attention(executor)
        each = zip(ours, truth, same or none, fp8 or none, linears or none, strict=True)
        return executor, [
            Sides(engine, exact, own, in_fp8, report, products_report)
            for engine, exact, own, report, products_report in each
        ]

    @contextmanager
    def _measured(self, model: RoutedTransformer, errors: list[LinearError]) -> Iterator[None]:
        """Appends the errors of the fp8 products that run inside the block to `errors`."""
        if self.linear_keep is None:
            yield
            return
        component = self.target.key.component
        with FusedReader(self.checkpoint, self.lora, component=component, variant=self.variant) as reader:
            with Fp8Products(model, reader) as products:
                yield
            errors.extend(products.errors)

    def _fp8(self, model: RoutedTransformer, cases: Sequence[Case], exact: Sequence[Outputs]) -> list[Fp8Report]:
        """Runs the cases with fp8 attention, and measures how far each sample moves from `exact`."""
        self.progress("running torch with fp8 attention")
        return measure_fp8(
            lambda: [outputs[SAMPLE] for outputs in run_torch(model, self.target.inputs, cases)],
            [outputs[SAMPLE] for outputs in exact],
            model,
        )

    def _torch(self, precision: str, linear_keep: tuple[str, ...] | None = None) -> RoutedTransformer:
        from vorta_trt.model import RoutedTransformer

        self.progress(f"running torch in {precision}{'' if linear_keep is None else ' with fp8 products'}")
        dtype = torch_dtype(precision)
        return RoutedTransformer.from_pretrained(
            self.checkpoint,
            self.router,
            self.geometry,
            self.tau,
            dtype,
            component=self.target.key.component,
            lora=self.lora,
            variant=self.variant,
            linear_precision="same" if linear_keep is None else "fp8",
            linear_keep=linear_keep,
        )


def run_engine(engine: Engine, case: Case) -> Outputs:
    """Runs one case on an engine, with inputs in the types that the engine takes."""
    feeds = {spec.name: case.feeds[spec.name].astype(numpy_dtype(spec.dtype)) for spec in engine.inputs}
    return {name: _widened(to_numpy(array)) for name, array in engine(**feeds).items()}


def run_torch(
    model: RoutedTransformer,
    inputs: Sequence[TensorSpec],
    cases: Sequence[Case],
    pinned: Sequence[np.ndarray[Any, Any]] | None = None,
    modules: Sequence[str] = (),
) -> list[Outputs]:
    """Runs the cases on a model.

    Args:
        model: The checkpoint, in the type that it is to run in.
        inputs: Specs of the engine's inputs.
        cases: The cases to run.
        pinned: Routes [L, B, N] of each case, which replace the router's own; see `verify`.
        modules: Names of submodules whose outputs are returned, too, under these names.
    """
    import torch

    activations = next(spec.dtype for spec in inputs if spec.name == "hidden_states")
    found: list[Outputs] = []
    for index, case in enumerate(cases):
        tensors = {spec.name: torch.from_numpy(np.array(case.feeds[spec.name])) for spec in inputs}
        for spec in inputs:
            if spec.dtype == activations:
                tensors[spec.name] = tensors[spec.name].to(model.dtype)
        with torch.inference_mode(), _captured(model, modules) as captured:
            if pinned is None:
                sample, routes = model(**tensors)
            else:
                sample, routes = _sample_by_sample(model, tensors, pinned[index])
        outputs = {"sample": sample, ROUTES: routes, **{name: torch.cat(parts) for name, parts in captured.items()}}
        found.append({name: _widened(to_numpy(tensor)) for name, tensor in outputs.items()})
    return found


def _sample_by_sample(
    model: RoutedTransformer, tensors: dict[str, torch.Tensor], routes: np.ndarray[Any, Any]
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
    """Collects the outputs of submodules with forward hooks, by name; one list entry per call of the model."""
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs[name].append(_as_exported(module, output.detach()))
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _as_exported(module: torch.nn.Module, output: torch.Tensor) -> torch.Tensor:
    """A module's output in the shape of the graph, where the patch embedding is a matrix product: [B, S, E]."""
    from torch.nn import Conv3d

    return output.flatten(2).transpose(1, 2) if isinstance(module, Conv3d) else output


def _widened(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Converts floats to float32, which holds every float16 and bfloat16 value exactly."""
    return array if array.dtype.kind in "iub" else array.astype(np.float32)


def _distance(given: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Largest absolute difference, and |given - truth| / |truth|; inf if the sizes differ, nan if not finite."""
    if given.size != truth.size:
        return math.inf, math.inf
    difference = given.astype(np.float64).ravel() - truth.astype(np.float64).ravel()
    norm = float(np.linalg.norm(truth.astype(np.float64)))
    error = float(np.linalg.norm(difference))
    return float(np.abs(difference).max(initial=0.0)), error / norm if norm else (0.0 if error == 0.0 else math.inf)
