# SPDX-License-Identifier: Apache-2.0
"""UlyssesAttention's plugin, as TensorRT 8.6 and the newer ones drive it: shapes by ranks, what the kernels are told.

No GPU. Fields and types, which all operators share, are tested for all of them in `test_operator_schema.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from vorta_trt.plugins.operator_schema import ULYSSES_ATTENTION

FIELDS = {
    "grid": "int32:3,5,7", "tile": "int32:1,5,7", "window": "int32:3,1,1", "bucket": "int32:1,2,2", "keep": "int32:2",
    "coreset_keys": "string:key", "text_tokens": "int32:9", "scale": "float32:0.125",
    "attention_precision": "string:same", "ranks": "int32:4",
}  # fmt: skip
TOKENS = "float16:2,36,8,64"  # of 105 video tokens a rank has 27, and all 9 of the text
INPUTS = (TOKENS, TOKENS, TOKENS, "int32:2,8", "int32:8", "int32:2")

both = pytest.mark.parametrize("version", ["recording_driver", "driver8"], ids=["V3", "8.6"])


@pytest.fixture
def host(request: pytest.FixtureRequest, version: str) -> Any:
    """The TensorRT that drives the recording library."""
    return request.getfixturevalue(version)


def arguments(inputs: tuple[str, ...] = INPUTS, **changed: str) -> list[str]:
    fields = {**FIELDS, **changed}
    return [
        f"operator={ULYSSES_ATTENTION.name}",
        *(f"field={name}:{value}" for name, value in fields.items()),
        *(f"input={text}" for text in inputs),
    ]


@both
@pytest.mark.parametrize(("command", "rehearsal"), [("enqueue", 0), ("rehearse", 1)])
def test_enqueue_passes_everything_on(host: Any, command: str, rehearsal: int) -> None:
    """All fields, and whether TensorRT only times the layer, for which there are no other GPUs."""
    findings = host(command, *arguments())
    assert findings.one("result") == "0" and findings.one("sizes right") == "1"
    assert findings.one("params") == f"ranks=4 rehearsal={rehearsal}"
    assert findings.one("head_order") == "0x5000"
    assert findings.one("pointers") == "0x1000 0x2000 0x3000 0x4000 0x6000 0x100000"
    assert findings.one("grid") == "3,5,7" and findings.one("bucket") == "1,2,2"
    assert "batch=2 heads=8 head_dim=64 keep=2 coreset_keys=1 text_tokens=9" in findings.one("problem")
    assert {findings.one(f"{name}_stride") for name in ("query", "key", "value", "output")} == {"18432,512,64"}
    assert findings.one("workspace") == "0x200000 16384" and findings.one("stream") == "0x300000"


@both
def test_output_is_as_the_query(host: Any) -> None:
    assert host("output-shapes", *arguments()).all("shape") == ["2,36,8,64"]
    of_video = arguments(("float16:-1,27,8,64",) * 3 + ("int32:-1,8", "int32:8"), text_tokens="int32:0")
    assert host("output-shapes", *of_video).all("shape") == ["?,27,8,64"]


@both
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: "float16:2,35,8,64"}, "query [2, 35, 8, 64]: must have shape [batch, grid tokens by ranks 27 + text_"),
        ({2: "float16:2,36,4,64"}, "value [2, 36, 4, 64]: must have shape of query = [2, 36, 8, 64]"),
        ({3: "int32:2,2"}, "routes [2, 2]: must have shape [batch, heads] = [2, 8]"),
        ({4: "int32:2"}, "head_order [2]: must have shape [heads] = [8]"),
        ({5: "int32:1"}, "text_length [1]: must have shape [batch] = [2]"),
    ],
)
def test_bad_shapes_are_refused(host: Any, changed: dict[int, str], message: str) -> None:
    inputs = tuple(changed.get(index, text) for index, text in enumerate(INPUTS))
    assert message in host("output-shapes", *arguments(inputs)).all("log")[0]


@pytest.mark.parametrize("ranks", [0, -4, 2000])
def test_ranks_out_of_range_are_refused(driver: Any, ranks: int) -> None:
    """By the kernels' own rule, when the plugin is made."""
    findings = driver("create", *arguments(ranks=f"int32:{ranks}"))
    assert findings.one("created") == "no"
    assert f"layer layer: ranks {ranks}: must be 1 to 1024 and divide" in findings.one("log")


def test_heads_that_ranks_do_not_divide_are_refused(driver: Any) -> None:
    findings = driver("output-shapes", *arguments(ranks="int32:3"))
    assert "grid tokens by ranks 35 + text_tokens 9" in findings.one("log")
    tokens = ("float16:2,44,8,64",) * 3
    findings = driver("output-shapes", *arguments(tokens + INPUTS[3:], ranks="int32:3"))
    assert "ranks 3: must be 1 to 1024 and divide the 8 heads" in findings.one("log")


def test_an_engine_without_its_communicator_fails(driver: Any) -> None:
    findings = driver("enqueue", *arguments())
    assert findings.one("result") == "-1"
    assert "ranks 4: this process has no communicator of 4 GPUs" in findings.one("log")
