# SPDX-License-Identifier: Apache-2.0
"""Sums of per-layer times; `test_tensorrt_executor` has how they are measured."""

from __future__ import annotations

import pytest

from vorta_trt.runtime.executors.layer_times import summarise

NODES = {"a": ["blocks.0.ffn/MatMul"], "b": ["blocks.1.ffn/MatMul"]}


def test_medians_are_summed_by_module() -> None:
    times = summarise({"a": [1.0, 9.0, 2.0], "b": [3.0, 3.0, 3.0], "proj_out/Add": [5.0, 6.0, 7.0]}, NODES, repeats=3)
    assert [(layer.name, layer.module, layer.milliseconds) for layer in times.layers] == [
        ("a", "blocks.*.ffn", 2.0),
        ("b", "blocks.*.ffn", 3.0),
        ("proj_out/Add", "proj_out", 6.0),
    ]
    assert [(module.name, module.layers, module.milliseconds) for module in times.modules] == [
        ("proj_out", 1, 6.0),
        ("blocks.*.ffn", 2, 5.0),
    ]
    assert times.milliseconds == 11.0
    assert sum(module.share for module in times.modules) == pytest.approx(1)


def test_layers_that_report_several_parts_of_a_run() -> None:
    times = summarise({"loop": [1.0, 2.0, 10.0, 20.0, 3.0, 4.0]}, {}, repeats=3)
    assert times.layers[0].milliseconds == 7.0
    assert times.modules[0].name == ""
    assert list(times.lines())[1].endswith("(no module), 1 layers")


def test_layers_that_do_not_report_in_every_run() -> None:
    assert summarise({"now and then": [4.0, 5.0]}, {}, repeats=3).layers[0].milliseconds == 3.0
