# SPDX-License-Identifier: Apache-2.0
"""Plugins are made from good fields and refused, with a message in TensorRT's logger, from bad ones."""

from __future__ import annotations

from typing import Any

import pytest

GOOD = {
    "grid": "int32:4,6,4",
    "tile": "int32:2,3,2",
    "window": "int32:1,1,1",
    "bucket": "int32:2,3,2",
    "keep": "int32:6",
    "coreset_keys": "string:query",
    "text_tokens": "int32:8",
    "scale": "float32:0.125",
    "attention_precision": "string:same",
}


def fields(*extra: str, without: str = "", **changed: str) -> list[str]:
    """Command-line fields of the driver: GOOD with changes."""
    values = {**GOOD, **changed}
    return [f"field={name}:{value}" for name, value in values.items() if name != without] + list(extra)


def test_creator_names_itself_and_its_fields(driver: Any) -> None:
    findings = driver("creator")
    assert findings.one("creator") == "vorta::RoutedAttention 1"
    assert findings.one("interface") == "PLUGIN CREATOR_V3ONE 1.0"
    assert [line.split()[0] for line in findings.all("field")] == list(GOOD)


@pytest.mark.parametrize(
    "arguments",
    [
        fields(),
        fields(without="scale"),
        fields(scale="float32:0"),
        fields(text_tokens="int32:0"),
        fields(coreset_keys="string:key"),
        fields(tile="int32:3,4,3"),  # neither has to divide the grid
        fields(bucket="int32:3,4,3"),
        fields(tile="int32:9,9,9", bucket="int32:7,1,9"),
        fields(without="attention_precision"),
        fields(attention_precision="string:fp8"),
        fields(attention_precision="string0:fp8"),
        fields(coreset_keys="string0:query"),  # the terminating zero counted in, as some parsers do
        fields(grid="int64:4,6,4", keep="int64:6"),  # ONNX integers are 64-bit
        fields("field=plugin_namespace:string:vorta", "field=plugin_version:string:1"),
        fields("field=plugin_namespace:string0:vorta", "field=plugin_version:string0:1"),
    ],
    ids=lambda arguments: " ".join(arguments).replace("field=", "")[-60:],
)
def test_good_fields(driver: Any, arguments: list[str]) -> None:
    findings = driver("create", *arguments)
    assert findings.one("created") == "yes"
    assert findings.all("log") == []


