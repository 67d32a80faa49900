# SPDX-License-Identifier: Apache-2.0
"""TensorRT 10 and 11 where they cannot be run: every name exists, and the builder's calls have the right arguments.

The builder runs on a stand-in made of TensorRT 10.13's stub, every option once. The runtime's half is compared with the
lean runtime's bindings of 11.4, too; tests/runtime/executors/test_fake_tensorrt.py does so for its calls.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import safetensors.torch
import tensorrt_lean_bindings
import torch
from onnx import TensorProto

from vorta_trt.engines import build_engine, flavours
from vorta_trt.engines import plugin as plugin_module
from vorta_trt.engines.flavours import TensorRT, get_flavour
from vorta_trt.engines.refit import apply_refit
from vorta_trt.plugins.gpu import ComputeCapability, Device, DriverReport

from ..tensorrt_interface import Interface, read_bindings, tensorrt_10_13
from .strict_tensorrt import StrictTensorRT

ROOT = Path(__file__).resolve().parents[2]
HOPPER = Device("H100", ComputeCapability(9, 0), 80 * 2**30)
BUILDER = ["engines"]
RUNTIME = ["runtime/executors", "engines/plugin.py", "engines/logs.py", "engines/progress.py"]
#: Names of TensorRT-RTX and of TensorRT 8.6 alone, which the code asks for only there.
OF_OTHER_FLAVOURS = {
    "ComputeCapability",
    "ComputeCapability.CURRENT",
    "ComputeCapability.__members__",
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
}


# --- Names -------------------------------------------------------------------


def names_in(place: str) -> Iterator[str]:
    """Dotted names that the sources take from a TensorRT module, which they call `trt` or `flavour.module`."""
    path = ROOT / place
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            parts: list[str] = []
            while isinstance(node, ast.Attribute):
                parts.append(node.attr)
                node = node.value
            if "module" in parts and ast.unparse(node) in ("flavour", "self", "loaded", "bundle"):
                parts = parts[: parts.index("module")]
            elif not (isinstance(node, ast.Name) and node.id == "trt"):
                continue
            if parts:
                yield ".".join(reversed(parts))


def missing(places: list[str], interface: Interface) -> set[str]:
    names = {name for place in places for name in names_in(place)}
    assert len(names) > 10, names
    return {name for name in names if not interface.has(name) and name != "__version__"}


def test_the_sources_take_no_name_that_tensorrt_10_has_not() -> None:
    assert missing(BUILDER + RUNTIME, tensorrt_10_13()) - OF_OTHER_FLAVOURS == set()


def test_names_of_other_flavours_are_theirs_alone() -> None:
    assert {name for name in OF_OTHER_FLAVOURS if tensorrt_10_13().has(name)} == set()


def test_the_runtime_takes_no_name_that_the_lean_runtime_11_4_has_not() -> None:
    lean = read_bindings(tensorrt_lean_bindings)
    assert missing(RUNTIME, lean) - OF_OTHER_FLAVOURS == {"init_libnvinfer_plugins"}  # asked for only where it is


def test_the_lean_runtime_takes_the_plugin(run_python: Any) -> None:
    """Through the package's own code, on a machine without a GPU."""
    script = """
from vorta_trt.engines import plugin
from vorta_trt.engines.flavours import LeanRuntime
LeanRuntime.package = "tensorrt_lean_bindings"
flavour = LeanRuntime()
plugin.load_plugin(flavour)
assert plugin.registered(flavour.module) is not None
print(flavour.version)
"""
    result = run_python(script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("11.4.")


# --- Builds ------------------------------------------------------------------


class World:
    """What the stand-in's calls do: as much of a build as there has to be for the code to go through all of it."""

    def __init__(self) -> None:
        self.creators: list[Any] = []
        self.flags: set[Any] = set()
        self.features: set[Any] = set()
        self.layers: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.monitored: list[str] = []
        self.trt = StrictTensorRT(
            tensorrt_10_13(),
            {
                "get_plugin_registry": lambda: self.trt.make("IPluginRegistry", all_creators_recursive=self.creators),
                "IPluginRegistry.load_library": self.load_library,
                "OnnxParser.parse_from_file": lambda parser, path: self.parse(path),
                "OnnxParser.num_errors": lambda parser: 0,
                "INetworkDefinition.num_layers": lambda network: len(self.layers),
                "INetworkDefinition.get_layer": lambda network, index: self.layers[index],
                "INetworkDefinition.num_inputs": lambda network: len(self.inputs),
                "INetworkDefinition.get_input": lambda network, index: self.inputs[index],
                "INetworkDefinition.num_outputs": lambda network: len(self.outputs),
                "INetworkDefinition.get_output": lambda network, index: self.outputs[index],
                "ILayer.get_input": lambda layer, index: layer.__dict__["ends"][0][index],
                "ILayer.get_output": lambda layer, index: layer.__dict__["ends"][1][index],
                "ILayer.num_inputs": lambda layer: len(layer.__dict__["ends"][0]),
                "ILayer.num_outputs": lambda layer: len(layer.__dict__["ends"][1]),
                "IPluginV3.get_capability_interface": lambda plugin, kind: self.core(),
                "IBuilderConfig.set_flag": lambda config, flag: self.flags.add(flag),
                "IBuilderConfig.clear_flag": lambda config, flag: self.flags.discard(flag),
                "IBuilderConfig.get_flag": lambda config, flag: flag in self.flags,
                "IBuilderConfig.set_preview_feature": lambda config, feature, on: self.features.add(feature),
                "IBuilderConfig.get_preview_feature": lambda config, feature: feature in self.features,
                "ITimingCache.serialize": lambda cache: b"timings",
                "Builder.build_serialized_network_to_stream": self.build,
            },
        )

    def load_library(self, registry: Any, path: str) -> Any:
        self.creators.append(
            self.trt.make("IPluginCreatorV3One", name="RoutedAttention", plugin_namespace="vorta", plugin_version="1")
        )
        return object()

    def core(self) -> Any:
        return self.trt.make(
            "IPluginV3OneCore", plugin_name="RoutedAttention", plugin_namespace="vorta", plugin_version="1"
        )

    def parse(self, path: str) -> bool:
        """A layer for each node."""
        types = self.trt.DataType
        element = {TensorProto.BFLOAT16: types.BF16, TensorProto.INT32: types.INT32, TensorProto.INT64: types.INT64}
        graph = onnx.load(path, load_external_data=False).graph
        tensors: dict[str, Any] = {}
        for value in (*graph.input, *graph.output):
            shape = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
            dtype = element[value.type.tensor_type.elem_type]
            tensors[value.name] = self.trt.make("ITensor", name=value.name, dtype=dtype, shape=shape)
        for constant in graph.initializer:
            dtype = element[constant.data_type]
            tensors[constant.name] = self.trt.make("ITensor", name=constant.name, dtype=dtype, shape=[])
        for node in graph.node:
            plugin = node.op_type == "RoutedAttention"
            kind = self.trt.LayerType.PLUGIN_V3 if plugin else self.trt.LayerType.IDENTITY
            layer = self.trt.make("ILayer", name=node.name, type=kind, metadata=f"[ONNX Layer: {node.name}]")
            for name in node.output:
                tensors.setdefault(name, self.trt.make("ITensor", name=name, dtype=types.BF16, shape=[-1, 72, 2, 16]))
            layer.__dict__["ends"] = [[tensors[name] for name in names] for names in (node.input, node.output)]
            self.layers.append(layer)
        self.inputs = [tensors[value.name] for value in graph.input]
        self.outputs = [tensors[value.name] for value in graph.output]
        return True

    def build(self, builder: Any, network: Any, config: Any, writer: Any) -> bool:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        assert monitor.step_complete("Building", 0)
        monitor.phase_finish("Building")
        builder.values["logger"].log(self.trt.ILogger.Severity.INFO, "Total Activation Memory: 8192")
        return bool(writer.write(b"a plan of TensorRT 10.13") == 24)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The flavour on a machine with a GPU and TensorRT 10.13."""
    made, flavour = World(), get_flavour("tensorrt")
    made.trt._behaviours["Builder.__init__"] = lambda builder, logger: builder.values.update(logger=logger)
    monkeypatch.setattr(TensorRT, "version", "10.13.0.35")
    monkeypatch.setitem(flavour.__dict__, "module", made.trt)
    monkeypatch.setattr(flavours, "driver_report", lambda: DriverReport((HOPPER,), "13.0", None))
    flavour.__dict__.pop("logger", None)
    yield made
    flavour.__dict__.pop("logger", None)
    plugin_module._loaded.pop("tensorrt", None)


def test_a_build_with_every_option_makes_calls_that_tensorrt_10_takes(
    world: World, make_model: Any, tmp_path: Path
) -> None:
    model, events = make_model(tmp_path / "m.onnx"), []
    options: list[dict[str, Any]] = [
        {
            "progress": events.append,
            "workspace_gib": 1.5,
            "optimization_level": 2,
            "timing_cache": tmp_path / "t.cache",
        },
        {"timing_cache": tmp_path / "t.cache", "version_compatible": True, "refit": True, "plugin_in_plan": True},
        {"weight_streaming": True, "hardware_compatibility": "ampere_plus"},
        {"hardware_compatibility": "same_compute_capability"},
    ]
    for index, each in enumerate(options):
        world.layers, world.flags, world.features = [], set(), set()
        bundle = build_engine(model, tmp_path / f"{index}.bundle", tensorrt="tensorrt", **each)
        assert bundle.manifest.engine.memory.activations == 8192
        expected = {
            "version_compatible": "VERSION_COMPATIBLE",
            "refit": "REFIT",
            "weight_streaming": "WEIGHT_STREAMING",
        }
        for option, flag in expected.items():
            assert (flag in bundle.manifest.engine.flags) == (option in each)
    assert [event.step for event in events] == [0, 1, 2]
    assert (tmp_path / "t.cache").read_bytes() == b"timings"
    assert {
        "Builder.create_network", "IBuilderConfig.set_memory_pool_limit", "IBuilderConfig.set_timing_cache",
        "IBuilderConfig.hardware_compatibility_level", "IOptimizationProfile.set_shape",
        "IProgressMonitor.step_complete", "IPluginRegistry.load_library", "ILogger.log", "IStreamWriter.write",
        "IBuilderConfig.plugins_to_serialize",
    } <= world.trt.called  # fmt: skip


@pytest.mark.parametrize("version", ["10.13", "lean 11.4"])
def test_a_refit_makes_calls_that_tensorrt_takes(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {"one": torch.ones(2, 3, dtype=torch.bfloat16), "two": torch.ones(5)}
    safetensors.torch.save_file(values, tmp_path / "refit.safetensors")
    told: dict[str, int] = {}
    interface = tensorrt_10_13() if version == "10.13" else read_bindings(tensorrt_lean_bindings)
    trt = StrictTensorRT(
        interface,
        {
            "Refitter.set_named_weights": lambda refitter, name, weights: told.setdefault(name, 1) == 1,
            "Weights.__init__": lambda weights, dtype, pointer, count: None,
        },
    )
    flavour = TensorRT()
    monkeypatch.setitem(flavour.__dict__, "module", trt)
    bundle: Any = SimpleNamespace(path=tmp_path, refit_path=tmp_path / "refit.safetensors")
    apply_refit(flavour, trt.make("ICudaEngine"), bundle)
    assert set(told) == set(values) and "Refitter.refit_cuda_engine" in trt.called


def test_the_stand_in_refuses_what_tensorrt_10_has_not(world: World) -> None:
    trt = world.trt
    builder = trt.Builder(get_flavour("tensorrt").logger)
    config = builder.create_builder_config()
    with pytest.raises(AttributeError, match=r"max_workspace_size that can be set"):
        config.max_workspace_size = 1  # of TensorRT 8
    with pytest.raises(AttributeError):
        builder.build_engine(None, config)
    with pytest.raises(TypeError, match=r"Builder.create_network"):
        builder.create_network(1, 2)
    with pytest.raises(TypeError, match="wants MemoryPoolType"):
        config.set_memory_pool_limit(0, 1)
    with pytest.raises(TypeError, match="wants int"):
        config.builder_optimization_level = "3"
    with pytest.raises(TypeError):
        type("Monitor", (trt.IProgressMonitor,), {"step_complete": lambda self, phase_name: True})
