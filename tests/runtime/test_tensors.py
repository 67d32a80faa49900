# SPDX-License-Identifier: Apache-2.0
"""Tensor specs, and conversions that change no value."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from vorta_trt.runtime.tensors import (
    TensorSpec,
    as_array,
    as_input,
    byte_size,
    cast_exactly,
    check_names,
    dtype_name,
    kind_of,
    to_numpy,
    to_torch,
)

SPEC = TensorSpec("latents", "float16", ("batch", 4, 6), (1, 4, 6), (3, 4, 6))


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 4, 6)])
def test_shapes_inside_the_profile_pass(shape: tuple[int, ...]) -> None:
    SPEC.check_shape(shape)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 6), r"latents of shape \(4, 6\): has 2 axes, the engine takes 3, \[batch, 4, 6\]"),
        ((1, 5, 6), r"axis 1 must be 4, .* build an engine for this one"),
        ((4, 4, 6), r"axis 0 \(batch\) must lie in 1..3, .* split the batch"),
        ((0, 4, 6), r"axis 0 \(batch\) must lie in 1..3"),
    ],
)
def test_other_shapes_are_refused_with_rule_and_remedy(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPEC.check_shape(shape)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("values", "given", "wanted"),
    [
        ([999, 0, -3], "int64", "float32"),
        ([1 << 24], "int32", "float32"),
        ([5, 2**31 - 1], "int64", "int32"),
        ([True, False], "bool", "int32"),
        ([1.5, -2.0], "float16", "float32"),
        ([1.5, -2.0], "bfloat16", "float32"),
        ([1.5, -2.0, float("nan"), float("inf")], "float64", "float32"),
        ([2.0], "float32", "float32"),
    ],
)
def test_conversions_that_keep_every_value(kind: str, values: list[float], given: str, wanted: str) -> None:
    tensor = torch.tensor(values, dtype=getattr(torch, given))
    array: Any = to_numpy(tensor) if kind == "numpy" else tensor
    converted = cast_exactly("timestep", array, wanted)
    assert dtype_name(converted) == wanted
    assert kind_of("timestep", converted) == kind
    np.testing.assert_array_equal(to_numpy(converted).astype(np.float64), to_numpy(tensor).astype(np.float64))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("values", "given", "wanted", "message"),
    [
        ([(1 << 24) + 1], "int64", "float32", "cannot hold every given value exactly"),
        ([1 << 31], "int64", "int32", "cannot hold every given value exactly"),
        ([0.1], "float64", "float32", "cannot hold every given value exactly"),
        ([1e300], "float64", "float32", "cannot hold every given value exactly"),
        ([1.0], "float32", "float16", "changes values; convert it yourself, e.g. latents"),
        ([1.0], "float32", "bfloat16", "changes values; convert it yourself, e.g. latents"),
        ([1.0], "float16", "bfloat16", "changes values"),
        ([1.0], "bfloat16", "float16", "changes values"),
        ([1.0], "float32", "int32", "changes values"),
    ],
)
def test_conversions_that_would_change_values(
    kind: str, values: list[float], given: str, wanted: str, message: str
) -> None:
    tensor = torch.tensor(values, dtype=getattr(torch, given))
    array: Any = to_numpy(tensor) if kind == "numpy" else tensor
    with pytest.raises(TypeError, match=f"latents of type {given}: the engine takes {wanted}.*{message}"):
        cast_exactly("latents", array, wanted)


def test_bfloat16_crosses_between_numpy_and_torch(seed: int) -> None:
    tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    array = to_numpy(tensor)
    assert array.dtype == ml_dtypes.bfloat16
    assert torch.equal(to_torch(array), tensor)
    assert torch.equal(to_torch(to_numpy(tensor.T)), tensor.T)  # not contiguous


@pytest.mark.parametrize("array", [np.array(2, np.float32), np.zeros((0, 3), np.float32), np.arange(6)[::2]])
def test_odd_arrays_keep_their_shape(array: np.ndarray[Any, Any]) -> None:
    assert to_torch(array).shape == array.shape
    np.testing.assert_array_equal(to_numpy(to_torch(array)), array)


def test_read_only_memory_is_copied() -> None:
    array = np.ones(3, np.float32)
    array.setflags(write=False)
    to_torch(array)[0] = 5
    assert array[0] == 1


def test_names() -> None:
    specs = [TensorSpec(name, "float32", (1,)) for name in ("latents", "timestep", "tau")]
    check_names({"latents": 0, "timestep": 0}, specs, optional=["tau"])
    with pytest.raises(TypeError, match="input 'latent': the engine has no such input"):
        check_names({"latent": 0}, specs)
    with pytest.raises(TypeError, match=r"input 'timestep' is missing: .* \(optional: tau\)"):
        check_names({"latents": 0}, specs, optional=["tau"])


TAU = TensorSpec("tau", "float32", (1,))
TIMESTEP = TensorSpec("timestep", "float32", ("batch",))
OVERRIDE = TensorSpec("route_override", "int32", (2, 3))


@pytest.mark.parametrize(
    "value",
    [
        *(0.3, [0.3], (0.3,), np.float64(0.3), np.float32(0.3), np.array(0.3), np.array([0.3], np.float32)),
        *(torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.3]), [np.float32(0.3)]),
        torch.nn.Parameter(torch.tensor(0.3)),
    ],
)
def test_numbers_serve_for_one_element(value: Any) -> None:
    given = as_input(TAU, value)
    assert (dtype_name(given), tuple(given.shape)) == ("float32", (1,))
    assert to_numpy(given)[0] == np.float32(0.3)


@pytest.mark.parametrize("value", [True, 2, np.int64(2), ml_dtypes.bfloat16(2), torch.tensor(2), np.array(2, np.int8)])
def test_whole_numbers_serve_for_one_element(value: Any) -> None:
    for spec in (TAU, TIMESTEP, TensorSpec("layer", "int32", (1,)) if value != ml_dtypes.bfloat16(2) else TAU):
        given = as_input(spec, value)
        assert (dtype_name(given), tuple(given.shape), float(given[0])) == (spec.dtype, (1,), float(value))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_have_no_type_of_their_own(dtype: str) -> None:
    given = as_input(TensorSpec("guidance", dtype, (2,)), [0.3, float("inf")])
    np.testing.assert_array_equal(to_numpy(given), np.array([0.3, np.inf]).astype(given.dtype))
    with pytest.raises(TypeError, match="guidance of type float64: the engine takes"):
        as_input(TensorSpec("guidance", dtype, (2,)), np.array([0.3, 1.0]))
    with pytest.raises(TypeError, match="guidance: .*cannot hold 1e[+]300"):
        as_input(TensorSpec("guidance", dtype, (2,)), [1e300, 1.0])


def test_lists_of_routes() -> None:
    for value in ([[-1, 0, 1], [2, 2, 2]], [(-1, 0, 1), np.array([2, 2, 2])], np.array([[-1, 0, 1], [2, 2, 2]])):
        given = as_input(OVERRIDE, value)
        assert dtype_name(given) == "int32" and to_numpy(given).tolist() == [[-1, 0, 1], [2, 2, 2]]


@pytest.mark.parametrize(
    ("spec", "value", "error", "message"),
    [
        (TAU, [0.3, 0.4], ValueError, r"tau of shape \(2,\): axis 0 must be 1, .* \[1\]; give that shape$"),
        (TAU, [], ValueError, r"tau of shape \(0,\): axis 0 must be 1"),
        (TAU, [[0.3]], ValueError, r"tau of shape \(1, 1\): has 2 axes, the engine takes 1"),
        (TAU, ["0.3"], TypeError, "tau: .*numbers"),
        (TAU, [None], TypeError, "tau: .*numbers"),
        (TAU, 10**400, TypeError, "tau: .*numbers"),
        (TAU, 1 + 2j, TypeError, "tau of type complex"),
        (TAU, float("nan"), ValueError, "tau nan: is no number"),
        (TAU, [np.float32("nan")], ValueError, "tau .*nan.*: is no number"),
        (OVERRIDE, 1, ValueError, r"route_override of shape \(\): has 0 axes, the engine takes 2"),
        (OVERRIDE, [1, 2, 0], ValueError, r"route_override of shape \(3,\): has 1 axes"),
        (OVERRIDE, [[1, 2], [0, 1]], ValueError, r"route_override of shape \(2, 2\): axis 1 must be 3"),
        (OVERRIDE, [[1, 2, 0], [0, 1]], ValueError, "route_override: .*rows of one length"),
        (OVERRIDE, [[1, 2, 0], [0, 1, 0.5]], TypeError, "route_override of type float64: the engine takes int32"),
        (OVERRIDE, [[1, 2, 0], [0, 1, 2**40]], TypeError, "route_override of type int64: .*cannot hold every"),
    ],
)
def test_numbers_and_lists_that_are_refused(spec: TensorSpec, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_input(spec, value)


def test_only_arrays_and_numbers_are_inputs() -> None:
    assert kind_of("tau", 0.3) is None
    assert kind_of("tau", [0.3]) is None
    with pytest.raises(TypeError, match="tau of type str: inputs are NumPy arrays or torch tensors"):
        kind_of("tau", "0.3")


class OfAnotherLibrary:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__


def test_arrays_of_other_libraries_are_torch_tensors_without_a_copy() -> None:
    tensor = torch.arange(6).bfloat16()
    other = OfAnotherLibrary(tensor)
    assert kind_of("latents", other) == "dlpack"
    taken = as_array("latents", other)
    assert isinstance(taken, torch.Tensor)
    assert taken.data_ptr() == tensor.data_ptr() and torch.equal(taken, tensor)
    assert as_array("latents", tensor) is tensor
    tracked = tensor.clone().requires_grad_() * 2
    assert not as_array("latents", tracked).requires_grad  # type: ignore[union-attr]
    np.testing.assert_array_equal(as_array("tau", [0.5]), np.array([0.5]))


def test_byte_sizes() -> None:
    assert [byte_size(shape, dtype) for shape, dtype in (((2, 3), "bfloat16"), ((), "float32"), ((0, 4), "int32"))] == [
        12,
        4,
        0,
    ]
