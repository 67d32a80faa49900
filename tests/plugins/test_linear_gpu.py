# SPDX-License-Identifier: Apache-2.0
"""Linear layers on a GPU against float64: at most twice the error that torch makes in the same dtype.

Letters: R rows, K input features, O output features.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.block_operators.references import quantize_rows
from vorta_trt.model.precision import dtype_name
from vorta_trt.plugins import load_library
from vorta_trt.plugins.linear import OWN_KERNEL, LinearParams, QuantizeParams, workspace_size
from vorta_trt.plugins.operator_calls import enqueue

pytestmark = pytest.mark.gpu
LARGEST = 448.0
CUBLASLT = 1  # the first kernel that it lists


@dataclass(frozen=True)
class Case:
    """One layer."""

    rows: int
    in_features: int
    out_features: int
    dtype: str = "bfloat16"
    precision: str = "same"
    activation: str = "none"
    bias: bool = True
    padding: int = 0  # elements between the rows of input and output
    candidate: int = 0

    def __str__(self) -> str:
        words = [f"R{self.rows}-K{self.in_features}-O{self.out_features}", self.dtype, self.precision, self.activation]
        words += [] if self.bias else ["no_bias"]
        words += [f"padding{self.padding}"] if self.padding else []
        return "-".join([*words, {0: "default", CUBLASLT: "cublaslt", OWN_KERNEL: "own"}[self.candidate]])


PLAIN = Case(300, 512, 384)
SHAPES = [
    PLAIN,
    *(replace(PLAIN, rows=rows) for rows in (1, 2, 127, 128, 129, 1025)),
    *(replace(PLAIN, in_features=k) for k in (16, 48, 80, 1536, 13824)),
    *(replace(PLAIN, out_features=o) for o in (16, 112, 144, 1536)),
    replace(PLAIN, bias=False),
    replace(PLAIN, padding=16),
    replace(PLAIN, activation="gelu_tanh"),
    replace(PLAIN, activation="gelu_tanh", bias=False),
    Case(2049, 5120, 1280),
]
CASES = (
    [
        replace(case, dtype=dtype, precision=precision, candidate=candidate)
        for case in SHAPES
        for dtype in ("float16", "bfloat16")
        for precision in ("same", "fp8")
        for candidate in (0, CUBLASLT, OWN_KERNEL)
    ]
    + [
        replace(PLAIN, in_features=8, out_features=24, candidate=candidate)  # fp8 needs multiples of 16
        for candidate in (0, OWN_KERNEL)
    ]
    + [
        # Hopper's fp8 product has a tile for each activation, in clusters of 256 rows, and an order of tiles in bands.
        replace(case, dtype=dtype, precision="fp8", activation=activation)
        for case in (
            *(Case(rows, 272, 272) for rows in (1, 127, 129, 257, 71999, 72001)),
            *(Case(300, k, o) for k, o in ((16, 16), (48, 48), (16, 5120), (13824, 272))),
            Case(300, 512, 272, bias=False),
            Case(300, 528, 272, padding=16),
            Case(
                2900, 272, 5120
            ),  # more tiles than multiprocessors, several bands of both kinds, the last ones narrower
            Case(2561, 48, 13824),
            Case(1300, 13824, 5120),
        )
        for dtype in ("float16", "bfloat16")
        for activation in ("none", "gelu_tanh")
    ]
)


@dataclass
class Layer:
    """Tensors of a case: input [R, K], weight [O, K], scale [O] with fp8, bias [O]."""

    input: Tensor
    weight: Tensor
    weight_scale: Tensor | None
    bias: Tensor | None


def make_layer(case: Case, seed: int) -> Layer:
    """Numbers with rows and features of very different size, NaN between the rows of the input."""
    generator = torch.Generator("cuda").manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    memory = torch.full((case.rows, case.in_features + case.padding), torch.nan, device="cuda", dtype=dtype)
    memory[:, : case.in_features] = (normal(case.rows, case.in_features) * normal(case.rows, 1).exp()).to(dtype)
    weight = normal(case.out_features, case.in_features) * normal(case.out_features, 1).exp() / case.in_features**0.5
    bias = normal(case.out_features).to(dtype) if case.bias else None
    if case.precision == "same":
        return Layer(memory[:, : case.in_features], weight.to(dtype), None, bias)
    scale = weight.abs().amax(1) / LARGEST
    return Layer(memory[:, : case.in_features], (weight / scale[:, None]).to(torch.float8_e4m3fn), scale, bias)


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [R, K] as e4m3 and their scales [R], as the header says it.

    On the CPU: on a GPU torch divides by a number as it multiplies with its reciprocal, which rounds otherwise.
    """
    numbers, scale = quantize_rows(rows.cpu())
    return numbers.to(rows.device), scale[:, 0].to(rows.device)


