# SPDX-License-Identifier: Apache-2.0
"""Times per layer of an engine, measured by TensorRT (IProfiler), as a table by module and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from vorta_trt.engines.layers import engine_information, onnx_nodes
from vorta_trt.engines.modules import module_of_layer
from vorta_trt.model.tables import percent, table_lines

if TYPE_CHECKING:
    from vorta_trt.runtime.executors.loaded_engine import LoadedEngine
    from vorta_trt.runtime.executors.shaped_context import ShapedContext

WARM_UP = 2


class LayerTime(BaseModel):
    """One layer of the engine.

    Attributes:
        module: The module of the model that the layer belongs to, such as "blocks.*.attn1"; "" for none.
        milliseconds: Time of the layer, median over the runs.
    """

    name: str
    module: str
    milliseconds: float


class ModuleTime(BaseModel):
    """Time of all layers of a module, over all blocks that repeat it.

    Attributes:
        share: Share of the sum over all layers, from 0 to 1.
    """

    name: str
    layers: int
    milliseconds: float
    share: float


class LayerTimes(BaseModel):
    """The result of `Engine.profile`.

    A profiled run launches layer by layer and waits at its end, which is slower than a replayed CUDA graph. So only the
    shares are meaningful; take the time of a call from a benchmark.

    Attributes:
        runs: Number of measured runs.
        milliseconds: Sum of the medians of all layers.
        modules: Times by module, slowest first.
    """

    runs: int
    milliseconds: float
    layers: list[LayerTime]
    modules: list[ModuleTime]

    def lines(self, most: int = 20) -> Iterator[str]:
        """The modules as a table."""
        yield f"{self.milliseconds:.3f} ms in {len(self.layers)} layers, median of {self.runs} runs"
        shown, rest = self.modules[:most], self.modules[most:]
        rows = [(m.milliseconds, m.share, f"{m.name or '(no module)'}, {m.layers} layers") for m in shown]
        if rest:
            spent = sum(module.milliseconds for module in rest)
            rows.append((spent, sum(module.share for module in rest), f"{len(rest)} more modules"))
        cells = [(f"{milliseconds:.3f} ms", percent(share), what) for milliseconds, share, what in rows]
        yield from table_lines(("", "", ""), cells, left=-1)


def measure_layers(loaded: LoadedEngine, shaped: ShapedContext, repeats: int, run: Callable[[], object]) -> LayerTimes:
    """Measures the layers over `repeats` calls of `run`, which launches `shaped`, after a few calls to warm up.

    Raises:
        ValueError: `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats {repeats}: must be 1 or more")
    for _ in range(WARM_UP):
        run()
    profiler = _profiler(loaded.flavour.module)
    shaped.profile_with(profiler)
    run()  # the first run with a profiler prepares it
    profiler.times.clear()
    for _ in range(repeats):
        run()
    return summarise(profiler.times, _nodes_of_layers(loaded), repeats)


def summarise(times: dict[str, list[float]], nodes: dict[str, list[str]], repeats: int) -> LayerTimes:
    """Sums the measured times up by layer and by module.

    Args:
        times: Layer name -> its times in all runs.
        nodes: Layer name -> the ONNX nodes in it, where TensorRT reports them.
        repeats: Number of runs.
    """
    layers = [
        # A layer may report several times per run, one for each of its parts; these are added.
        LayerTime(name=name, module=module_of_layer(nodes.get(name) or [name]), milliseconds=_median(spent, repeats))
        for name, spent in times.items()
    ]
    total = sum(layer.milliseconds for layer in layers)
    modules: dict[str, ModuleTime] = {}
    for layer in layers:
        module = modules.setdefault(layer.module, ModuleTime(name=layer.module, layers=0, milliseconds=0, share=0))
        module.layers += 1
        module.milliseconds += layer.milliseconds
    for module in modules.values():
        module.share = module.milliseconds / total if total else 0.0
    ordered = sorted(modules.values(), key=lambda module: -module.milliseconds)
    return LayerTimes(runs=repeats, milliseconds=total, layers=layers, modules=ordered)


def _median(spent: list[float], repeats: int) -> float:
    parts = len(spent) // repeats
    if parts * repeats != len(spent) or parts == 0:
        return sum(spent) / repeats
    return statistics.median(sum(spent[run * parts : (run + 1) * parts]) for run in range(repeats))


def _profiler(trt: Any) -> Any:
    class Recorder(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(ms)

    return Recorder()


def _nodes_of_layers(loaded: LoadedEngine) -> dict[str, list[str]]:
    information = engine_information(loaded.flavour.module, loaded.engine) or {}
    return {
        layer["Name"]: onnx_nodes(layer.get("Metadata"))
        for layer in information.get("Layers", [])
        if isinstance(layer, dict) and "Name" in layer  # without detailed profiling, layers are plain names
    }
