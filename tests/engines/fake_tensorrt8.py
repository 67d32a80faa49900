# SPDX-License-Identifier: Apache-2.0
"""The part of TensorRT 8.6's Python module that a build uses. It has what 8.6 has, and nothing that came later.

Its parser makes a layer per node, with the float types that TensorRT 8 reports: those of the inputs, and float32 for
the output of a plugin and for weights. The tensors of weights do not have the names of the file.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import onnx

from vorta_trt.plugins.operator_schema import OPERATORS, Element

__version__ = "8.6.0"
DataType = Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8"])
LayerType = Enum(
    "LayerType", ["CONSTANT", "CAST", "MATRIX_MULTIPLY", "ELEMENTWISE", "ACTIVATION", "SHUFFLE", "SOFTMAX", "PLUGIN_V2"]
)
BuilderFlag = IntEnum("BuilderFlag", ["FP16", "TF32", "OBEY_PRECISION_CONSTRAINTS"], start=0)
NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", ["EXPLICIT_BATCH"], start=0)
PREVIEWS = ["FASTER_DYNAMIC_SHAPES_0805", "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", "PROFILE_SHARING_0806"]
PreviewFeature = IntEnum("PreviewFeature", PREVIEWS, start=0)
ProfilingVerbosity = Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED"])
MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])
HardwareCompatibilityLevel = Enum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"])

ELEMENT_TYPES = {1: DataType.FLOAT, 10: DataType.HALF, 6: DataType.INT32, 7: DataType.INT32, 9: DataType.BOOL}
KINDS = {
    "MatMul": LayerType.MATRIX_MULTIPLY,
    "Add": LayerType.ELEMENTWISE,
    "Greater": LayerType.ELEMENTWISE,
    "Relu": LayerType.ACTIVATION,
    "Reshape": LayerType.SHUFFLE,
    "Softmax": LayerType.SOFTMAX,
    "Cast": LayerType.CAST,
    **dict.fromkeys(OPERATORS, LayerType.PLUGIN_V2),
}


class ILogger:
    pass


class Tensor:
    def __init__(self, name: str, dtype: DataType, shape: list[int] | None = None) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape or [-1, 1, 1, 16]


class Layer:
    """A layer that remembers the precision and the types that were set."""

    def __init__(
        self, name: str, kind: LayerType, inputs: list[Tensor], outputs: list[Tensor], operator: str = "RoutedAttention"
    ) -> None:
        self.name, self.type, self.metadata, self.operator = name, kind, "", operator
        self.inputs, self.outputs = inputs, outputs
        self.precision: DataType | None = None
        self.output_types: dict[int, DataType] = {}

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def set_output_type(self, index: int, dtype: DataType) -> None:
        self.output_types[index] = dtype


class IPluginV2Layer(Layer):
    @property
    def plugin(self) -> SimpleNamespace:
        return SimpleNamespace(plugin_namespace="vorta", plugin_type=self.operator, plugin_version="1")


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.layers: list[Layer] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        graph = onnx.load(path, load_external_data=False).graph
        tensors: dict[str, Tensor] = {}
        for index, weight in enumerate(graph.initializer):
            dtype = ELEMENT_TYPES[weight.data_type]
            told = DataType.FLOAT if dtype is DataType.HALF else dtype
            tensors[weight.name] = Tensor(f"(Unnamed Layer* {index}) [Constant]_output", told)
            self.network.layers.append(Layer(weight.name, LayerType.CONSTANT, [], [tensors[weight.name]]))
        for value in graph.input:
            dims = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
            tensors[value.name] = Tensor(value.name, ELEMENT_TYPES[value.type.tensor_type.elem_type], dims)
            self.network.inputs.append(tensors[value.name])
        for node in graph.node:
            inputs = [tensors[name] for name in node.input]
            dtypes = [DataType.BOOL if node.op_type == "Greater" else inputs[0].dtype]
            if node.op_type == "Cast":
                dtypes = [ELEMENT_TYPES[node.attribute[0].i]]
            elif node.domain:
                elements = [output.element for output in OPERATORS[node.op_type].output_tensors]
                dtypes = [DataType.INT32 if each is Element.FLOAT8_TOKENS else DataType.FLOAT for each in elements]
            outputs = [Tensor(name, dtype) for name, dtype in zip(node.output, dtypes, strict=True)]
            tensors |= {output.name: output for output in outputs}
            self.network.layers.append(Layer(node.name, KINDS[node.op_type], inputs, outputs, node.op_type))
        self.network.outputs = [tensors[value.name] for value in graph.output]
        return True


class BuilderConfig:
    def __init__(self) -> None:
        self.flags: set[BuilderFlag] = {BuilderFlag.TF32}
        self.previews: set[PreviewFeature] = set()
        self.tactic_sources = 31
        self.builder_optimization_level = 3
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.__dict__["closed"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "closed" in self.__dict__ and name not in self.__dict__:
            raise AttributeError(f"IBuilderConfig of TensorRT 8.6 has no {name}")
        self.__dict__[name] = value

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self.flags

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        (self.previews.add if enable else self.previews.discard)(feature)

    def get_preview_feature(self, feature: PreviewFeature) -> bool:
        return feature in self.previews

    def set_tactic_sources(self, sources: int) -> bool:
        self.tactic_sources = sources
        return True

    def add_optimization_profile(self, profile: Any) -> int:
        return 0


class Builder:
    """`Builder.last` is the latest builder, for a test to look at."""

    last: Builder

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        Builder.last = self

    def create_network(self, flags: int) -> Network:
        self.network = Network(flags)
        return self.network

    def create_builder_config(self) -> BuilderConfig:
        self.config = BuilderConfig()
        return self.config

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *arguments: None)

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes:
        info = SimpleNamespace(name="INFO")
        for line in ("Total Scratch Memory: 4096", "Total Activation Memory: 8192"):
            self.logger.log(info, line)
        return b"a plan of TensorRT 8.6"


class _Registry:
    """A registry that finds the plugin in any library that it loads."""

    def __init__(self) -> None:
        self.plugin_creator_list: list[Any] = []

    def load_library(self, path: str) -> object:
        self.plugin_creator_list.append(
            SimpleNamespace(plugin_namespace="vorta", name="RoutedAttention", plugin_version="1")
        )
        return object()


_registry = _Registry()


def get_plugin_registry() -> _Registry:
    return _registry


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    return True
