# SPDX-License-Identifier: Apache-2.0
"""Every operator's plugin, as TensorRT 8.6 and the newer ones drive it: fields, formats, shapes, launch. No GPU.

RoutedAttention's rules and messages, and the reading of fields, which all operators share, are tested in
`test_plugin_fields.py`, `test_plugin_shapes.py` and `test_plugin_v2.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from vorta_trt.plugins.operator_schema import (
    BLOCK_OPERATORS,
    FP8_LINEAR,
    JOINED_LINEAR,
    LINEAR,
    QK_NORM_ROTARY,
    Element,
    Operator,
)

from .operator_cases import CASES, Case

ALONE = {  # types that a plugin takes for a tensor of each kind, with a first activation of float16
    Element.TOKENS: ("float16",),
    Element.WEIGHT: ("float16", "float32"),
    Element.FLOAT32: ("float32",),
    Element.INT32: ("int32",),
    Element.FLOAT8: ("float8", "int32"),
    Element.FLOAT8_TOKENS: ("int32",),
}

TYPE_NUMBERS = {Element.FLOAT8_TOKENS: "3"}  # of TensorRT's DataType: int32; float32 is 0

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
    if case.operator is QK_NORM_ROTARY:  # the weights are alike
        expected[3] = (case.inputs[2].partition(":")[0],)
    if version != "driver8":
        expected[case.operator.activation_input] = ("bfloat16", "float16")
    elif case.operator is FP8_LINEAR:
        expected[2] = ("int32",)
    assert [findings.one(f"position {i}").split() for i in range(len(tensors))] == [
        [f"{type_}/linear" for type_ in types] for types in expected
    ]


def test_both_weights_of_a_norm_are_alike(recording_driver: Any) -> None:
    findings = recording_driver("output-types", *CASES[0].arguments({3: "float16:64"}))
    assert "key_weight is float16: must have the type of the activations, or be float32, all" in findings.one("log")


def test_packed_weights_have_a_fourth_of_the_columns(recording_driver: Any) -> None:
    """Each form has its own number of columns; the other's would be read as wrong numbers."""
    case = CASES[BLOCK_OPERATORS.index(FP8_LINEAR)]
    for text, result in [("int32:64,48", "0"), ("float8:64,192", "0"), ("int32:64,192", "-1"), ("float8:64,48", "-1")]:
        assert recording_driver("shape-change", *case.arguments({2: text})).one("result") == result


@both
@every_case
def test_output_shapes(host: Any, version: str, case: Case) -> None:
    findings = host("output-shapes", *case.arguments())
    assert findings.all("shape") == list(case.outputs)
    if version == "driver8":  # which tells float32 for every float, and is answered so
        kinds = [TYPE_NUMBERS.get(output.element, "0") for output in case.operator.output_tensors]
        assert findings.all("type") == kinds
    assert host("output-shapes", *case.with_open_batch()).all("shape") == list(case.open_outputs)


@every_case
@pytest.mark.parametrize("type_", ["float16", "bfloat16"])
def test_outputs_have_the_type_of_the_activations(recording_driver: Any, case: Case, type_: str) -> None:
    """Quantised ones are int32 with four e4m3 each, beside float32 scales."""
    inputs = {index: text.replace("float16", type_) for index, text in enumerate(case.inputs)}
    others = {Element.FLOAT8_TOKENS: "int32", Element.FLOAT32: "float32"}
    expected = [others.get(output.element, type_) for output in case.operator.output_tensors]
    assert recording_driver("output-types", *case.arguments(inputs)).all("type") == expected


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
    given = f"{len(most)} inputs and {len(case.outputs)} outputs"
    wanted = f"{len(most) + 1} input{'s' if most else ''} ({', '.join(most)}{' and ' if most else ''}{last})"
    assert f"{given}: there are {wanted} and " in findings.all("log")[0]


