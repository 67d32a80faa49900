# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime of the wheels reports to its makers, and marks the user's home, unless it is told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

RUN = """
import sys
import numpy as np
from vorta_trt.runtime import Engine
with Engine(sys.argv[1]) as engine:
    assert engine.executor == "onnxruntime"
    assert engine(x=np.float32([-1, 2]))["y"].tolist() == [0, 2]
"""


def test_an_engine_on_the_cpu_writes_nothing_into_home(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    environment["HOME"] = str(home)
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path / "m.onnx")], env=environment, check=True, timeout=120)
    assert [path for path in home.rglob("*") if path.is_file()] == []
