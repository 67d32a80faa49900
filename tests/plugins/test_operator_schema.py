# SPDX-License-Identifier: Apache-2.0
"""The operator's table in Python is the contract's, and the same as the plugin's."""

from __future__ import annotations

from typing import Any

import pytest

from vorta_trt.plugins.operator_schema import BLOCK_OPERATORS, OPERATORS, ROUTED_ATTENTION, Attribute, Kind, Operator

#: Value of TensorRT's PluginFieldType and how many items, as the creator announces a field of that kind.
FIELD_TYPES = {Kind.TRIPLE: "5 3", Kind.INTEGER: "5 1", Kind.NUMBER: "1 1", Kind.CHOICE: "6 0"}
EXAMPLES = {
    "grid": "int32:4,6,4",
    "tile": "int32:2,3,2",
    "window": "int32:1,1,1",
    "bucket": "int32:2,3,2",
    "keep": "int32:6",
    "text_tokens": "int32:8",
    "scale": "float32:0.125",
}
WITH_DEFAULT = [attribute for attribute in ROUTED_ATTENTION.attributes if attribute.default is not None]


def given(**changed: str | None) -> list[str]:
    """Fields of the driver, every string field with its default; None leaves a field out."""
    choices = {a.name: f"string:{a.default}" for a in ROUTED_ATTENTION.attributes if a.kind is Kind.CHOICE}
    values = {**EXAMPLES, **choices, **changed}
    return [f"field={name}:{value}" for name, value in values.items() if value is not None]


def test_table_is_the_contracts() -> None:
    """Names, order and types stand in exported files and engines: they never change within a version."""
    assert [(a.name, a.kind.name, a.default) for a in ROUTED_ATTENTION.attributes] == [
        ("grid", "TRIPLE", None),
        ("tile", "TRIPLE", None),
        ("window", "TRIPLE", None),
        ("bucket", "TRIPLE", None),
        ("keep", "INTEGER", None),
        ("coreset_keys", "CHOICE", "query"),
        ("text_tokens", "INTEGER", 0),
        ("scale", "NUMBER", 0.0),
        ("attention_precision", "CHOICE", "same"),
    ]
    assert ROUTED_ATTENTION.inputs == ("query", "key", "value", "routes", "text_length")


def test_block_operators_are_the_contracts() -> None:
    """As above: inputs and attributes of every block operator, in the order of torch's arguments and of the fields."""
    found = {
        operator.name: " ".join((*operator.inputs, "|", *(a.name for a in operator.attributes)))
        for operator in BLOCK_OPERATORS
    }
    assert found == {
        "QKNormRotary": "query key query_weight key_weight cos sin | heads epsilon",
        "HeadNorm": "tokens weight | heads epsilon",
        "NormModulate": "tokens scale shift | epsilon first_tokens",
        "ResidualNormModulate": "residual update gate scale shift | epsilon first_tokens",
        "Quantize": "tokens |",
        "JoinedQuantize": "first second |",
        "NormModulateQuantize": "tokens scale shift | epsilon first_tokens",
        "ResidualNormModulateQuantize": "residual update gate scale shift | epsilon first_tokens",
        "Linear": "input weight bias | activation",
        "JoinedLinear": "first second weight bias | activation",
        "Fp8Linear": "input input_scale weight weight_scale bias | activation",
        "CrossAttention": "query key value | scale",
    }
    assert {(operator.namespace, operator.version) for operator in OPERATORS.values()} == {("vorta", "1")}


@pytest.mark.parametrize("version", ["recording_driver", "driver8"], ids=["V3", "8.6"])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)
def test_plugin_has_the_same_identity_and_fields(
    request: pytest.FixtureRequest, operator: Operator, version: str
) -> None:
    findings = request.getfixturevalue(version)("creator", f"operator={operator.name}")
    assert findings.one("creator") == f"{operator} {operator.version}"
    assert findings.all("field") == [f"{a.name} {FIELD_TYPES[a.kind]}" for a in operator.attributes]


def test_every_operator_has_a_plugin_and_no_other(recording_driver: Any) -> None:
    assert recording_driver("creators").all("creator") == [f"{operator}" for operator in OPERATORS.values()]


@pytest.mark.parametrize("attribute", [a for a in ROUTED_ATTENTION.attributes if a.choices], ids=lambda a: a.name)
def test_plugin_takes_the_same_choices(recording_driver: Any, attribute: Attribute) -> None:
    for choice in attribute.choices:
        metadata = recording_driver("round-trip", *given(**{attribute.name: f"string:{choice}"})).one("metadata")
        assert f"{attribute.name}={choice}" in metadata.split()
    refused = recording_driver("create", *given(**{attribute.name: "string:"})).one("log")
    assert " or ".join(f'"{choice}"' for choice in attribute.choices) in refused


@pytest.mark.parametrize("attribute", WITH_DEFAULT, ids=lambda a: a.name)
def test_absent_field_has_the_tables_default_or_is_refused(recording_driver: Any, attribute: Attribute) -> None:
    """The plugin insists on more fields than ONNX does; what it lets out means the same."""
    findings = recording_driver("round-trip", *given(**{attribute.name: None}))
    if findings.one("created") == "no":
        assert f"field {attribute.name}: is missing" in findings.one("log")
        assert attribute.name in ("coreset_keys", "text_tokens")
    else:
        default = f"{attribute.default:g}" if attribute.kind is Kind.NUMBER else attribute.default
        assert f"{attribute.name}={default}" in findings.one("metadata").split()
