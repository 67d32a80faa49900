# SPDX-License-Identifier: Apache-2.0
"""Identity, inputs and attributes of the operator: the table that everything in Python is made from.

The ONNX schema, the torch operator, the C API's structure and the checks of exported files read it.
`plugins/tensorrt/field_list.h` is the same table for the plugin; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, get_args

CoresetKeys = Literal["query", "key"]
AttentionPrecision = Literal["same", "fp8"]

SAME_PRECISION: AttentionPrecision = "same"
PLUGIN_ATTRIBUTES = ("plugin_namespace", "plugin_version")
MOST_TOKENS = (1 << 31) - 1024  # of video and text together; the kernels count them in 32 bits
LARGEST_BUCKET = 64  # tokens that a bucket may have in the kernels; the portable form takes any
"""Attributes of an ONNX node by which TensorRT finds the plugin; without them a function body in the file wins."""


class Kind(Enum):
    """Types of attributes.

    Attributes:
        TRIPLE: Three integers: frame, height, width.
        INTEGER: One integer of 32 bits.
        NUMBER: One float32.
        CHOICE: One of some strings; the C API takes its index.
    """

    TRIPLE = "int[]"
    INTEGER = "int"
    NUMBER = "float"
    CHOICE = "str"


@dataclass(frozen=True)
class Attribute:
    """One attribute of an operator.

    Attributes:
        name: In ONNX files, plugin fields, the torch operator and the C API alike.
        kind: Its type.
        doc: What it says.
        default: What its absence means in an ONNX file; None if it must be there.
        choices: The strings of a CHOICE.
    """

    name: str
    kind: Kind
    doc: str
    default: Any = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operator:
    """An operator: an ONNX node, a TensorRT plugin and a torch operator.

    Attributes:
        name: Name of the ONNX node and the plugin.
        namespace: ONNX domain, plugin namespace and torch namespace.
        version: Version of the plugin and, as a number, of the ONNX domain; a change of meaning raises it.
        inputs: Names in order.
        output: Name of the output.
        attributes: In the order of the plugin's fields.
    """

    name: str
    namespace: str
    version: str
    inputs: tuple[str, ...]
    output: str
    attributes: tuple[Attribute, ...]

    def __str__(self) -> str:
        return f"{self.namespace}::{self.name}"

    @property
    def node_type(self) -> tuple[str, str]:
        """Domain and op_type of its ONNX nodes."""
        return self.namespace, self.name

    @property
    def selection(self) -> dict[str, str]:
        """The values of `PLUGIN_ATTRIBUTES`."""
        return dict(zip(PLUGIN_ATTRIBUTES, (self.namespace, self.version), strict=True))

    @property
    def node_attributes(self) -> tuple[str, ...]:
        """Names of everything that an exported ONNX node carries."""
        return (*(attribute.name for attribute in self.attributes), *PLUGIN_ATTRIBUTES)


ROUTED_ATTENTION = Operator(
    name="RoutedAttention",
    namespace="vorta",
    version="1",
    inputs=("query", "key", "value", "routes", "text_length"),  # the last only where text_tokens > 0
    output="output",
    attributes=(
        Attribute("grid", Kind.TRIPLE, "token grid"),
        Attribute("tile", Kind.TRIPLE, "tokens of a sliding tile"),
        Attribute("window", Kind.TRIPLE, "sliding window in tiles, odd along each axis"),
        Attribute("bucket", Kind.TRIPLE, "tokens of a coreset bucket"),
        Attribute("keep", Kind.INTEGER, "tokens of a bucket that stay, its centre included"),
        Attribute(
            "coreset_keys", Kind.CHOICE, "whose similarities choose the kept keys", "query", get_args(CoresetKeys)
        ),
        Attribute("text_tokens", Kind.INTEGER, "padded text tokens behind the video tokens", 0),
        Attribute("scale", Kind.NUMBER, "factor of the logits; 0 for 1/sqrt(head dimension)", 0.0),
        Attribute(
            "attention_precision",
            Kind.CHOICE,
            "what the kernels may multiply in: the type of the inputs, or 8 bits",
            SAME_PRECISION,
            get_args(AttentionPrecision),
        ),
    ),
)


def choices(name: str) -> tuple[str, ...]:
    """What the attribute `name` of `ROUTED_ATTENTION` may say; the index is the C API's value."""
    return next(attribute.choices for attribute in ROUTED_ATTENTION.attributes if attribute.name == name)
