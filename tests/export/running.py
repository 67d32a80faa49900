# SPDX-License-Identifier: Apache-2.0
"""Exported models run in ONNX Runtime, in the reference evaluator and in torch, on fresh inputs."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from vorta_trt.export import for_reference_evaluator
from vorta_trt.model import RoutedTransformer

Inputs = dict[str, Tensor]
Outputs = tuple[np.ndarray, np.ndarray]
FULL, CORESET, SLIDING, ROUTER = 0, 1, 2, -1


def in_onnxruntime(path: Path, inputs: Inputs) -> Outputs:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of constants that it cannot fold in float16
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    sample, routes = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return sample.astype(np.float32), routes


def in_reference_evaluator(path: Path, inputs: Inputs) -> Outputs:
    model = for_reference_evaluator(onnx.load(path))
    feed = {
        name: tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        if tensor.dtype == torch.bfloat16
        else tensor.numpy()
        for name, tensor in inputs.items()
    }
    sample, routes = ReferenceEvaluator(model).run(None, feed)
    return sample.astype(np.float32), routes


def in_torch(model: RoutedTransformer, inputs: Inputs) -> Outputs:
    with torch.no_grad():
        sample, routes = model(**inputs)
    return sample.float().numpy(), routes.numpy()


def fresh_inputs(model: RoutedTransformer, batch: int, tau: float, routing: int | str) -> Inputs:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    inputs = model.inputs(batch, seed)
    inputs["tau"] = torch.tensor([tau])
    override = inputs["route_override"]
    if isinstance(routing, int):
        override.fill_(routing)
    else:  # three branches and the router side by side
        override.copy_(torch.randint(-1, 3, override.shape, generator=torch.Generator().manual_seed(seed)))
    return inputs


def errors(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Relative L2 error of each sample, [B]."""
    axes = tuple(range(1, exact.ndim))
    return np.linalg.norm((got - exact).reshape(len(exact), -1), axis=1) / np.sqrt((exact**2).sum(axes))


ROUTINGS = [
    pytest.param(0.3, ROUTER, id="router, tau 0.3"),
    pytest.param(0.0, ROUTER, id="router, tau 0"),
    pytest.param(1.1, ROUTER, id="router, tau 1.1"),
    pytest.param(0.3, FULL, id="all full"),
    pytest.param(0.3, CORESET, id="all coreset"),
    pytest.param(1.1, SLIDING, id="all sliding"),
    pytest.param(0.3, "mixed", id="mixed"),
]
