# SPDX-License-Identifier: Apache-2.0
"""The layer's rules on types and shapes, and what it hands to the kernels. Grid (4, 6, 4): 96 video tokens."""

from __future__ import annotations

from typing import Any

import pytest

FIELDS = {
    "grid": "int32:4,6,4",
    "tile": "int32:2,3,2",
    "window": "int32:1,3,1",
    "bucket": "int32:2,3,2",
    "keep": "int32:6",
    "coreset_keys": "string:query",
    "text_tokens": "int32:8",
    "scale": "float32:0.125",
}
TEXT, NO_TEXT = {"text_tokens": "int32:8"}, {"text_tokens": "int32:0"}


def fields(**changed: str) -> list[str]:
    return [f"field={name}:{value}" for name, value in {**FIELDS, **changed}.items()]


def inputs(
    query: str = "2,104,3,64",
    key: str | None = None,
    value: str | None = None,
    routes: str = "2,3",
    text_length: str | None = "2",
    type_: str = "float16",
) -> list[str]:
    activations = [f"input={type_}:{shape or query}" for shape in (query, key, value)]
    integers = [f"input=int32:{shape}" for shape in (routes, text_length) if shape is not None]
    return activations + integers


@pytest.mark.parametrize("type_", ["float16", "bfloat16"])
@pytest.mark.parametrize(("changes", "count"), [(TEXT, 5), (NO_TEXT, 4)], ids=["text", "no text"])
def test_formats(driver: Any, type_: str, changes: dict[str, str], count: int) -> None:
    findings = driver("formats", *fields(**changes), *inputs(type_=type_)[:count])
    expected = ["bfloat16/linear float16/linear", f"{type_}/linear", f"{type_}/linear"]
    expected += ["int32/linear"] * (count - 3) + [f"{type_}/linear"]
    assert [findings.one(f"position {i}") for i in range(count + 1)] == expected


@pytest.mark.parametrize(("changes", "count"), [(TEXT, 4), (NO_TEXT, 5)], ids=["text", "no text"])
def test_no_format_fits_a_wrong_number_of_inputs(driver: Any, changes: dict[str, str], count: int) -> None:
    findings = driver("formats", *fields(**changes), *inputs()[:count])
    assert all(findings.one(f"position {i}") == "" for i in range(count + 1))


@pytest.mark.parametrize("type_", ["float16", "bfloat16"])
def test_output_type_is_the_query_type(driver: Any, type_: str) -> None:
    findings = driver("output-types", *fields(), *inputs(type_=type_))
    assert (findings.one("result"), findings.one("type")) == ("0", type_)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (inputs(type_="float32"), "query is float32: query, key and value must be all float16 or all bfloat16"),
        ([*inputs()[:1], "input=bfloat16:2,104,3,64", *inputs()[2:]], "key is bfloat16:"),
        ([*inputs()[:3], "input=int64:2,3", *inputs()[4:]], "routes is int64: must be int32"),
        ([*inputs()[:4], "input=float16:2"], "text_length is float16: must be int32"),
        (inputs()[:4], "4 inputs and 1 outputs: with text_tokens 8 there are 5 inputs"),
        ([*inputs(), "input=int32:1"], "6 inputs and 1 outputs: with text_tokens 8 there are 5 inputs"),
    ],
)
def test_wrong_types_are_refused(driver: Any, arguments: list[str], message: str) -> None:
    findings = driver("output-types", *fields(), *arguments)
    assert findings.one("result") == "-1"
    assert findings.one("log").startswith(f"1 [vorta::RoutedAttention] getOutputDataTypes: {message}")


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (inputs(), "2,104,3,64"),
        (inputs("-1,104,3,64", routes="-1,3", text_length="-1"), "?,104,3,64"),
        (inputs("-1,-1,-1,-1", routes="-1,-1", text_length="-1"), "?,?,?,?"),
        (inputs("1,104,1,8", routes="1,1", text_length="1"), "1,104,1,8"),
        (inputs("1,104,1,256", routes="1,1", text_length="1"), "1,104,1,256"),
        (inputs("0,104,3,64", routes="0,3", text_length="0"), "0,104,3,64"),
        (inputs("2,104,0,64", routes="2,0", text_length="2"), "2,104,0,64"),
    ],
)
def test_output_shape_is_the_query_shape(driver: Any, arguments: list[str], shape: str) -> None:
    findings = driver("output-shapes", *fields(), *arguments)
    assert (findings.one("result"), findings.one("shape")) == ("0", shape)


BAD_SHAPES = [
    (inputs("2,96,3,64"), "query [2, 96, 3, 64]: must have shape [batch, grid tokens 96 + text_tokens 8, heads, head"),
    (inputs("2,104,192", key="2,104,192", value="2,104,192"), "query [2, 104, 192]: must have shape [batch, grid"),
    (inputs(key="2,104,2,64"), "key [2, 104, 2, 64]: must have shape of query = [2, 104, 3, 64]"),
    (inputs(value="1,104,3,64"), "value [1, 104, 3, 64]: must have shape of query = [2, 104, 3, 64]"),
    (inputs(routes="2,2"), "routes [2, 2]: must have shape [batch, heads] = [2, 3]"),
    (inputs(routes="2,3,1"), "routes [2, 3, 1]: must have shape [batch, heads] = [2, 3]"),
    (inputs(text_length="3"), "text_length [3]: must have shape [batch] = [2]"),
    (inputs("2,104,3,60"), "head_dim 60: must be a multiple of 8"),
    (inputs("2,104,3,264"), "head_dim 264: must be a multiple of 8"),
    (inputs("65536,104,3,64", routes="65536,3", text_length="65536"), "batch 65536:"),
    (inputs()[:4], "4 inputs and 1 outputs: with text_tokens 8 there are 5 inputs"),
]


