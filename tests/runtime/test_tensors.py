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
    with pytest.raises(
        TypeError, match="input 'latent': the engine has no such input; it takes latents, timestep, tau"
    ):
        check_names({"latent": 0}, specs)
    with pytest.raises(TypeError, match=r"input 'timestep' is missing: .* \(optional: tau\)"):
        check_names({"latents": 0}, specs, optional=["tau"])


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
