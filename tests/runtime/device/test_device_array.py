# SPDX-License-Identifier: Apache-2.0
"""DLPack in and out, with the consumers and producers that are installed: torch and NumPy, on the CPU."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.runtime.device.device_array import CPU, DeviceArray, _exported


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2), (1, 4, 1)])
def test_torch_tensors_cross_without_a_copy(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))
    array = DeviceArray.from_dlpack("latents", tensor)
    assert (array.shape, array.dtype, array.device) == (shape, dtype, (CPU, 0))
    back = torch.from_dlpack(array)
    assert back.data_ptr() == tensor.data_ptr()
    assert back.dtype == tensor.dtype and torch.equal(back, tensor)


def test_memory_lives_as_long_as_its_users() -> None:
    source = np.arange(6, dtype=np.float32).reshape(2, 3)
    references = sys.getrefcount(source)
    array = DeviceArray.from_dlpack("latents", source)
    consumer = np.from_dlpack(array)
    del array
    gc.collect()
    assert sys.getrefcount(source) > references and len(_exported) == 1
    np.testing.assert_array_equal(consumer, source)
    del consumer
    gc.collect()
    assert sys.getrefcount(source) == references and not _exported


def test_a_capsule_that_nobody_takes_frees_its_tensor() -> None:
    array = DeviceArray.from_dlpack("latents", np.zeros(3, np.float32))
    capsule = array.__dlpack__(stream=None, max_version=(1, 0))
    assert len(_exported) == 1
    del capsule
    assert not _exported


def test_parts_of_a_tensor_keep_their_place() -> None:
    tensor = torch.arange(12).reshape(3, 4)
    part = DeviceArray.from_dlpack("latents", tensor[1:])
    assert part.pointer == tensor[1:].data_ptr()
    assert torch.equal(torch.from_dlpack(part), tensor[1:])


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (torch.zeros(3, 4).T, ValueError, r"latents of shape \(4, 3\): is not contiguous"),
        (torch.zeros(2, dtype=torch.complex64), TypeError, "latents: DLPack type code 5 is none that engines take"),
    ],
)
def test_what_engines_do_not_take(array: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DeviceArray.from_dlpack("latents", array)
