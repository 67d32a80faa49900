# SPDX-License-Identifier: Apache-2.0
"""Identity, tensors and attributes of every operator: the table that everything in Python is made from.

The ONNX schemas, the torch operators, the C API's structures and the checks of exported files read it. The fields of
the plugins (`plugins/tensorrt/`) are the same table in C++; a test compares the two.

Letters: B batch, X tokens, Y tokens of the keys, N heads, D head dimension, E = N * D, M rows of a modulation (1, or 2
where the first tokens have one of their own), K and O features before and after a product, J those of a first input,
C features of any token, P ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, get_args

CoresetKeys = Literal["query", "key"]
AttentionPrecision = Literal["same", "fp8"]
LinearPrecision = Literal["same", "fp8"]
Activation = Literal["none", "gelu_tanh"]
BlockOps = Literal["native", "plugin"]  # how an engine computes the block operators

SAME_PRECISION: AttentionPrecision = "same"
PLUGIN_ATTRIBUTES = ("plugin_namespace", "plugin_version")
"""Attributes of an ONNX node by which TensorRT finds the plugin; without them a function body in the file wins."""
MOST_TOKENS = (1 << 31) - 1024  # video and text tokens together; the kernels count them in 32 bits
LARGEST_BUCKET = 64  # tokens that a bucket may have in the kernels; the portable form takes any


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
        name: Its name in ONNX files, plugin fields, the torch operator and the C API.
        kind: Its type.
        doc: Its meaning, in words.
        default: Value that its absence means in an ONNX file; None if it is required.
        choices: The strings of a CHOICE.
        least: The smallest value of a number, if it has one.
    """

    name: str
    kind: Kind
    doc: str
    default: Any = None
    choices: tuple[str, ...] = ()
    least: int | None = None


class Element(Enum):
    """Types of a tensor's elements.

    Attributes:
        TOKENS: Float16, bfloat16 or float32, the same for every such tensor of a call.
        WEIGHT: The type of the tokens, or float32.
        FLOAT32: Float32.
        INT32: Int32.
        FLOAT8: Float8 e4m3; in files of opset 17, which has no such type, four of them in an int32.
        FLOAT8_TOKENS: Float8 e4m3 of activations, in files like FLOAT8. In TensorRT, plugins always pass them to each
            other as int32.
    """

    TOKENS = "tokens"
    WEIGHT = "weight"
    FLOAT32 = "float32"
    INT32 = "int32"
    FLOAT8 = "float8"
    FLOAT8_TOKENS = "float8 tokens"


@dataclass(frozen=True)
class OperatorTensor:
    """An input or output of an operator.

    Attributes:
        name: Its name in ONNX files and in the torch operator.
        shape: Its shape, in the letters of this file.
        element: Type of its elements.
        optional: Whether an input may be missing.
    """

    name: str
    shape: str
    element: Element = Element.TOKENS
    optional: bool = False


@dataclass(frozen=True)
class Operator:
    """An operator: an ONNX node, a TensorRT plugin and a torch operator.

    Attributes:
        name: Name of the ONNX node and the plugin.
        torch_name: Name of the torch operator, whose arguments are the inputs, then the attributes.
        doc: What it computes.
        input_tensors: Its inputs, in order.
        output_tensors: Its outputs, in order.
        attributes: Its attributes, in the order of the plugin's fields.
        namespace: ONNX domain, plugin namespace and torch namespace.
        version: Version of the plugin and, as a number, of the ONNX domain; a change of meaning raises it.
        is_portable: Whether standard ONNX operators can express it. They cannot express an exchange between GPUs.
    """

    name: str
    torch_name: str
    doc: str
    input_tensors: tuple[OperatorTensor, ...]
    output_tensors: tuple[OperatorTensor, ...]
    attributes: tuple[Attribute, ...]
    namespace: str = "vorta"
    version: str = "1"
    is_portable: bool = True

    def __str__(self) -> str:
        return f"{self.namespace}::{self.name}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        return tuple(tensor.name for tensor in self.input_tensors)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs in order."""
        return tuple(tensor.name for tensor in self.output_tensors)

    @property
    def activation_input(self) -> int:
        """Index of the first input in the type of the activations."""
        return next(i for i, tensor in enumerate(self.input_tensors) if tensor.element is Element.TOKENS)

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


