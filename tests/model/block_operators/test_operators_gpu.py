# SPDX-License-Identifier: Apache-2.0
"""The block operators on CUDA, through torch: every one against the reference, on tensors as blocks give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model.block_operators import quantize_rows, references
from vorta_trt.model.random_checkpoint import make_checkpoint, make_router
from vorta_trt.plugins.operator_schema import BLOCK_OPERATORS, QUANTIZING

from ..running import run

pytestmark = pytest.mark.gpu

BATCH, TOKENS, KEYS, HEADS, HEAD_DIM, OUT, FIRST = 2, 301, 77, 5, 64, 768, 100
WIDTH = HEADS * HEAD_DIM
EPSILON = 1e-6
ROUNDING = {torch.float16: 1e-3, torch.bfloat16: 8e-3}  # relative L2: one rounding, and where it falls otherwise


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def modulation(rows: int, seed: int) -> Tensor:
    """A slice of what modulates a block, as `chunk` gives it."""
    return numbers(BATCH, 6 * rows, WIDTH, seed=seed).chunk(6, dim=1)[2]


def arguments(name: str, dtype: torch.dtype) -> tuple[Any, ...]:
    def tokens(seed: int, width: int = WIDTH) -> Tensor:
        return numbers(BATCH, TOKENS, 3 * width, seed=seed, dtype=dtype).chunk(3, dim=2)[1]  # strided rows

    def heads(count: int, seed: int) -> Tensor:
        return numbers(BATCH, count, HEADS, HEAD_DIM, seed=seed, dtype=dtype)

    angles = numbers(1, TOKENS, 1, HEAD_DIM // 2, seed=9)
    weight, bias = numbers(OUT, WIDTH, seed=3, dtype=dtype), numbers(OUT, seed=4, dtype=dtype)
    quantised, scale = quantize_rows(weight)
    given: dict[str, Callable[[], tuple[Any, ...]]] = {
        "qk_norm_rotary": lambda: (
            *(tokens(1), tokens(2), numbers(WIDTH, seed=3, dtype=dtype), numbers(WIDTH, seed=4)),
            *(angles.cos(), angles.sin(), HEADS, EPSILON),
        ),
        "head_norm": lambda: (tokens(1), numbers(HEAD_DIM, seed=3, dtype=dtype), HEADS, EPSILON),
        "norm_modulate": lambda: (tokens(1), modulation(2, 2), modulation(1, 3)[:1], EPSILON, FIRST),
        "residual_norm_modulate": lambda: (
            *(tokens(1), tokens(2), modulation(2, 3), modulation(1, 4), modulation(1, 5)[:1], EPSILON, FIRST),
        ),
        "linear": lambda: (tokens(1), weight, bias, "gelu_tanh"),
        "joined_linear": lambda: (tokens(1)[..., :128], tokens(1)[..., 128:], weight, bias, "gelu_tanh"),
        "fp8_linear": lambda: (
            *references.quantize(tokens(1)),
            *(quantised, scale.flatten(), bias, "gelu_tanh"),
        ),
        "cross_attention": lambda: (heads(TOKENS, 1), heads(KEYS, 2), heads(KEYS, 3), 0.0),
    }
    return given[name]()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", [each.torch_name for each in BLOCK_OPERATORS if each.name not in QUANTIZING])
def test_equals_the_reference_but_for_rounding(name: str, dtype: torch.dtype) -> None:
    given = arguments(name, dtype)
    found = getattr(torch.ops.vorta, name)(*given)
    wide = [value.cpu() if isinstance(value, Tensor) else value for value in given]
    wide = [value.float() if isinstance(value, Tensor) and value.dtype == dtype else value for value in wide]
    exact = getattr(references, name)(*wide)
    outputs, wanteds = (value if isinstance(value, tuple) else (value,) for value in (found, exact))
    for output, wanted in zip(outputs, wanteds, strict=True):
        error = float((output.cpu().float() - wanted).norm() / wanted.norm())
        print(f"{name} {dtype} relative error {error:.1e}")
        assert output.dtype == dtype and output.shape == wanted.shape
        assert error <= ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", ["norm_modulate", "residual_norm_modulate"])
def test_a_norm_that_quantises_leaves_the_same_bits(name: str, dtype: torch.dtype) -> None:
    """Those of the 16-bit norm, quantised by the kernel for it or by torch."""
    given = arguments(name, dtype)
    outputs = getattr(torch.ops.vorta, name)(*given)
    *before, normed = outputs if isinstance(outputs, tuple) else (outputs,)
    *summed, values, scale = getattr(torch.ops.vorta, f"{name}_quantize")(*given)
    assert all(map(torch.equal, summed, before))
    for wanted, wanted_scale in (torch.ops.vorta.quantize(normed), references.quantize(normed.cpu())):
        assert torch.equal(values.cpu().view(torch.uint8), wanted.cpu().view(torch.uint8))
        assert torch.equal(scale.cpu(), wanted_scale.cpu())


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("first", "second"), [(8, 8), (320, 64), (3072, 12288), (4096, 16384)])
def test_two_inputs_are_quantised_as_one(first: int, second: int, dtype: torch.dtype) -> None:
    tokens = numbers(BATCH, 77, first + 2 * second, seed=1, dtype=dtype)
    halves = tokens[..., :first], tokens[..., first + second :]  # strided rows
    found = torch.ops.vorta.joined_quantize(*halves)
    for values, wanted in zip(found, torch.ops.vorta.quantize(torch.cat(halves, dim=2)), strict=True):
        assert torch.equal(values.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.filterwarnings("ignore:.*script_method. is deprecated:DeprecationWarning")  # of torch's own compiler
def test_compiles_and_is_captured() -> None:
    given = arguments("residual_norm_modulate", torch.bfloat16)
    operator = torch.ops.vorta.residual_norm_modulate
    expected = operator(*given)
    compiled = torch.compile(lambda *values: operator(*values), fullgraph=True)(*given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operator(*given)
    graph.replay()
    for output in (compiled, captured):
        assert all(torch.equal(one, other) for one, other in zip(output, expected, strict=True))


def test_float32_is_refused() -> None:
    with pytest.raises(TypeError, match='block_ops="native"'):
        torch.ops.vorta.head_norm(*(numbers(*shape, seed=1) for shape in ((1, 4, WIDTH), (WIDTH,))), HEADS, EPSILON)


@pytest.mark.parametrize("family", ["wan", "hunyuan_video"])
def test_a_model_is_no_less_exact_than_natively(family: str, tmp_path: Any) -> None:
    from vorta_trt.model import AttentionGeometry, RoutedTransformer

    text = {"text_tokens": 16} if family == "hunyuan_video" else {}
    geometry = AttentionGeometry.for_video(9, 64, 96, family, **text)
    sizes = {"layers": 2, "heads": 4, "head_dim": 64, **({"single_layers": 2} if text else {})}
    make_checkpoint(tmp_path / "model", family, **sizes, text_dim=32, channels=4, seed=1)
    make_router(tmp_path / "router", geometry, family, seed=2, **sizes)

    def load(dtype: torch.dtype) -> RoutedTransformer:
        return RoutedTransformer.from_pretrained(tmp_path / "model", tmp_path / "router", geometry, dtype=dtype)

    half = load(torch.bfloat16).cuda()
    inputs = half.inputs(2)
    inputs["route_override"] = torch.zeros_like(inputs["route_override"])
    wide = {name: value.cpu() for name, value in inputs.items()}
    wide |= {name: value.float() for name, value in wide.items() if value.dtype == torch.bfloat16}
    exact, _ = run(load(torch.float32), wide)
    errors = {}
    for ops in ("native", "plugin"):
        half.block_ops = ops
        sample, _ = run(half, inputs)
        errors[ops] = float((sample.cpu().float() - exact).norm() / exact.norm())
    print(family, errors)
    assert errors["plugin"] <= 1.5 * errors["native"]