@pytest.mark.parametrize("command", ["output-shapes", "configure", "shape-change"])
@pytest.mark.parametrize(("arguments", "message"), BAD_SHAPES, ids=[message[:40] for _, message in BAD_SHAPES])
def test_bad_shapes_are_refused(driver: Any, command: str, arguments: list[str], message: str) -> None:
    findings = driver(command, *fields(), *arguments)
    assert findings.one("result") == "-1"
    where = {"output-shapes": "getOutputShapes", "configure": "configurePlugin", "shape-change": "onShapeChange"}
    assert findings.all("log")[0].startswith(f"1 [vorta::RoutedAttention] {where[command]}: {message}")


def test_good_shape_change_is_silent(driver: Any) -> None:
    findings = driver("shape-change", *fields(), *inputs())
    assert findings.one("result") == "0"
    assert findings.all("log") == []


def test_workspace_is_that_of_the_largest_batch(driver: Any) -> None:
    """A dynamic batch counts with the profile's maximum, which is 2 in the driver."""
    dynamic = driver("configure", *fields(), *inputs("-1,104,3,64", routes="-1,3", text_length="-1"))
    fixed = driver("configure", *fields(), *inputs())
    assert (dynamic.one("result"), fixed.one("result")) == ("0", "0")
    assert int(dynamic.one("workspace")) == int(fixed.one("workspace")) > 0


def test_enqueue_passes_everything_on(recording_driver: Any) -> None:
    findings = recording_driver("enqueue", *fields(), *inputs())
    assert findings.one("result") == "0"
    assert findings.one("sizes right") == "1"
    assert findings.one("problem") == (
        "dtype=0 batch=2 heads=3 head_dim=64 keep=6 coreset_keys=0 text_tokens=8 scale=0.125 attention_precision=0 "
        "reserved=0"
    )
    geometry = [findings.one(name) for name in ("grid", "tile", "window", "bucket")]
    assert geometry == ["4,6,4", "2,3,2", "1,3,1", "2,3,2"]
    assert findings.one("pointers") == "0x1000 0x2000 0x3000 0x4000 0x5000 0x100000"
    for name in ("query", "key", "value", "output"):
        assert findings.one(f"{name}_stride") == "19968,192,64"
    assert findings.one("workspace") == "0x200000 8192"
    assert findings.one("stream") == "0x300000"


@pytest.mark.parametrize(("precision", "code"), [("same", 0), ("fp8", 1)])
def test_enqueue_passes_the_attention_precision_on(recording_driver: Any, precision: str, code: int) -> None:
    findings = recording_driver("enqueue", *fields(attention_precision=f"string:{precision}"), *inputs())
    assert f"attention_precision={code} " in findings.one("problem")


def test_enqueue_without_text_passes_no_text_length(recording_driver: Any) -> None:
    changes = {**NO_TEXT, "coreset_keys": "string:key"}
    arguments = inputs("1,96,3,64", routes="1,3", text_length=None, type_="bfloat16")
    findings = recording_driver("enqueue", *fields(**changes), *arguments)
    assert findings.one("problem").startswith("dtype=1 batch=1 heads=3 head_dim=64 keep=6 coreset_keys=1 text_tokens=0")
    assert findings.one("pointers") == "0x1000 0x2000 0x3000 0x4000 (nil) 0x100000"


def test_enqueue_strides_pass_32_bits(recording_driver: Any) -> None:
    changes = {**NO_TEXT, "grid": "int32:30,90,160"}
    arguments = inputs("2,432000,40,128", routes="2,40", text_length=None)
    findings = recording_driver("enqueue", *fields(**changes), *arguments)
    assert findings.one("query_stride") == f"{432000 * 40 * 128},{40 * 128},128"


@pytest.mark.parametrize("shape", ["0,104,3,64", "2,104,0,64"])
def test_an_empty_tensor_is_done_at_once(driver: Any, shape: str) -> None:
    """On a machine without a GPU, too: nothing is launched."""
    batch, _, heads, _ = shape.split(",")
    findings = driver("enqueue", *fields(), *inputs(shape, routes=f"{batch},{heads}", text_length=batch))
    assert findings.one("result") == "0"
    assert findings.all("log") == []


def test_enqueue_reports_what_the_kernels_refuse(driver: Any) -> None:
    """Addresses that are no device memory of the right alignment, or no GPU at all: a message and an error code."""
    findings = driver("enqueue", *fields(), *inputs("2,104,3,60"))
    assert findings.one("result") == "-1"
    assert "enqueue: head_dim 60: must be a multiple of 8" in findings.one("log")