@both
@every_case
def test_enqueue_passes_everything_on(host: Any, case: Case) -> None:
    findings = host("enqueue", *case.arguments())
    assert findings.one("result") == "0" and findings.one("sizes right") == "1"
    assert findings.one("params") == case.params
    assert {name: findings.one(name) for name in case.memory} == case.memory


@both
@pytest.mark.parametrize("operator", [LINEAR, JOINED_LINEAR, FP8_LINEAR], ids=lambda operator: operator.name)
def test_a_linear_layer_says_where_its_products_come_from(
    host: Any, monkeypatch: pytest.MonkeyPatch, operator: Operator
) -> None:
    """As information, and as a warning where they are slow; to TensorRT's logger."""
    case = CASES[BLOCK_OPERATORS.index(operator)]
    told = f"[vorta::{operator.name}] enqueue: products"
    found = f"3 {told} are those of cublaslt 13.1.0 /cuda/libcublasLt.so.13"
    assert host("enqueue", *case.arguments()).all("log") == [found]
    monkeypatch.setenv("RECORDED_REASON", "no libcublasLt.so")
    assert host("enqueue", *case.arguments()).all("log") == [f"2 {told} take the slow kernel: no libcublasLt.so"]


@both
@every_case
def test_a_good_layer_is_configured_in_silence(host: Any, case: Case) -> None:
    for arguments in (case.arguments(), case.with_open_batch()):
        assert host("configure", *arguments).all("log") == []


BEYOND = [  # operator, inputs by index, and the kernels' own message
    (
        "QKNormRotary",
        dict(enumerate([*["float16:2,96,12"] * 2, *["float32:4"] * 2, *["float32:1,96,1,2"] * 2])),
        "head_dim 4:",
    ),
    ("HeadNorm", {0: "float16:2,96,792", 1: "float16:792"}, "head_dim 264:"),
    ("NormModulate", {0: "float16:2,96,8200", 1: "float32:2,2,8200", 2: "float32:1,1,8200"}, "features 8200:"),
    ("Linear", {0: "float16:2,96,12", 1: "float16:64,12"}, "in_features 12:"),
    ("JoinedLinear", {1: "float16:2,96,12", 2: "float16:64,140"}, "in_features 140:"),
    ("Fp8Linear", {0: "int32:2,96,6", 2: "int32:64,6"}, "in_features 24:"),
    ("Quantize", {0: "float16:2,96,24"}, "features 24:"),
    ("JoinedQuantize", {1: "float16:2,96,8"}, "features 136:"),
    ("NormModulateQuantize", {0: "float16:2,96,24", 1: "float32:2,2,24", 2: "float32:1,1,24"}, "features 24:"),
    ("CrossAttention", {i: "float16:2,7,3,12" for i in range(3)}, "head_dim 12:"),
]


@pytest.mark.parametrize(("name", "changed", "message"), BEYOND, ids=[name for name, _, _ in BEYOND])
def test_limits_of_the_kernels_are_met_at_build(driver: Any, name: str, changed: dict[int, str], message: str) -> None:
    case = next(case for case in CASES if case.operator.name == name)
    findings = driver("configure", *case.arguments(changed))
    assert findings.one("result") == "-1"
    assert f"1 [vorta::{name}] configurePlugin: {message}" in findings.all("log")[0]


def test_negative_epsilon_and_no_heads_are_refused(driver: Any) -> None:
    """By the fields alone, before any shape is known."""
    case = CASES[0]
    assert "heads 0: must be at least 1" in driver("create", *case.arguments(heads="int32:0")).one("log")
    assert "epsilon -1" in driver("create", *case.arguments(epsilon="float32:-1")).one("log")


@every_case
def test_an_empty_batch_is_done_at_once(driver: Any, case: Case) -> None:
    """On a machine without a GPU, too: nothing is launched."""
    empty = {index: text.replace(":2,", ":0,", 1) for index, text in enumerate(case.inputs)}
    findings = driver("enqueue", *case.arguments(empty))
    assert (findings.one("result"), findings.all("log")) == ("0", [])
