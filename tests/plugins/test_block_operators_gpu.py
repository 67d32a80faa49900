# SPDX-License-Identifier: Apache-2.0
"""The block operators on a GPU against float64: at most twice the error that torch's operators make in the same dtype.

Letters: B batch, X tokens, N heads, D head dimension, E features (= N D), M rows of a modulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.block_operators.references import quantize_rows
from vorta_trt.plugins import load_library
from vorta_trt.plugins.block_operators import (
    BlockOperatorParams,
    HeadNormParams,
    NormModulateParams,
    QKNormRotaryParams,
    ResidualNormModulateParams,
)
from vorta_trt.plugins.operator_calls import enqueue

pytestmark = pytest.mark.gpu
EPSILON = 1e-6


@dataclass(frozen=True)
class Case:
    """One problem; `rows` is how the tokens' tensors lie in memory."""

    batch: int
    tokens: int
    heads: int
    head_dim: int
    dtype: str = "bfloat16"
    per_head: bool = False
    weight: str = "same"
    rows: str = "contiguous"
    first_tokens: int = 0  # above 0: two rows of modulation
    one_modulation: bool = False  # for all samples

    @property
    def features(self) -> int:
        return self.heads * self.head_dim

    def __str__(self) -> str:
        named = [f"B{self.batch}-X{self.tokens}-N{self.heads}-D{self.head_dim}-{self.dtype}-{self.rows}"]
        named += ["per_head"] * self.per_head + [f"first{self.first_tokens}"] * bool(self.first_tokens)
        return "-".join(named + ["one"] * self.one_modulation + [self.weight] * (self.weight != "same"))


CASES = [
    # Widths of the models and around the numbers of vectors that a thread holds.
    *(Case(2, 77, heads, 128, dtype, first_tokens=30) for heads in (12, 16, 24, 40, 64)
      for dtype in ("float16", "bfloat16")),
    *(Case(1, 5, heads, 8, first_tokens=2) for heads in (1, 2, 31, 33, 255, 257, 639, 641, 1023)),
    # Heads in the lanes of a warp, and of other lengths.
    *(Case(2, 33, 5, head_dim, dtype, per_head=True) for head_dim in (8, 16, 24, 40, 64, 96, 128, 192, 248, 256)
      for dtype in ("float16", "bfloat16")),
    Case(1, 301, 24, 128, per_head=True),
    Case(1, 19, 32, 256, per_head=True),
    # Blocks of rows that straddle samples, and a last one that is not full.
    *(Case(3, tokens, 3, 64, first_tokens=first) for tokens, first in ((1, 0), (1, 1), (2, 1), (3, 2), (5, 9), (7, 3))),
    Case(2, 50, 12, 128, rows="fused", first_tokens=7),
    Case(2, 50, 24, 128, "float16", rows="fused", per_head=True),
    Case(2, 50, 12, 128, rows="slices"),
    Case(3, 50, 12, 128, rows="one_sample"),
    Case(3, 50, 12, 128, one_modulation=True, first_tokens=20),
    Case(3, 50, 12, 128, one_modulation=True),
    Case(2, 50, 40, 128, weight="float32"),
    Case(2, 50, 12, 128, "float16", weight="float32", per_head=True),
    Case(1, 20000, 40, 128),
]  # fmt: skip


