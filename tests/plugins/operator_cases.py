# SPDX-License-Identifier: Apache-2.0
"""A valid layer of every block operator, invalid variants of it, and how the plugin handles it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vorta_trt.plugins.operator_schema import (
    CROSS_ATTENTION,
    FP8_LINEAR,
    HEAD_NORM,
    JOINED_LINEAR,
    JOINED_QUANTIZE,
    LINEAR,
    NORM_MODULATE,
    NORM_MODULATE_QUANTIZE,
    QK_NORM_ROTARY,
    QUANTIZE,
    RESIDUAL_NORM_MODULATE,
    RESIDUAL_NORM_MODULATE_QUANTIZE,
    Operator,
)


@dataclass(frozen=True)
class Case:
    """A valid layer of an operator, and how the plugin handles it.

    Attributes:
        operator: The operator's row of the table of operators.
        fields: All fields of the layer, `TYPE:VALUES` by name, in order.
        inputs: The inputs in order, each `TYPE:EXTENTS`, with batch 2.
        outputs: Shapes of the outputs.
        open_outputs: Shapes of the outputs if the batch of the inputs is not known yet.
        params: Parameters that the kernels get, apart from memory.
        memory: The lines of the recording library about pointers, strides, workspace and stream.
        bad: Inputs by index that break a rule, and the message.
    """

    operator: Operator
    fields: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    open_outputs: tuple[str, ...]
    params: str
    memory: dict[str, str]
    bad: tuple[tuple[dict[int, str], str], ...] = field(default=())

    def arguments(self, changed: dict[int, str] | None = None, without: str = "", **fields: str) -> list[str]:
        """The driver's arguments, some inputs by index and fields by name changed, one field left out."""
        values = {**self.fields, **fields}
        inputs = [(changed or {}).get(index, text) for index, text in enumerate(self.inputs)]
        return [
            f"operator={self.operator.name}",
            *(f"field={name}:{value}" for name, value in values.items() if name != without),
            *(f"input={text}" for text in inputs),
        ]

    def node_attributes(self) -> dict[str, Any]:
        """The fields as attributes of an ONNX node."""
        read = {"int32": int, "float32": float, "string": str}
        texts = ((name, *value.split(":")) for name, value in self.fields.items())
        return {name: read[type_](text) for name, type_, text in texts}

    def with_open_batch(self) -> list[str]:
        """The driver's arguments with inputs whose batch TensorRT does not know yet."""
        opened = {index: text.replace(":2,", ":-1,", 1) for index, text in enumerate(self.inputs)}  # no other has 2
        return self.arguments(opened)


