# SPDX-License-Identifier: Apache-2.0
"""Every block operator's plugin on a GPU, driven as TensorRT does: the very bits of the torch operator.

Both launch the same kernels, whose errors the operators' own tests measure; here it is the plugin that is tested: which
memory, shapes, types and fields it hands on. The host that plays TensorRT is loaded into this process, where the memory
is.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vorta_trt.model.block_operators  # noqa: F401  (registers the torch operators)
from vorta_trt.plugins import library_path
from vorta_trt.plugins.operator_schema import Element

from .conftest import DRIVER, PLUGIN, PLUGIN8, TENSORRT_8, TENSORRT_11, Compile
from .operator_cases import CASES, Case

pytestmark = pytest.mark.gpu

HOSTS = {"V3": ("driver.cpp", TENSORRT_11), "8.6": ("driver8.cpp", TENSORRT_8)}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int32": torch.int32}
WORKSPACE_BYTES = 64 << 20  # more than any of these cases asks for


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, compile_cpp: Compile) -> tuple[Path, int]:
    source, version = HOSTS[request.param]
    includes = [f"-I{PLUGIN}", f"-I{PLUGIN8}"]
    return compile_cpp(f"lib{source}.so", *includes, DRIVER / source, shared=True), version


def enqueue(host: tuple[Path, int], arguments: list[str]) -> None:
    """Runs the host's command; it stays silent but for what the plugin logs."""
    program, version = host
    line = [str(program), str(library_path()), str(version), "enqueue", *arguments]
    assert (
        ctypes.CDLL(str(program)).main(len(line), (ctypes.c_char_p * len(line))(*(part.encode() for part in line))) == 0
    )


def make(case: Case, index: int, text: str) -> Tensor:
    """Random values for an input."""
    type_, _, extents = text.partition(":")
    shape = [int(extent) for extent in extents.split(",")]
    if case.operator.input_tensors[index].element in (Element.FLOAT8, Element.FLOAT8_TOKENS):
        shape[-1] *= 4  # of e4m3 in an int32
        return torch.randn(shape, device="cuda").to(torch.float8_e4m3fn)
    return torch.randn(shape, device="cuda").to(DTYPES[type_])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operator.name)
@pytest.mark.parametrize("type_", ["float16", "bfloat16"])
def test_plugin_gives_the_bits_of_the_torch_operator(host: tuple[Path, int], case: Case, type_: str) -> None:
    if host[1] == TENSORRT_8 and type_ == "bfloat16":
        pytest.skip("TensorRT 8.6 has no bfloat16")
    torch.manual_seed(0)
    texts = [text.replace("float16", type_) for text in case.inputs]
    inputs = [make(case, index, text) for index, text in enumerate(texts)]
    attributes: dict[str, Any] = case.node_attributes()
    outputs = getattr(torch.ops.vorta, case.operator.torch_name)(*inputs, *attributes.values())
    expected = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    found = [torch.full(tensor.shape, torch.nan, device="cuda").to(tensor.dtype) for tensor in expected]
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    addresses = ",".join(str(tensor.data_ptr()) for tensor in (*inputs, *found, workspace))
    enqueue(host, [*case.arguments(dict(enumerate(texts))), f"memory={addresses}"])
    torch.cuda.synchronize()
    for one, other in zip((tensor.float() for tensor in found), (tensor.float() for tensor in expected), strict=True):
        assert bool(torch.isfinite(one).all()) and torch.equal(one, other)