_HEADS = Attribute("heads", Kind.INTEGER, "N", least=1)
_EPSILON = Attribute("epsilon", Kind.NUMBER, "what is added to the mean of squares, or to the variance", least=0)
_FIRST_TOKENS = Attribute(
    "first_tokens", Kind.INTEGER, "tokens that take the first row of a modulation of two rows", 0, least=0
)
_ACTIVATION = Attribute(
    "activation", Kind.CHOICE, "what follows the product and its bias", "none", get_args(Activation)
)
_SCALE_SHIFT = (
    OperatorTensor("scale", "[B or 1, M, E]", Element.FLOAT32),
    OperatorTensor("shift", "[B or 1, M, E]", Element.FLOAT32),
)

ROUTED_ATTENTION = Operator(
    name="RoutedAttention",
    torch_name="routed_attention",
    doc="VORTA routed attention; see vorta_trt.model.operator",
    input_tensors=(
        OperatorTensor("query", "[B, S+T, N, D]"),
        OperatorTensor("key", "[B, S+T, N, D]"),
        OperatorTensor("value", "[B, S+T, N, D]"),
        OperatorTensor("routes", "[B, N] branch ids", Element.INT32),
        OperatorTensor("text_length", "[B] valid text tokens", Element.INT32, optional=True),  # where text_tokens > 0
    ),
    output_tensors=(OperatorTensor("output", "[B, S+T, N, D]"),),
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

ULYSSES_ATTENTION = Operator(
    name="UlyssesAttention",
    torch_name="ulysses_attention",
    doc="RoutedAttention of tokens on P ranks, heads exchanged around it; a rank has X of the S video tokens",
    input_tensors=(
        OperatorTensor("query", "[B, X+T, N, D]"),
        OperatorTensor("key", "[B, X+T, N, D]"),
        OperatorTensor("value", "[B, X+T, N, D]"),
        OperatorTensor("routes", "[B, N] branch ids", Element.INT32),
        OperatorTensor("head_order", "[N] heads, N/P for each rank in turn", Element.INT32),
        OperatorTensor("text_length", "[B] valid text tokens", Element.INT32, optional=True),  # where text_tokens > 0
    ),
    output_tensors=(OperatorTensor("output", "[B, X+T, N, D]"),),
    attributes=(*ROUTED_ATTENTION.attributes, Attribute("ranks", Kind.INTEGER, "P, a divisor of N", least=1)),
    is_portable=False,
)

GATHER_TOKENS = Operator(
    name="GatherTokens",
    torch_name="gather_tokens",
    doc="the tokens of all ranks, of which each has X, the last ranks with padding behind their own",
    input_tensors=(OperatorTensor("input", "[B, X, C]"),),
    output_tensors=(OperatorTensor("output", "[B, S, C]"),),
    attributes=(
        Attribute("tokens", Kind.INTEGER, "S", least=1),
        Attribute("ranks", Kind.INTEGER, "P", least=1),
    ),
    is_portable=False,
)

QK_NORM_ROTARY = Operator(
    name="QKNormRotary",
    torch_name="qk_norm_rotary",
    doc="RMS norm of query and key, over all heads or each head as the weights are long, and rotation of their pairs",
    input_tensors=(
        OperatorTensor("query", "[B, X, E]"),
        OperatorTensor("key", "[B, X, E]"),
        OperatorTensor("query_weight", "[E] or [D]", Element.WEIGHT),
        OperatorTensor("key_weight", "[E] or [D]", Element.WEIGHT),
        OperatorTensor("cos", "[1, X, 1, D/2]", Element.FLOAT32),
        OperatorTensor("sin", "[1, X, 1, D/2]", Element.FLOAT32),
    ),
    output_tensors=(OperatorTensor("query_output", "[B, X, N, D]"), OperatorTensor("key_output", "[B, X, N, D]")),
    attributes=(_HEADS, _EPSILON),
)

HEAD_NORM = Operator(
    name="HeadNorm",
    torch_name="head_norm",
    doc="RMS norm, over all heads or each head as the weight is long",
    input_tensors=(OperatorTensor("tokens", "[B, X, E]"), OperatorTensor("weight", "[E] or [D]", Element.WEIGHT)),
    output_tensors=(OperatorTensor("output", "[B, X, N, D]"),),
    attributes=(_HEADS, _EPSILON),
)

NORM_MODULATE = Operator(
    name="NormModulate",
    torch_name="norm_modulate",
    doc="LayerNorm without weight, times scale (which includes the 1), plus shift",
    input_tensors=(OperatorTensor("tokens", "[B, X, E]"), *_SCALE_SHIFT),
    output_tensors=(OperatorTensor("output", "[B, X, E]"),),
    attributes=(_EPSILON, _FIRST_TOKENS),
)

RESIDUAL_NORM_MODULATE = Operator(
    name="ResidualNormModulate",
    torch_name="residual_norm_modulate",
    doc="residual + update * gate, and NormModulate of it",
    input_tensors=(
        OperatorTensor("residual", "[B, X, E]"),
        OperatorTensor("update", "[B, X, E]"),
        OperatorTensor("gate", "[B or 1, M, E]", Element.FLOAT32),
        *_SCALE_SHIFT,
    ),
    output_tensors=(OperatorTensor("residual_output", "[B, X, E]"), OperatorTensor("output", "[B, X, E]")),
    attributes=(_EPSILON, _FIRST_TOKENS),
)

_QUANTIZED = (
    OperatorTensor("quantized", "[B, X, E]", Element.FLOAT8_TOKENS),
    OperatorTensor("quantized_scale", "[B, X]", Element.FLOAT32),
)

QUANTIZE = Operator(
    name="Quantize",
    torch_name="quantize",
    doc="tokens in e4m3, each over a scale of its own: its largest magnitude / 448, or 1 if that is 0",
    input_tensors=(OperatorTensor("tokens", "[B, X, E]"),),
    output_tensors=_QUANTIZED,
    attributes=(),
)

JOINED_QUANTIZE = Operator(
    name="JoinedQuantize",
    torch_name="joined_quantize",
    doc="Quantize of two inputs whose features lie side by side, with one scale of both",
    input_tensors=(OperatorTensor("first", "[B, X, J]"), OperatorTensor("second", "[B, X, K]")),
    output_tensors=(
        OperatorTensor("quantized", "[B, X, J + K]", Element.FLOAT8_TOKENS),
        OperatorTensor("quantized_scale", "[B, X]", Element.FLOAT32),
    ),
    attributes=(),
)

NORM_MODULATE_QUANTIZE = Operator(
    name="NormModulateQuantize",
    torch_name="norm_modulate_quantize",
    doc="NormModulate, and Quantize of its output",
    input_tensors=NORM_MODULATE.input_tensors,
    output_tensors=_QUANTIZED,
    attributes=NORM_MODULATE.attributes,
)

RESIDUAL_NORM_MODULATE_QUANTIZE = Operator(
    name="ResidualNormModulateQuantize",
    torch_name="residual_norm_modulate_quantize",
    doc="ResidualNormModulate, and Quantize of its second output",
    input_tensors=RESIDUAL_NORM_MODULATE.input_tensors,
    output_tensors=(RESIDUAL_NORM_MODULATE.output_tensors[0], *_QUANTIZED),
    attributes=RESIDUAL_NORM_MODULATE.attributes,
)

LINEAR = Operator(
    name="Linear",
    torch_name="linear",
    doc="a product with a weight in torch's layout, a bias and an activation",
    input_tensors=(
        OperatorTensor("input", "[B, X, K]"),
        OperatorTensor("weight", "[O, K]"),
        OperatorTensor("bias", "[O]"),
    ),
    output_tensors=(OperatorTensor("output", "[B, X, O]"),),
    attributes=(_ACTIVATION,),
)

JOINED_LINEAR = Operator(
    name="JoinedLinear",
    torch_name="joined_linear",
    doc="Linear of two inputs whose features lie side by side, without a copy of both",
    input_tensors=(
        OperatorTensor("first", "[B, X, J]"),
        OperatorTensor("second", "[B, X, K]"),
        OperatorTensor("weight", "[O, J + K]"),
        OperatorTensor("bias", "[O]"),
    ),
    output_tensors=(OperatorTensor("output", "[B, X, O]"),),
    attributes=(_ACTIVATION,),
)

FP8_LINEAR = Operator(
    name="Fp8Linear",
    torch_name="fp8_linear",
    doc="Linear of quantised tokens: products of e4m3, scaled by token and by output feature",
    input_tensors=(
        OperatorTensor("input", "[B, X, K]", Element.FLOAT8_TOKENS),
        OperatorTensor("input_scale", "[B, X]", Element.FLOAT32),
        OperatorTensor("weight", "[O, K], or [O, K/4] as int32", Element.FLOAT8),
        OperatorTensor("weight_scale", "[O]", Element.FLOAT32),
        OperatorTensor("bias", "[O]"),
    ),
    output_tensors=(OperatorTensor("output", "[B, X, O]"),),
    attributes=(_ACTIVATION,),
)

CROSS_ATTENTION = Operator(
    name="CrossAttention",
    torch_name="cross_attention",
    doc="attention of the tokens of one sequence to those of another",
    input_tensors=(
        OperatorTensor("query", "[B, X, N, D]"),
        OperatorTensor("key", "[B, Y, N, D]"),
        OperatorTensor("value", "[B, Y, N, D]"),
    ),
    output_tensors=(OperatorTensor("output", "[B, X, N, D]"),),
    attributes=(Attribute("scale", Kind.NUMBER, "factor of the logits; 0 for 1/sqrt(D)", 0.0, least=0),),
)

BLOCK_OPERATORS = (
    QK_NORM_ROTARY,
    HEAD_NORM,
    NORM_MODULATE,
    RESIDUAL_NORM_MODULATE,
    QUANTIZE,
    JOINED_QUANTIZE,
    NORM_MODULATE_QUANTIZE,
    RESIDUAL_NORM_MODULATE_QUANTIZE,
    LINEAR,
    JOINED_LINEAR,
    FP8_LINEAR,
    CROSS_ATTENTION,
)
"""The operators that a transformer computes between its routed attentions."""

UNQUANTIZED = {NORM_MODULATE_QUANTIZE.name: NORM_MODULATE, RESIDUAL_NORM_MODULATE_QUANTIZE.name: RESIDUAL_NORM_MODULATE}
"""Name of a norm that quantises -> the same norm without quantisation."""

QUANTIZING = (QUANTIZE.name, JOINED_QUANTIZE.name, *UNQUANTIZED)
"""Names of the operators whose outputs are quantised tokens."""

AROUND_BLOCKS = (ROUTED_ATTENTION.name, ULYSSES_ATTENTION.name, GATHER_TOKENS.name)
"""Names of the operators that are no block operators: an engine always has their plugins."""

ROUTED_ATTENTIONS = (ROUTED_ATTENTION.name, ULYSSES_ATTENTION.name)
"""Names of the operators that the self-attention of a layer may be."""

OPERATORS = {
    operator.name: operator for operator in (ROUTED_ATTENTION, ULYSSES_ATTENTION, GATHER_TOKENS, *BLOCK_OPERATORS)
}
"""All operators by name."""


def choices(name: str) -> tuple[str, ...]:
    """Values that the attribute `name` of `ROUTED_ATTENTION` may have; the index is the C API's value."""
    return next(attribute.choices for attribute in ROUTED_ATTENTION.attributes if attribute.name == name)