CASES = [
    Case(
        operator=QK_NORM_ROTARY,
        fields={"heads": "int32:3", "epsilon": "float32:0.25"},
        inputs=("float16:2,96,192", "float16:2,96,192", "float32:64", "float32:64", *["float32:1,96,1,32"] * 2),
        outputs=("2,96,3,64", "2,96,3,64"),
        open_outputs=("?,96,3,64", "?,96,3,64"),
        params="dtype=0 weight_float32=1 batch=2 token_count=96 heads=3 head_dim=64 weight_length=64 epsilon=0.25",
        memory={
            "pointers": "0x1000 0x2000 0x3000 0x4000 0x5000 0x6000 0x100000 0x110000",
            "query_stride": "18432,192",
            "key_stride": "18432,192",
            "query_output_stride": "18432,192",
            "key_output_stride": "18432,192",
            "stream": "0x300000",
        },
        bad=(
            ({1: "float16:2,95,192"}, "key [2, 95, 192]: must have shape of query = [2, 96, 192]"),
            ({2: "float32:32"}, "query_weight [32]: must have shape [features or head dimension] = [192 or 64]"),
            ({3: "float32:192"}, "key_weight [192]: must have shape of query_weight = [64]"),
            ({4: "float32:1,96,1,64"}, "cos [1, 96, 1, 64]: must have shape [1, tokens, 1, head dimension / 2]"),
            ({5: "float32:1,95,1,32"}, "sin [1, 95, 1, 32]: must have shape [1, tokens, 1, head dimension / 2]"),
        ),
    ),
    Case(
        operator=HEAD_NORM,
        fields={"heads": "int32:3", "epsilon": "float32:0.25"},
        inputs=("float16:2,96,192", "float16:192"),
        outputs=("2,96,3,64",),
        open_outputs=("?,96,3,64",),
        params="dtype=0 weight_float32=0 batch=2 token_count=96 heads=3 head_dim=64 weight_length=192 epsilon=0.25",
        memory={
            "pointers": "0x1000 0x2000 0x100000",
            "tokens_stride": "18432,192",
            "output_stride": "18432,192",
            "stream": "0x300000",
        },
        bad=(
            ({0: "float16:2,96,3,64"}, "tokens [2, 96, 3, 64]: must have shape [batch, tokens, features]"),
            ({0: "float16:2,96,190"}, "tokens has 190 features: must be a constant of the network that 3 heads divide"),
            ({0: "float16:2,96,-1"}, "tokens has an open number of features: must be a constant"),
            ({1: "float16:96"}, "weight [96]: must have shape [features or head dimension] = [192 or 64]"),
        ),
    ),
    Case(
        operator=NORM_MODULATE,
        fields={"epsilon": "float32:0.25", "first_tokens": "int32:8"},
        inputs=("float16:2,96,192", "float32:2,2,192", "float32:1,1,192"),
        outputs=("2,96,192",),
        open_outputs=("?,96,192",),
        params="dtype=0 batch=2 token_count=96 features=192 first_tokens=8 epsilon=0.25",
        memory={
            "pointers": "0x1000 0x100000",
            "quantized": "(nil) (nil)",
            "scale": "0x2000 384,192",
            "shift": "0x3000 0,0",
            "tokens_stride": "18432,192",
            "output_stride": "18432,192",
            "stream": "0x300000",
        },
        bad=(
            ({0: "float16:96,192"}, "tokens [96, 192]: must have shape [batch, tokens, features]"),
            ({1: "float32:3,2,192"}, "scale [3, 2, 192]: must have shape [batch or 1, 1 or 2, features] = [2 or 1, "),
            ({2: "float32:1,3,192"}, "shift [1, 3, 192]: must have shape [batch or 1, 1 or 2, features] = [2 or 1, "),
        ),
    ),
    Case(
        operator=RESIDUAL_NORM_MODULATE,
        fields={"epsilon": "float32:0.25", "first_tokens": "int32:8"},
        inputs=(*["float16:2,96,192"] * 2, "float32:2,2,192", "float32:1,2,192", "float32:2,1,192"),
        outputs=("2,96,192", "2,96,192"),
        open_outputs=("?,96,192", "?,96,192"),
        params="dtype=0 batch=2 token_count=96 features=192 first_tokens=8 epsilon=0.25",
        memory={
            "pointers": "0x1000 0x2000 0x100000 0x110000",
            "quantized": "(nil) (nil)",
            "gate": "0x3000 384,192",
            "scale": "0x4000 0,192",
            "shift": "0x5000 192,0",
            "residual_stride": "18432,192",
            "update_stride": "18432,192",
            "residual_output_stride": "18432,192",
            "output_stride": "18432,192",
            "stream": "0x300000",
        },
        bad=(
            ({1: "float16:1,96,192"}, "update [1, 96, 192]: must have shape of residual = [2, 96, 192]"),
            ({2: "float32:2,2,96"}, "gate [2, 2, 96]: must have shape [batch or 1, 1 or 2, features]"),
        ),
    ),
    Case(
        operator=QUANTIZE,
        fields={},
        inputs=("float16:2,96,192",),
        outputs=("2,96,48", "2,96"),
        open_outputs=("?,96,48", "?,96"),
        params="dtype=0 features=192 rows=192 second_features=0",
        memory={"pointers": "0x1000 0x100000 0x110000", "row strides": "192", "stream": "0x300000"},
        bad=(
            ({0: "float16:96,192"}, "tokens [96, 192]: must have shape [batch, tokens, features]"),
            ({0: "float16:2,96,-1"}, "tokens has an open number of features: must be a constant"),
        ),
    ),
    Case(
        operator=JOINED_QUANTIZE,
        fields={},
        inputs=("float16:2,96,128", "float16:2,96,192"),
        outputs=("2,96,80", "2,96"),
        open_outputs=("?,96,80", "?,96"),
        params="dtype=0 features=320 rows=192 second_features=192",
        memory={
            "pointers": "0x1000 0x100000 0x110000",
            "second": "0x2000 192",
            "row strides": "128",
            "stream": "0x300000",
        },
        bad=(
            ({0: "float16:96,128"}, "first [96, 128]: must have shape [batch, tokens, features]"),
            ({1: "float16:2,95,192"}, "second [2, 95, 192]: must have shape [batch, tokens, further features]"),
            ({1: "float16:2,96,-1"}, "second has an open number of features: must be a constant"),
        ),
    ),
    Case(
        operator=NORM_MODULATE_QUANTIZE,
        fields={"epsilon": "float32:0.25", "first_tokens": "int32:8"},
        inputs=("float16:2,96,192", "float32:2,2,192", "float32:1,1,192"),
        outputs=("2,96,48", "2,96"),
        open_outputs=("?,96,48", "?,96"),
        params="dtype=0 batch=2 token_count=96 features=192 first_tokens=8 epsilon=0.25",
        memory={
            "pointers": "0x1000 (nil)",
            "quantized": "0x100000 0x110000",
            "scale": "0x2000 384,192",
            "shift": "0x3000 0,0",
            "tokens_stride": "18432,192",
            "stream": "0x300000",
        },
        bad=(
            ({0: "float16:2,96,-1"}, "tokens has an open number of features: must be a constant"),
            ({1: "float32:3,2,192"}, "scale [3, 2, 192]: must have shape [batch or 1, 1 or 2, features] = [2 or 1, "),
        ),
    ),
    Case(
        operator=RESIDUAL_NORM_MODULATE_QUANTIZE,
        fields={"epsilon": "float32:0.25", "first_tokens": "int32:8"},
        inputs=(*["float16:2,96,192"] * 2, "float32:2,2,192", "float32:1,2,192", "float32:2,1,192"),
        outputs=("2,96,192", "2,96,48", "2,96"),
        open_outputs=("?,96,192", "?,96,48", "?,96"),
        params="dtype=0 batch=2 token_count=96 features=192 first_tokens=8 epsilon=0.25",
        memory={
            "pointers": "0x1000 0x2000 0x100000 (nil)",
            "quantized": "0x110000 0x120000",
            "gate": "0x3000 384,192",
            "scale": "0x4000 0,192",
            "shift": "0x5000 192,0",
            "residual_stride": "18432,192",
            "update_stride": "18432,192",
            "residual_output_stride": "18432,192",
            "stream": "0x300000",
        },
        bad=(({1: "float16:1,96,192"}, "update [1, 96, 192]: must have shape of residual = [2, 96, 192]"),),
    ),
    Case(
        operator=LINEAR,
        fields={"activation": "string:gelu_tanh"},
        inputs=("float16:2,96,192", "float16:64,192", "float16:64"),
        outputs=("2,96,64",),
        open_outputs=("?,96,64",),
        params="dtype=0 precision=0 activation=1 in_features=192 out_features=64 candidate=0 rows=192 "
        "second_features=0",
        memory={
            "pointers": "0x1000 (nil) 0x2000 (nil) 0x3000 0x100000",
            "row strides": "192,64",
            "workspace": "0x200000 3072",
            "stream": "0x300000",
        },
        bad=(
            ({0: "float16:96,192"}, "input [96, 192]: must have shape [batch, tokens, input features]"),
            ({1: "float16:192,64"}, "weight [192, 64]: must have shape [output features, input features] = [?, 192]"),
            ({2: "float16:192"}, "bias [192]: must have shape [output features] = [64]"),
        ),
    ),
    Case(
        operator=JOINED_LINEAR,
        fields={"activation": "string:none"},
        inputs=("float16:2,96,128", "float16:2,96,192", "float16:64,320", "float16:64"),
        outputs=("2,96,64",),
        open_outputs=("?,96,64",),
        params="dtype=0 precision=0 activation=0 in_features=320 out_features=64 candidate=0 rows=192 "
        "second_features=192",
        memory={
            "pointers": "0x1000 (nil) 0x3000 (nil) 0x4000 0x100000",
            "second": "0x2000 192",
            "row strides": "128,64",
            "workspace": "0x200000 3072",
            "stream": "0x300000",
        },
        bad=(
            ({0: "float16:96,128"}, "first [96, 128]: must have shape [batch, tokens, input features]"),
            ({1: "float16:2,95,192"}, "second [2, 95, 192]: must have shape [batch, tokens, further input features]"),
            ({2: "float16:64,192"}, "weight [64, 192]: must have shape [output features, input features of both]"),
            ({3: "float16:320"}, "bias [320]: must have shape [output features] = [64]"),
        ),
    ),
    Case(
        operator=FP8_LINEAR,
        fields={"activation": "string:none"},
        inputs=("int32:2,96,48", "float32:2,96", "int32:64,48", "float32:64", "float16:64"),
        outputs=("2,96,64",),
        open_outputs=("?,96,64",),
        params="dtype=0 precision=1 activation=0 in_features=192 out_features=64 candidate=0 rows=192 "
        "second_features=0",
        memory={
            "pointers": "0x1000 0x2000 0x3000 0x4000 0x5000 0x100000",
            "row strides": "192,64",
            "workspace": "0x200000 3072",
            "stream": "0x300000",
        },
        bad=(
            ({0: "int32:96,48"}, "input [96, 48]: must have shape [batch, tokens, input features / 4]"),
            ({1: "float32:2,95"}, "input_scale [2, 95]: must have shape [batch, tokens] = [2, 96]"),
            ({2: "int32:64,96"}, "weight [64, 96]: must have shape [output features, input features, or a fourth"),
            ({3: "float32:192"}, "weight_scale [192]: must have shape [output features] = [64]"),
            ({4: "float16:1"}, "bias [1]: must have shape [output features] = [64]"),
        ),
    ),
    Case(
        operator=CROSS_ATTENTION,
        fields={"scale": "float32:0.125"},
        inputs=("float16:2,96,3,64", "float16:2,7,3,64", "float16:2,7,3,64"),
        outputs=("2,96,3,64",),
        open_outputs=("?,96,3,64",),
        params="dtype=0 batch=2 query_tokens=96 key_tokens=7 heads=3 head_dim=64 scale=0.125 reserved=0",
        memory={
            "pointers": "0x1000 0x2000 0x3000 0x100000",
            "query_stride": "18432,192,64",
            "key_stride": "1344,192,64",
            "value_stride": "1344,192,64",
            "output_stride": "18432,192,64",
            "stream": "0x300000",
        },
        bad=(
            ({0: "float16:2,96,192"}, "query [2, 96, 192]: must have shape [batch, tokens, heads, head dimension]"),
            ({1: "float16:2,7,2,64"}, "key [2, 7, 2, 64]: must have shape [batch, key tokens, heads, head dimension]"),
            ({2: "float16:2,8,3,64"}, "value [2, 8, 3, 64]: must have shape of key = [2, 7, 3, 64]"),
        ),
    ),
]
