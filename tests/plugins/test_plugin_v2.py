# SPDX-License-Identifier: Apache-2.0
"""The plugin as TensorRT 8.6 sees it: the same fields and rules behind IPluginV2DynamicExt. Grid (4, 6, 4)."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOOD = {
    "grid": "int32:4,6,4",
    "tile": "int32:2,3,2",
    "window": "int32:1,3,1",
    "bucket": "int32:2,3,2",
    "keep": "int32:6",
    "coreset_keys": "string:query",
    "text_tokens": "int32:8",
    "scale": "float32:0.125",
    "attention_precision": "string:same",
}
INPUTS = [*["input=float16:2,104,3,64"] * 3, "input=int32:2,3", "input=int32:2"]


def fields(*extra: str, without: str = "", **changed: str) -> list[str]:
    return [f"field={k}:{v}" for k, v in {**GOOD, **changed}.items() if k != without] + list(extra)


def test_creator_names_itself_and_its_fields(driver8: Any) -> None:
    findings = driver8("creator")
    assert findings.one("creator") == "vorta::RoutedAttention 1"
    assert [line.split()[0] for line in findings.all("field")] == list(GOOD)


@pytest.mark.parametrize(
    "arguments",
    [
        fields(),
        fields(without="scale"),
        fields(without="attention_precision"),
        fields(coreset_keys="string0:key"),
        fields("field=plugin_namespace:string:vorta", "field=plugin_version:string:1"),
    ],
    ids=["all", "no scale", "no attention_precision", "terminating zero", "selectors"],
)
def test_good_fields(driver8: Any, arguments: list[str]) -> None:
    findings = driver8("create", *arguments)
    assert (findings.one("created"), findings.all("log"), findings.stderr) == ("yes", [], "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (fields(without="grid"), "layer layer: field grid: is missing"),
        (fields(grid="int32:4,6"), "layer layer: field grid = (4, 6) [int32 x 2]: must hold 3 numbers"),
        (fields(scale="float64:0.1"), "layer layer: field scale = (0.100000) [float64 x 1]: must be a float32"),
        (fields("field=colour:int32:1"), "layer layer: field colour = (1) [int32 x 1]: is not a field of this plugin"),
    ],
    ids=["missing", "short", "type", "unknown"],
)
def test_bad_fields_are_refused_with_a_message(driver8: Any, arguments: list[str], message: str) -> None:
    """In TensorRT 8.6's logger, which has the layout of TensorRT 10's."""
    findings = driver8("create", *arguments)
    assert findings.one("created") == "no"
    assert findings.one("log").startswith(f"1 [vorta::RoutedAttention] createPlugin: {message}")
    assert findings.stderr == ""


def test_null_collection_is_refused(driver8: Any) -> None:
    findings = driver8("create-from-null")
    assert findings.one("created") == "no"
    assert "field collection: null" in findings.one("log")


@pytest.mark.parametrize("changes", [{}, {"coreset_keys": "string:key", "attention_precision": "string:fp8"}])
def test_plugin_survives_clone_and_serialization(driver8: Any, changes: dict[str, str]) -> None:
    findings = driver8("round-trip", *fields(**changes))
    assert (findings.one("bytes"), findings.one("same bytes")) == ("76", "yes")
    codes = {"coreset_keys": {"query": 0, "key": 1}, "attention_precision": {"same": 0, "fp8": 1}}
    keys, precision = (codes[name][{**GOOD, **changes}[name].removeprefix("string:")] for name in codes)
    shapes = [4, 6, 4, 2, 3, 2, 1, 3, 1, 2, 3, 2]
    eighth = int.from_bytes(struct.pack("<f", 0.125), "little")
    expected = [int.from_bytes(b"vtRA", "little"), 1, *shapes, 6, keys, 8, eighth, precision]
    assert [int(word) for word in findings.one("words").split()] == expected  # engines of every version hold this
    assert findings.one("clone") == "elsewhere::RoutedAttention"  # a clone keeps the namespace that it was given
    assert findings.one("attached") == "vorta::RoutedAttention 1"
    assert findings.one("outputs") == "1"
    assert findings.one("refuses other bytes") == "yes"
    assert findings.all("log")[0] == (
        "1 [vorta::RoutedAttention] deserializePlugin: layer layer: serialized plugin of 76 bytes: must be 76 bytes "
        "that this version of the plugin wrote; build the engine again"
    )


def test_formats_are_float16_alone(driver8: Any) -> None:
    findings = driver8("formats", *fields(), *INPUTS)
    expected = ["float16/linear"] * 3 + ["int32/linear"] * 2 + ["float16/linear"]
    assert [findings.one(f"position {i}") for i in range(6)] == expected


def test_no_format_fits_a_wrong_number_of_inputs(driver8: Any) -> None:
    findings = driver8("formats", *fields(), *INPUTS[:4])
    assert all(findings.one(f"position {i}") == "" for i in range(5))


@pytest.mark.parametrize(("batch", "expected"), [("2", "2"), ("-1", "?")])
def test_output_has_the_shape_of_the_query(driver8: Any, batch: str, expected: str) -> None:
    inputs = [*[f"input=float16:{batch},104,3,64"] * 3, f"input=int32:{batch},3", f"input=int32:{batch}"]
    findings = driver8("output-shapes", *fields(), *inputs)
    assert (findings.one("shape"), findings.one("type")) == (f"{expected},104,3,64", "0")


BAD_SHAPES = [
    (["input=float16:2,96,3,64", *INPUTS[1:]], "query [2, 96, 3, 64]: must have shape [batch, grid tokens 96 + text"),
    ([*INPUTS[:3], "input=int32:2,2", INPUTS[4]], "routes [2, 2]: must have shape [batch, heads] = [2, 3]"),
    (INPUTS[:4], "4 inputs and 1 outputs: with text_tokens 8 there are 5 inputs"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_SHAPES, ids=["tokens", "routes", "count"])
def test_bad_shapes_have_no_output_shape(driver8: Any, inputs: list[str], message: str) -> None:
    findings = driver8("output-shapes", *fields(), *inputs)
    assert findings.one("rank") == "-1"  # TensorRT 8's sign of an invalid shape
    assert findings.one("log").startswith(f"1 [vorta::RoutedAttention] getOutputDimensions: {message}")


@pytest.mark.parametrize(("inputs", "message"), BAD_SHAPES, ids=["tokens", "routes", "count"])
def test_bad_shapes_are_not_enqueued(driver8: Any, inputs: list[str], message: str) -> None:
    """configurePlugin() returns nothing in TensorRT 8, so the layer fails when it is run."""
    findings = driver8("enqueue", *fields(), *inputs)
    assert findings.one("result") == "-1"
    assert findings.one("log").startswith(f"1 [vorta::RoutedAttention] configurePlugin: {message}")
    assert findings.all("pointers") == []


@pytest.mark.parametrize("batch", ["2", "-1"])
def test_configure_and_workspace(driver8: Any, batch: str) -> None:
    """An open batch counts with the profile's maximum, whose shape the workspace is asked for; 4096 a sample here."""
    open_batch = [*[f"input=float16:{batch},104,3,64"] * 3, f"input=int32:{batch},3", f"input=int32:{batch}"]
    assert driver8("configure", *fields(), *open_batch).all("log") == []
    assert driver8("configure", *fields(), *INPUTS).one("workspace") == "8192"


def test_enqueue_passes_everything_on(driver8: Any) -> None:
    findings = driver8("enqueue", *fields(), *INPUTS)
    assert findings.one("result") == "0"
    assert findings.one("problem") == (
        "dtype=0 batch=2 heads=3 head_dim=64 keep=6 coreset_keys=0 text_tokens=8 scale=0.125 attention_precision=0 "
        "reserved=0"
    )
    assert findings.one("pointers") == "0x1000 0x2000 0x3000 0x4000 0x5000 0x100000"
    assert findings.one("query_stride") == "19968,192,64"
    assert findings.one("workspace") == "0x200000 8192"
    assert findings.one("stream") == "0x300000"


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt_lean_bindings"])
def test_newer_versions_still_take_the_v3_creator(module: str, recording_library: Path) -> None:
    """One library holds both interfaces: RTX and TensorRT 11 register the V3 creator, which makes V3 plugins."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    probe = Path(__file__).with_name("registry_probe.py")
    command = [sys.executable, str(probe), module, str(recording_library)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["plugin"] == ["vorta", "RoutedAttention", "1"]
    assert outcome["fields"] == list(GOOD)
