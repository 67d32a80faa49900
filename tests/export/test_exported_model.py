# SPDX-License-Identifier: Apache-2.0
"""An exported Wan against the same model in torch."""

from __future__ import annotations

import os
from collections.abc import Callable
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
    options.intra_op_num_threads = 2
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


@pytest.mark.parametrize(("tau", "routing"), ROUTINGS)
@pytest.mark.parametrize("batch", [1, 2])
def test_float32_in_onnxruntime(
    exported: Callable[[str], Path], load: Callable[..., RoutedTransformer], batch: int, tau: float, routing: int | str
) -> None:
    model = load()
    inputs = fresh_inputs(model, batch, tau, routing)
    expected, expected_routes = in_torch(model, inputs)
    sample, routes = in_onnxruntime(exported("fp32"), inputs)
    np.testing.assert_array_equal(routes, expected_routes)
    assert np.isfinite(sample).all()
    assert errors(sample, expected).max() < 1e-5
    assert np.abs(sample - expected).max() < 1e-5 * np.abs(expected).max()
    if tau > 1 and routing == ROUTER:
        assert (routes == FULL).all()
    if tau == 0 and routing == ROUTER:
        assert len(np.unique(routes)) == 3, "the test's router must use all branches"
    if routing in (FULL, CORESET, SLIDING):
        assert (routes == routing).all()


@pytest.mark.parametrize(("tau", "routing"), ROUTINGS)
@pytest.mark.parametrize(
    ("precision", "run", "samples"),
    [
        pytest.param("fp16", in_onnxruntime, 7, id="fp16 in ONNX Runtime"),
        pytest.param("bf16", in_reference_evaluator, 5, id="bf16 in the reference evaluator"),
    ],
)
def test_half_types_lose_no_more_than_torch(
    exported: Callable[[str], Path],
    load: Callable[..., RoutedTransformer],
    precision: str,
    run: Callable[[Path, Inputs], Outputs],
    samples: int,
    tau: float,
    routing: int | str,
) -> None:
    half = load(precision)
    inputs = fresh_inputs(half, samples, tau, routing)
    widened = {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}
    exact, _ = in_torch(load(), widened)
    in_half, half_routes = in_torch(half, inputs)
    sample, routes = run(exported(precision), inputs)
    np.testing.assert_array_equal(routes, half_routes)
    assert np.isfinite(sample).all()
    # Where two tokens are almost equally similar to their centre, rounding decides which one the coreset keeps, in
    # torch as in ONNX. The error of a sample that this happened to says nothing about the arithmetic: compare the best.
    typical = np.min if (routes == CORESET).any() else np.median
    own, torchs = typical(errors(sample, exact)), typical(errors(in_half, exact))
    print(f"error {own:.2e}, torch's {torchs:.2e}")
    assert own < 2 * torchs


def test_conversion_rounds_as_loading_does(
    exported: Callable[[str], Path], load: Callable[..., RoutedTransformer]
) -> None:
    loaded = dict(load("bf16").named_parameters())
    written = {tensor.name: tensor for tensor in onnx.load(exported("bf16")).graph.initializer}
    for name, parameter in loaded.items():
        tensor = written.get(name)
        value = parameter.detach()
        if tensor is None:
            tensor, value = written[f"{name}.transposed"], value.t()
        array = onnx.numpy_helper.to_array(tensor)
        assert array.dtype.name == str(parameter.dtype).removeprefix("torch."), name
        np.testing.assert_array_equal(array.astype(np.float32), value.float().numpy(), err_msg=name)
