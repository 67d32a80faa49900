# SPDX-License-Identifier: Apache-2.0
"""Files for TensorRT 8.6, which have no portable form of the operator: described like any other, and not run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vorta_trt.runtime import Engine
from vorta_trt.runtime.inspection import inspect_target
from vorta_trt.runtime.sampling.locate_non_finite import locate_in_onnx
from vorta_trt.runtime.sampling.path_source import timestep_path_of
from vorta_trt.runtime.target import read_target
from vorta_trt.runtime.verification.layers import compare_layers
from vorta_trt.runtime.verification.verify import verify

from ...tiny import Tiny

NOT_PORTABLE = "has no portable form of vorta::RoutedAttention, as files of opset 17 for TensorRT 8.6 have none"


@pytest.fixture(scope="module")
def exported(wan: Tiny) -> Path:
    return wan.export("fp16", opset=17)


def test_it_is_described(exported: Path) -> None:
    """The memory plan is one for TensorRT 8.6: no weight streaming, activations of the largest batch in any case."""
    report = inspect_target(exported, cards=[1.5001])
    assert "portable   has NO function body" in "\n".join(report.lines())
    plan = report.memory_plan
    assert plan.activations[1] == plan.activations[2] > 0
    assert not plan.cards[0].fits
    path = timestep_path_of(exported)
    assert path is not None and path.has_router


@pytest.mark.parametrize("executor", [None, "onnxruntime", "reference"])
def test_it_is_not_run(wan: Tiny, exported: Path, executor: Any) -> None:
    with pytest.raises(ValueError, match=NOT_PORTABLE):
        Engine(exported, executor=executor)
    said: list[str] = []
    with pytest.raises(ValueError, match=NOT_PORTABLE):
        verify(exported, wan.checkpoint, wan.router, executor=executor, progress=said.append)
    assert said == [f"reading {exported.name}"]  # and torch has not run


def test_searches_for_a_layer_say_why_they_do_not_look(exported: Path) -> None:
    """As for the ONNX file in a bundle of TensorRT 8.6, whose engine runs all the same."""
    target = read_target(exported)
    found = locate_in_onnx(target, {"hidden_states": np.zeros(1, np.float16)})
    assert found.startswith(f"the layer was not looked for, since {exported.name} {NOT_PORTABLE}")
    subject: Any = SimpleNamespace(target=target)
    report = compare_layers(subject, SimpleNamespace(name="any"), case_passed=False)  # type: ignore[arg-type]
    assert report.note.startswith(f"the ONNX file {NOT_PORTABLE}") and not report.modules
