# SPDX-License-Identifier: Apache-2.0
"""Every operator's plugin, as TensorRT 8.6 and the newer ones drive it: fields, formats, shapes, launch. No GPU.

RoutedAttention's rules and messages, and the reading of fields, which all operators share, are tested in
`test_plugin_fields.py`, `test_plugin_shapes.py` and `test_plugin_v2.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from vorta_trt.plugins.operator_schema import (
    BLOCK_OPERATORS,
    CROSS_ATTENTION,
    FP8_LINEAR,
    HEAD_NORM,
    LINEAR,
    NORM_MODULATE,
    QK_NORM_ROTARY,
    RESIDUAL_NORM_MODULATE,
    Element,
    Operator,
)

ALONE = {  # types that a plugin takes for a tensor of each kind, with a first activation of float16
    Element.TOKENS: ("float16",),
    Element.WEIGHT: ("float16", "float32"),
    Element.FLOAT32: ("float32",),
    Element.INT32: ("int32",),
    Element.FLOAT8: ("float8", "int32"),
}


@dataclass(frozen=True)
class Case:
    """A valid layer of an operator, and what the plugin makes of it.

    Attributes:
        operator: Its row of the table.
        fields: All of its fields, `TYPE:VALUES` by name, in order.
        inputs: `TYPE:EXTENTS` in order, of batch 2.
        outputs: Shapes of the outputs.
        open_outputs: The same where the batch of the inputs is not known yet.
        params: What the kernels are told, apart from memory.
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

    def with_open_batch(self) -> list[str]:
        """The same with inputs whose batch TensorRT does not know yet."""
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
        operator=LINEAR,
        fields={"activation": "string:gelu_tanh"},
        inputs=("float16:2,96,192", "float16:64,192", "float16:64"),
        outputs=("2,96,64",),
        open_outputs=("?,96,64",),
        params="dtype=0 precision=0 activation=1 in_features=192 out_features=64 candidate=0 rows=192",
        memory={
            "pointers": "0x1000 (nil) (nil) 0x2000 (nil) 0x3000 0x100000",
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
        operator=FP8_LINEAR,
        fields={"activation": "string:none"},
        inputs=("float16:2,96,192", "int32:64,48", "float32:64", "float16:64"),
        outputs=("2,96,64",),
        open_outputs=("?,96,64",),
        params="dtype=0 precision=1 activation=0 in_features=192 out_features=64 candidate=0 rows=192",
        memory={
            "pointers": "0x1000 (nil) (nil) 0x2000 0x3000 0x4000 0x100000",
            "row strides": "192,64",
            "workspace": "0x200000 3072",
            "stream": "0x300000",
        },
        bad=(
            ({1: "int32:64,96"}, "weight [64, 96]: must have shape [output features, input features, or a fourth"),
            ({2: "float32:192"}, "weight_scale [192]: must have shape [output features] = [64]"),
            ({3: "float16:1"}, "bias [1]: must have shape [output features] = [64]"),
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
BAD = [(case, changed, message) for case in CASES for changed, message in case.bad]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.operator.name)
every_bad_shape = pytest.mark.parametrize(
    ("case", "changed", "message"), BAD, ids=[f"{case.operator.name} {message[:30]}" for case, _, message in BAD]
)
both = pytest.mark.parametrize("version", ["recording_driver", "driver8"], ids=["V3", "8.6"])


@pytest.fixture
def host(request: pytest.FixtureRequest, version: str) -> Any:
    """The TensorRT that drives the recording library."""
    return request.getfixturevalue(version)


def test_every_block_operator_has_a_case() -> None:
    assert [case.operator for case in CASES] == list(BLOCK_OPERATORS)
    for case in CASES:
        assert list(case.fields) == [attribute.name for attribute in case.operator.attributes]


@both
@every_case
def test_fields_survive_clone_and_serialization(host: Any, case: Case) -> None:
    findings = host("round-trip", *case.arguments())
    assert findings.one("created") == "yes" and findings.one("outputs") == str(len(case.outputs))
    if metadata := findings.all("metadata"):
        assert findings.one("serialized") == findings.one("attached")
        assert [item.partition("=")[0] for item in metadata[0].split()] == list(case.fields)
        assert f"operator={case.operator.name} " in findings.one("timing cache")
    else:
        assert findings.one("same bytes") == "yes" and findings.one("refuses other bytes") == "yes"
        assert findings.one("attached") == f"vorta::{case.operator.name} 1"


@both
@every_case
def test_fields_without_a_default_are_missed(host: Any, case: Case) -> None:
    for attribute in case.operator.attributes:
        findings = host("create", *case.arguments(without=attribute.name))
        assert findings.one("created") == ("no" if attribute.default is None else "yes")
        for message in findings.all("log"):
            assert f"createPlugin: layer layer: field {attribute.name}: is missing" in message


@both
@every_case
def test_formats(host: Any, version: str, case: Case) -> None:
    """Row-major, in TensorRT 8.6 without bfloat16 and float8; a norm's weight may be float32."""
    findings = host("formats", *case.arguments())
    tensors = [*case.operator.input_tensors, *case.operator.output_tensors]
    expected = [ALONE[tensor.element] for tensor in tensors]
    if version != "driver8":
        expected[0] = ("bfloat16", "float16")
    elif case.operator is FP8_LINEAR:
        expected[1] = ("int32",)
    assert [findings.one(f"position {i}").split() for i in range(len(tensors))] == [
        [f"{type_}/linear" for type_ in types] for types in expected
    ]


def test_packed_weights_have_a_fourth_of_the_columns(recording_driver: Any) -> None:
    """Each form has its own number of columns; the other's would be read as wrong numbers."""
    case = CASES[BLOCK_OPERATORS.index(FP8_LINEAR)]
    for text, result in [("int32:64,48", "0"), ("float8:64,192", "0"), ("int32:64,192", "-1"), ("float8:64,48", "-1")]:
        assert recording_driver("shape-change", *case.arguments({1: text})).one("result") == result


@both
@every_case
def test_output_shapes(host: Any, case: Case) -> None:
    assert host("output-shapes", *case.arguments()).all("shape") == list(case.outputs)
    assert host("output-shapes", *case.with_open_batch()).all("shape") == list(case.open_outputs)


@every_case
@pytest.mark.parametrize("type_", ["float16", "bfloat16"])
def test_outputs_have_the_type_of_the_first_input(recording_driver: Any, case: Case, type_: str) -> None:
    inputs = {index: text.replace("float16", type_) for index, text in enumerate(case.inputs)}
    assert recording_driver("output-types", *case.arguments(inputs)).all("type") == [type_] * len(case.outputs)


@every_case
def test_wrong_types_are_refused(recording_driver: Any, case: Case) -> None:
    for index, text in enumerate(case.inputs):
        findings = recording_driver("output-types", *case.arguments({index: "bool:" + text.partition(":")[2]}))
        assert findings.one("result") == "-1"
        assert findings.one("log").startswith(f"1 [vorta::{case.operator.name}] getOutputDataTypes: ")
        assert f": {case.operator.inputs[index]} is bool: " in findings.one("log")


@both
@every_bad_shape
def test_bad_shapes_are_refused(host: Any, case: Case, changed: dict[int, str], message: str) -> None:
    findings = host("output-shapes", *case.arguments(changed))
    assert findings.all("shape") in ([], [""] * len(case.outputs))
    assert f"1 [vorta::{case.operator.name}] getOutput" in findings.all("log")[0] and message in findings.all("log")[0]


@both
@every_case
def test_a_wrong_number_of_inputs_is_refused(host: Any, case: Case) -> None:
    findings = host("output-shapes", *case.arguments()[:-1])
    *most, last = case.operator.inputs
    count = f"{len(most)} inputs and {len(case.outputs)} outputs: there are {len(most) + 1} inputs"
    assert f"{count} ({', '.join(most)} and {last}) and " in findings.all("log")[0]


@both
@every_case
def test_enqueue_passes_everything_on(host: Any, case: Case) -> None:
    findings = host("enqueue", *case.arguments())
    assert findings.one("result") == "0" and findings.one("sizes right") == "1"
    assert findings.one("params") == case.params
    assert {name: findings.one(name) for name in case.memory} == case.memory


@both
@every_case
def test_a_good_layer_is_configured_in_silence(host: Any, case: Case) -> None:
    for arguments in (case.arguments(), case.with_open_batch()):
        assert host("configure", *arguments).all("log") == []