BAD = [
    (fields(without="grid"), "field grid: is missing"),
    (fields(without="text_tokens"), "field text_tokens: is missing"),
    (fields("field=colour:int32:1"), "field colour = (1) [int32 x 1]: is not a field of this plugin"),
    (fields("field=keep:int32:6"), "field keep = (6) [int32 x 1]: stands twice"),
    (fields(grid="float32:4,6,4"), "field grid = (4.000000, 6.000000, 4.000000) [float32 x 3]: must be an integer"),
    (fields(grid="int32:4,6"), "field grid = (4, 6) [int32 x 2]: must hold 3 numbers"),
    (fields(grid="int32:4,6,4,1"), "field grid = (4, 6, 4, 1) [int32 x 4]: must hold 3 numbers"),
    (fields(grid="null:4,6,4"), "field grid [int32 x 3]: must hold 3 numbers"),
    (fields(keep="int32:6,6"), "field keep = (6, 6) [int32 x 2]: must hold 1 number;"),
    (fields(keep="int64:4294967296"), "field keep = (4294967296) [int64 x 1]: must fit in 32 bits"),
    (fields(keep="string:6"), 'field keep = "6" [string x 1]: must be an integer'),
    (fields(keep="unknown:6"), "field keep [an unknown type x 1]: must be an integer"),
    (fields(keep="int32:0"), "keep 0:"),
    (fields(keep="int32:13"), "keep 13:"),
    (fields(scale="float64:0.1"), "field scale = (0.100000) [float64 x 1]: must be a float32"),
    (fields(scale="float32:nan"), "field scale = (nan) [float32 x 1]: must be finite"),
    (fields(scale="float32:-1"), "scale -1:"),
    (fields(coreset_keys="string:value"), 'field coreset_keys = "value" [string x 5]: must be the string "query"'),
    (fields(coreset_keys="string:"), "field coreset_keys [string x 0]: must be the string"),
    (fields(coreset_keys="int32:1"), "field coreset_keys = (1) [int32 x 1]: must be the string"),
    (
        fields(attention_precision="string:fp4"),
        'field attention_precision = "fp4" [string x 3]: must be the string "same"',
    ),
    (fields(attention_precision="string:"), "field attention_precision [string x 0]: must be the string"),
    (fields(attention_precision="int32:1"), "field attention_precision = (1) [int32 x 1]: must be the string"),
    (fields("field=attention_precision:string:fp8"), 'field attention_precision = "fp8" [string x 3]: stands twice'),
    (fields(tile="int32:3,0,2"), "tile (3, 0, 2): every entry must be at least 1"),
    (fields(window="int32:2,1,1"), "window (2, 1, 1): every entry must be odd"),
    (fields(bucket="int32:0,3,2"), "bucket (0, 3, 2): every entry must be at least 1"),
    (fields(bucket="int32:4,6,4"), "bucket (4, 6, 4):"),  # 96 tokens
    (fields(bucket="int32:2147483647,2147483647,2147483647"), "bucket (2147483647, 2147483647, 2147483647):"),
    (fields(grid="int32:0,6,4"), "grid (0, 6, 4):"),
    (fields(grid="int32:-4,6,4"), "grid (-4, 6, 4):"),
    (fields(grid="int32:2147483647,2147483647,2147483647"), "grid (2147483647, 2147483647, 2147483647)"),
    (fields(text_tokens="int32:-1"), "text_tokens -1:"),
    (fields("field=plugin_namespace:string:other"), 'field plugin_namespace = "other" [string x 5]: must be "vorta"'),
    (fields("field=plugin_version:string:2"), 'field plugin_version = "2" [string x 1]: must be "1"'),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_fields_are_refused_with_a_message(driver: Any, arguments: list[str], message: str) -> None:
    findings = driver("create", *arguments)
    assert findings.one("created") == "no"
    log = findings.one("log")
    severity, _, text = log.partition(" ")
    assert severity == "1"  # ILogger::Severity::kERROR
    assert text.startswith(f"[vorta::RoutedAttention] createPlugin: layer layer: {message}")
    assert ";" in text, f"{text}: a remedy follows the rule"
    assert findings.stderr == ""


def test_null_collection_is_refused(driver: Any) -> None:
    findings = driver("create-from-null")
    assert findings.one("created") == "no"
    assert "field collection: null" in findings.one("log")


@pytest.mark.parametrize("version", [100000, 101601, 110000, 110400, 10701, 20000])
def test_message_reaches_the_logger_of_every_version(driver: Any, version: int) -> None:
    """TensorRT 10 and 11 have loggers of different layouts; the wrong one would end the process."""
    findings = driver("create", *fields(without="grid"), version=version)
    assert "field grid: is missing" in findings.one("log")


@pytest.mark.parametrize("version", [0, 9300, 10600], ids=["no logger", "TensorRT 9.3", "TensorRT-RTX 1.6"])
def test_message_goes_to_stderr_without_a_known_logger(driver: Any, version: int) -> None:
    findings = driver("create", *fields(without="grid"), version=version)
    assert findings.all("log") == []
    assert "[vorta::RoutedAttention] createPlugin: layer layer: field grid: is missing" in findings.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"coreset_keys": "string:key", "text_tokens": "int32:0", "scale": "float32:0.08838834764"},
        {"attention_precision": "string:fp8"},
    ],
)
def test_plugin_survives_clone_serialize_and_attach(driver: Any, changes: dict[str, str]) -> None:
    findings = driver("round-trip", *fields(**changes))
    values = {**GOOD, **changes}
    serialized = dict(pair.split("=") for pair in findings.one("serialized").split())
    assert findings.one("attached") == findings.one("serialized")
    assert float(serialized.pop("scale")) == pytest.approx(float(values["scale"].split(":")[1]), abs=1e-6)
    assert serialized == {name: value.split(":")[1] for name, value in values.items() if name != "scale"}
    assert findings.one("plugin") == "vorta::RoutedAttention 1"
    assert findings.all("interface") == [
        "PLUGIN 1",
        "PLUGIN_V3ONE_CORE 1",
        "PLUGIN_V3ONE_BUILD 1",
        "PLUGIN_V3ONE_RUNTIME 1",
    ]
    assert (findings.one("outputs"), findings.one("tactics")) == ("1", "0")
    assert findings.one("metadata").startswith("grid=4x6x4 tile=2x3x2 window=1x1x1 bucket=2x3x2 keep=6 coreset_keys=")
    precision = values["attention_precision"].removeprefix("string:")
    assert findings.one("metadata").endswith(f" attention_precision={precision}")
    assert findings.one("timing cache").startswith(findings.one("metadata"))


def test_fields_of_an_older_file_mean_what_they_meant(driver: Any) -> None:
    """A node without attention_precision is a node with "same": what it serializes and is timed as is equal."""
    older, newer = (driver("round-trip", *fields(without=name)) for name in ("attention_precision", ""))
    for key in ("serialized", "attached", "metadata", "timing cache"):
        assert older.one(key) == newer.one(key)