def quantized_by_library(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same by `vorta_quantize_enqueue`, whose rows may lie apart."""
    numbers = torch.full(rows.shape, torch.nan, device="cuda").to(torch.float8_e4m3fn)
    scale = torch.full((len(rows),), torch.nan, device="cuda")
    params = QuantizeParams(
        dtype=dtype_name(rows.dtype),
        rows=rows.shape[0],
        features=rows.shape[1],
        input=rows.data_ptr(),
        input_stride=rows.stride(0),
        quantized=numbers.data_ptr(),
        quantized_scale=scale.data_ptr(),
    )
    enqueue(load_library(), params, torch.cuda.current_stream().cuda_stream)
    return numbers, scale


def operands(case: Case, layer: Layer) -> dict[str, Tensor]:
    """The input as the library takes it, by the names of `LinearParams`; rows in e4m3 lie apart where others do."""
    if case.precision == "same":
        return {"input": layer.input}
    numbers, scale = quantized_by_library(layer.input)
    memory = torch.zeros(case.rows, case.in_features + 2 * case.padding, device="cuda", dtype=torch.uint8)
    memory[:, : case.in_features] = numbers.view(torch.uint8)
    return {"input": memory.view(numbers.dtype)[:, : case.in_features], "input_scale": scale}


def run(case: Case, layer: Layer, *, given: dict[str, Tensor] | None = None, second_features: int = 0) -> Tensor:
    """The library's output [R, O]; what lies between its rows is checked to be left alone.

    Args:
        case: The layer.
        layer: Its tensors.
        given: The input, if not as `operands` makes it.
        second_features: How many of the input's features are given as a second input, in memory of its own.
    """
    dtype = getattr(torch, case.dtype)
    memory = torch.full((case.rows, case.out_features + case.padding), torch.nan, device="cuda", dtype=dtype)
    output = memory[:, : case.out_features]
    params = LinearParams(
        dtype=case.dtype,
        precision=case.precision,
        activation=case.activation,
        rows=case.rows,
        in_features=case.in_features,
        out_features=case.out_features,
        candidate=case.candidate,
        weight=layer.weight.data_ptr(),
        weight_scale=None if layer.weight_scale is None else layer.weight_scale.data_ptr(),
        bias=None if layer.bias is None else layer.bias.data_ptr(),
        output=output.data_ptr(),
        output_stride=memory.stride(0),
    )
    given = given or operands(case, layer)
    for name, tensor in given.items():
        setattr(params, name, tensor.data_ptr())
    params.input_stride = given["input"].stride(0)
    if second_features:
        second = layer.input[:, case.in_features - second_features :].contiguous()
        params.second_features, params.second_input = second_features, second.data_ptr()
        params.second_stride = second_features
    library = load_library()
    workspace = torch.empty(workspace_size(library, params), dtype=torch.uint8, device="cuda")
    params.workspace, params.workspace_bytes = workspace.data_ptr(), workspace.numel()
    enqueue(library, params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert memory[:, case.out_features :].isnan().all()
    return output


def activated(case: Case, product: Tensor) -> Tensor:
    return functional.gelu(product, approximate="tanh") if case.activation == "gelu_tanh" else product


def expected(case: Case, layer: Layer) -> Tensor:
    """The layer in float64; fp8's rounding of the input is part of what is asked for."""
    bias = 0 if layer.bias is None else layer.bias.double()
    if layer.weight_scale is None:
        return activated(case, layer.input.double() @ layer.weight.double().T + bias)
    numbers, scale = quantize(layer.input)
    product = numbers.double() @ layer.weight.double().T
    return activated(case, product * scale.double()[:, None] * layer.weight_scale.double() + bias)


def peer(case: Case, layer: Layer) -> Tensor:
    """Torch's answer in the same dtype; with fp8 its own product of the same 8-bit numbers, which sums as ours does."""
    if layer.weight_scale is None:
        return activated(case, functional.linear(layer.input, layer.weight, layer.bias))
    numbers, scale = quantize(layer.input)
    if torch.cuda.get_device_capability() == (9, 0):
        scales = (scale[:, None], layer.weight_scale[None])
        product = torch._scaled_mm(numbers, layer.weight.T, *scales, out_dtype=torch.bfloat16, use_fast_accum=True)
        rounded = product.to(layer.input.dtype)
    else:
        product = numbers.float() @ layer.weight.float().T
        rounded = (product * scale[:, None] * layer.weight_scale).to(layer.input.dtype)
    return activated(case, rounded if layer.bias is None else rounded + layer.bias)


def relative_error(output: Tensor, reference: Tensor) -> float:
    """Of every row by its own size, since rows differ by orders of magnitude; then the mean over rows."""
    difference = (output.double() - reference).norm(dim=1) / reference.norm(dim=1).clamp(min=1e-30)
    return difference.mean().item()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_torchs(case: Case) -> None:
    layer = make_layer(case, seed=len(str(case)))
    output, reference = run(case, layer), expected(case, layer)
    assert output.isfinite().all()
    # A unit in the last place of the rounding at the end, where torch happens to be exact.
    floor = torch.finfo(output.dtype).eps / 8
    assert relative_error(output, reference) <= 2 * relative_error(peer(case, layer), reference) + floor


WIDE = [case for case in CASES if case.precision == "same" and case.in_features > 16]


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_two_inputs_are_one_whose_features_lie_side_by_side(case: Case) -> None:
    """One more rounding, of the first input's sums, so the limit is that of the whole layer."""
    layer = make_layer(case, seed=len(str(case)))
    reference = expected(case, layer)
    for features in {8, case.in_features // 16 * 8, case.in_features - 8}:
        output = run(case, layer, second_features=features)
        assert output.isfinite().all()
        floor = torch.finfo(output.dtype).eps / 8
        assert relative_error(output, reference) <= 2 * relative_error(peer(case, layer), reference) + floor


@pytest.mark.parametrize("candidate", [0, CUBLASLT, OWN_KERNEL])
def test_an_input_that_torch_quantised_gives_the_same_bits(candidate: int) -> None:
    case = replace(PLAIN, precision="fp8", candidate=candidate)
    layer = make_layer(case, seed=1)
    layer.input[7] = 0
    numbers, scale = quantize(layer.input)
    assert run(case, layer).equal(run(case, layer, given={"input": numbers, "input_scale": scale}))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("in_features", [512, 1040, 3072, 5120, 12288, 13824, 15360, 16400])
def test_rows_are_quantised_as_torch_does(in_features: int, dtype: str) -> None:
    # By the operator that does nothing else, and by a layer: the identity as weights gives the numbers back, scaled.
    case = Case(40, in_features, 512, dtype, "fp8", bias=False, candidate=OWN_KERNEL)
    layer = make_layer(case, seed=in_features)
    layer.weight = torch.zeros(512, in_features, device="cuda")
    layer.weight[:, :512].fill_diagonal_(1)
    layer.weight = layer.weight.to(torch.float8_e4m3fn)
    layer.weight_scale = torch.ones(512, device="cuda")
    layer.input[3] = 0
    layer.input[4, 100] = layer.input[4].abs().max() * 50  # an outlier: the others become coarse or 0
    numbers, scale = quantize(layer.input)
    found, found_scale = quantized_by_library(layer.input)
    assert found_scale.equal(scale) and found.view(torch.uint8).equal(numbers.view(torch.uint8))
    assert run(case, layer).equal((numbers[:, :512].float() * scale[:, None]).to(layer.input.dtype))


@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_nan_stays_in_its_row(precision: str) -> None:
    case = replace(PLAIN, precision=precision)
    layer = make_layer(case, seed=2)
    clean = run(case, layer)
    layer.input[5, 17] = torch.nan
    output = run(case, layer)
    assert output[5].isnan().all()
    others = torch.arange(case.rows, device="cuda") != 5
    assert output[others].equal(clean[others])


@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_more_than_2_to_the_31_elements(precision: str) -> None:
    case = Case((2**31 // 8192) + 300, 8192, 512, precision=precision)
    layer = make_layer(replace(case, rows=64), seed=3)
    layer.input = layer.input.repeat(case.rows // 64 + 1, 1)[: case.rows]
    output = run(case, layer)
    first = run(replace(case, rows=64), Layer(layer.input[:64], layer.weight, layer.weight_scale, layer.bias))
    last = case.rows // 64 * 64 - 64
    torch.testing.assert_close(output[last : last + 64].float(), first.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_the_first_call_of_a_process_may_be_captured(precision: str) -> None:
    program = f"""
        import torch
        from tests.plugins.test_linear_gpu import PLAIN, make_layer, replace, load_library, LinearParams, enqueue
        from tests.plugins.test_linear_gpu import workspace_size, operands, run
        case = replace(PLAIN, precision="{precision}", activation="gelu_tanh")
        layer = make_layer(case, 1)
        output = torch.full((case.rows, case.out_features), torch.nan, dtype=torch.bfloat16, device="cuda")
        params = LinearParams(
            dtype=case.dtype, precision=case.precision, activation=case.activation, rows=case.rows,
            in_features=case.in_features, out_features=case.out_features,
            weight=layer.weight.data_ptr(), bias=layer.bias.data_ptr(), output=output.data_ptr(),
            weight_scale=layer.weight_scale.data_ptr() if layer.weight_scale is not None else None)
        given = operands(case, layer)
        for name, tensor in given.items():
            setattr(params, name, tensor.data_ptr())
        workspace = torch.empty(workspace_size(load_library(), params), dtype=torch.uint8, device="cuda")
        params.workspace, params.workspace_bytes = workspace.data_ptr(), workspace.numel()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            enqueue(load_library(), params, torch.cuda.current_stream().cuda_stream)
        for _ in range(2):
            output.fill_(torch.nan)
            graph.replay()
            torch.cuda.synchronize()
            assert output.equal(run(case, layer))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=300)