class Inputs:
    """The tensors of a case."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.generator = case, torch.Generator("cuda").manual_seed(seed)
        self.dtype = getattr(torch, case.dtype)
        self.first, self.second = self.tokens(), self.tokens()  # [B, X, E]
        length = case.head_dim if case.per_head else case.features
        weight_dtype = torch.float32 if case.weight == "float32" else self.dtype
        self.weights = [(1 + 0.2 * self.normal(length)).to(weight_dtype) for _ in range(2)]
        angles = 3 * self.normal(case.tokens, case.head_dim // 2)
        self.cos, self.sin = angles.cos(), angles.sin()  # [X, D/2]
        batch, rows = 1 if case.one_modulation else case.batch, 2 if case.first_tokens else 1
        modulations = 0.5 * self.normal(batch, 3 * rows, case.features)
        self.gate, self.scale, self.shift = modulations.split(rows, dim=1)  # [B or 1, M, E]
        self.scale += 1

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device="cuda")

    def tokens(self) -> Tensor:
        """[B, X, E] in the case's layout, with a mean and channels that stick out; NaN wherever nobody may read."""
        case = self.case
        shape = (1 if case.rows == "one_sample" else case.batch, case.tokens, case.features)
        numbers = 2 * self.normal(*shape) + 0.7
        numbers[..., ::7] *= 20
        if case.rows == "one_sample":
            return numbers.to(self.dtype).expand(case.batch, -1, -1)
        options: dict[str, Any] = {"dtype": self.dtype, "device": "cuda"}
        if case.rows == "fused":
            home = torch.full((*shape[:2], 3, shape[2]), torch.nan, **options)[:, :, 1]
        elif case.rows == "slices":
            home = torch.full((shape[0], shape[1] + 99, shape[2]), torch.nan, **options)[:, 40:-59]
        else:
            home = torch.empty(shape, **options)
        return home.copy_(numbers)

    def row_of_token(self, modulation: Tensor) -> Tensor:
        """[B or 1, M, E] -> [B or 1, X or 1, E]."""
        if modulation.shape[1] == 1:
            return modulation
        return modulation[:, (torch.arange(self.case.tokens, device="cuda") >= self.case.first_tokens).long()]

    # The formulas in torch; `dtype` is that of the arithmetic.
    def head_norm(self, tokens: Tensor, weight: Tensor, dtype: torch.dtype, *, rotate: bool) -> Tensor:
        heads = (self.case.heads, self.case.head_dim)
        parts = tokens.to(dtype).unflatten(-1, heads) if self.case.per_head else tokens.to(dtype)
        normed = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + EPSILON) * weight.to(dtype)
        normed = normed.reshape(*tokens.shape[:2], *heads)
        if rotate:
            cos, sin = (table.to(dtype)[None, :, None] for table in (self.cos, self.sin))
            even, odd = normed.unflatten(-1, (-1, 2)).unbind(-1)
            normed = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        return normed.to(tokens.dtype if dtype == torch.float32 else dtype)

    def norm_modulate(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        normed = functional.layer_norm(tokens.to(dtype), tokens.shape[-1:], eps=EPSILON)
        modulated = normed * self.row_of_token(self.scale).to(dtype) + self.row_of_token(self.shift).to(dtype)
        return modulated.to(tokens.dtype if dtype == torch.float32 else dtype)

    def residual(self, dtype: torch.dtype) -> Tensor:
        gated = self.first.to(dtype) + self.second.to(dtype) * self.row_of_token(self.gate).to(dtype)
        return gated.to(self.dtype if dtype == torch.float32 else dtype)


def strides(tensor: Tensor) -> tuple[int, int]:
    return tensor.stride(0), tensor.stride(1)


def modulation(tensor: Tensor) -> tuple[int, int, int]:
    steps = [step if size > 1 else 0 for step, size in zip(tensor.stride(), tensor.shape, strict=True)]
    return tensor.data_ptr(), steps[0], steps[1]


def call(kind: type[BlockOperatorParams], case: Case, tensors: Mapping[str, Tensor | None], **others: Any) -> None:
    """Enqueues an operator; of `tensors` those of [B, X, ...] give their strides."""
    pointers = {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
    steps = {
        field: strides(tensor)
        for name, tensor in tensors.items()
        if tensor is not None and (field := f"{name}_stride") in {name for name, *_ in kind._fields_}
    }
    params = kind(
        dtype=case.dtype, batch=case.batch, token_count=case.tokens, epsilon=EPSILON, **pointers, **steps, **others
    )
    enqueue(load_library(), params, torch.cuda.current_stream().cuda_stream)


def head_fields(inputs: Inputs) -> dict[str, Any]:
    case = inputs.case
    return {
        "heads": case.heads, "head_dim": case.head_dim, "weight_length": inputs.weights[0].numel(),
        "weight_float32": int(case.weight == "float32"),
    }  # fmt: skip


def modulated_fields(inputs: Inputs, *names: str) -> dict[str, Any]:
    case = inputs.case
    fields = {name: modulation(getattr(inputs, name)) for name in ("scale", "shift", *names)}
    return {"features": case.features, "first_tokens": case.first_tokens, **fields}


def empty(inputs: Inputs) -> Tensor:
    case = inputs.case
    return torch.full((case.batch, case.tokens, case.features), torch.nan, dtype=inputs.dtype, device="cuda")


def require_close(ours: Tensor, by_torch: Tensor, wanted: Tensor) -> None:
    """Both errors are those against float64."""
    assert ours.isfinite().all()
    mine, torchs = ((tensor.double().reshape(wanted.shape) - wanted).abs() for tensor in (ours, by_torch))
    # Where torch errs by nothing at all, half a unit in the last place is rounding.
    half_unit = torch.finfo(ours.dtype).eps / 2 * wanted.abs().max().item()
    assert mine.max().item() <= max(2 * torchs.max().item(), half_unit)
    assert mine.square().mean().sqrt() <= max(2 * torchs.square().mean().sqrt().item(), half_unit / 10)


@pytest.fixture(params=CASES, ids=str)
def inputs(request: pytest.FixtureRequest, seed: int) -> Inputs:
    return Inputs(request.param, seed)


def test_head_norm(inputs: Inputs) -> None:
    output, weight = empty(inputs), inputs.weights[0]
    tensors = {"tokens": inputs.first, "weight": weight, "output": output}
    call(HeadNormParams, inputs.case, tensors, **head_fields(inputs))
    by_torch, wanted = (
        inputs.head_norm(inputs.first, weight, dtype, rotate=False) for dtype in (torch.float32, torch.float64)
    )
    require_close(output, by_torch, wanted)


def test_qk_norm_rotary(inputs: Inputs) -> None:
    outputs = empty(inputs), empty(inputs)
    tensors = {
        "query": inputs.first, "key": inputs.second, "query_weight": inputs.weights[0], "key_weight": inputs.weights[1],
        "cos": inputs.cos, "sin": inputs.sin, "query_output": outputs[0], "key_output": outputs[1],
    }  # fmt: skip
    call(QKNormRotaryParams, inputs.case, tensors, **head_fields(inputs))
    for output, tokens, weight in zip(outputs, (inputs.first, inputs.second), inputs.weights, strict=True):
        by_torch, wanted = (
            inputs.head_norm(tokens, weight, dtype, rotate=True) for dtype in (torch.float32, torch.float64)
        )
        require_close(output, by_torch, wanted)


def require_quantized(values: Tensor, quantized: Tensor, scale: Tensor) -> None:
    """What an fp8 linear layer makes of the rounded output, bit for bit."""
    wanted, wanted_scale = quantize_rows(values.cpu())  # on a GPU torch multiplies with 1 / 448 instead of dividing
    assert torch.equal(quantized.cpu().view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(scale.cpu(), wanted_scale.squeeze(-1))


def quantized_outputs(inputs: Inputs) -> dict[str, Tensor]:
    case = inputs.case
    return {
        "quantized": torch.zeros(case.batch, case.tokens, case.features, dtype=torch.float8_e4m3fn, device="cuda"),
        "quantized_scale": torch.full((case.batch, case.tokens), torch.nan, device="cuda"),
    }


def check_quantized(inputs: Inputs, run: Callable[[Mapping[str, Tensor | None]], None], output: Tensor) -> None:
    """With and without the 16-bit output; `run` enqueues the operator with these outputs."""
    if inputs.case.features % 16:
        return
    for beside in (torch.full_like(output, torch.nan), None):
        outputs = quantized_outputs(inputs)
        run({"output": beside, **outputs})
        assert beside is None or torch.equal(beside, output)
        require_quantized(output, **{"quantized": outputs["quantized"], "scale": outputs["quantized_scale"]})


def test_norm_modulate(inputs: Inputs) -> None:
    output, fields = empty(inputs), modulated_fields(inputs)

    def run(outputs: Mapping[str, Tensor | None]) -> None:
        call(NormModulateParams, inputs.case, {"tokens": inputs.first, **outputs}, **fields)

    run({"output": output})
    require_close(output, *(inputs.norm_modulate(inputs.first, dtype) for dtype in (torch.float32, torch.float64)))
    check_quantized(inputs, run, output)


def test_residual_norm_modulate(inputs: Inputs) -> None:
    output, residual, fields = empty(inputs), empty(inputs), modulated_fields(inputs, "gate")

    def run(outputs: Mapping[str, Tensor | None]) -> None:
        tensors = {"residual": inputs.first, "update": inputs.second, "residual_output": residual, **outputs}
        call(ResidualNormModulateParams, inputs.case, tensors, **fields)

    run({"output": output})
    require_close(residual, *(inputs.residual(dtype) for dtype in (torch.float32, torch.float64)))
    require_close(output, *(inputs.norm_modulate(residual, dtype) for dtype in (torch.float32, torch.float64)))
    check_quantized(inputs, run, output)


def test_a_row_of_zeros_is_quantised_to_zeros(seed: int) -> None:
    inputs = Inputs(Case(1, 6, 4, 32), seed)
    inputs.scale.zero_()
    inputs.shift.zero_()
    output, outputs = empty(inputs), quantized_outputs(inputs)
    tensors = {"tokens": inputs.first, "output": output, **outputs}
    call(NormModulateParams, inputs.case, tensors, **modulated_fields(inputs))
    assert (output == 0).all()
    assert (outputs["quantized"].float() == 0).all()
    assert (outputs["quantized_scale"] == 1).all()


def test_an_output_may_take_the_place_of_its_input(seed: int) -> None:
    inputs = Inputs(Case(2, 77, 12, 128, first_tokens=30), seed)
    fields = modulated_fields(inputs, "gate")
    wanted = [empty(inputs), empty(inputs)]
    for residual, output in (wanted, (inputs.first, inputs.second)):
        tensors = {
            "residual": inputs.first, "update": inputs.second, "residual_output": residual, "output": output,
        }  # fmt: skip
        call(ResidualNormModulateParams, inputs.case, tensors, **fields)
    assert torch.equal(inputs.first, wanted[0])
    assert torch.equal(inputs.second, wanted[1])


def test_nothing_but_the_output_is_written(seed: int) -> None:
    inputs = Inputs(Case(2, 77, 12, 128, first_tokens=30), seed)
    case = inputs.case
    home = torch.full((case.batch, case.tokens + 8, case.features + 64), 7.0, dtype=inputs.dtype, device="cuda")
    view = home[:, 3:-5, 8:-56]
    call(NormModulateParams, case, {"tokens": inputs.first, "output": view}, **modulated_fields(inputs))
    output = empty(inputs)
    call(NormModulateParams, case, {"tokens": inputs.first, "output": output}, **modulated_fields(inputs))
    assert torch.equal(view, output)
    view.fill_(7.0)
    assert (home == 7.0).all()


def test_a_graph_computes_what_its_inputs_hold(seed: int) -> None:
    inputs = Inputs(Case(2, 77, 12, 128), seed)
    output, fields = empty(inputs), modulated_fields(inputs)
    tensors = {"tokens": inputs.first, "output": output}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(NormModulateParams, inputs.case, tensors, **fields)
    inputs.first.copy_(inputs.second)
    graph.replay()
    again = empty(inputs)
    call(NormModulateParams, inputs.case, {"tokens": inputs.first, "output": again}, **fields)
    assert torch.equal(output, again)
