# SPDX-License-Identifier: Apache-2.0
"""An exported Wan against the same model in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from vorta_trt.model import RoutedTransformer

from .running import (
    CORESET,
    FULL,
    ROUTER,
    ROUTINGS,
    SLIDING,
    Inputs,
    Outputs,
    errors,
    fresh_inputs,
    in_onnxruntime,
    in_reference_evaluator,
    in_torch,
)


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
