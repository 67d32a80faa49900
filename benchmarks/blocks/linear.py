# SPDX-License-Identifier: Apache-2.0
"""The linear layers of a block, in 16 bits and with fp8 products, beside torch's.

Letters: R rows, K input features, O output features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.benchmarks.blocks.case import Implementation, OperatorCase, Prepared
from vorta_trt.benchmarks.checks import relative_error
from vorta_trt.model.block_operators.references import quantize_rows
from vorta_trt.model.precision import torch_dtype
from vorta_trt.plugins import load_library
from vorta_trt.plugins.linear import LinearParams, workspace_size
from vorta_trt.plugins.operator_calls import enqueue

SAMPLED_ROWS = 64


@dataclass(frozen=True)
class Layer:
    """A linear layer of a model at one video size."""

    model: str
    rows: int
    in_features: int
    out_features: int
    activation: str = "none"

    @property
    def size(self) -> str:
        """The size in words."""
        activation = "" if self.activation == "none" else f", {self.activation}"
        return f"{self.rows:,} x {self.in_features} to {self.out_features}{activation}"

    @property
    def flops(self) -> int:
        """FLOPs of the matrix product."""
        return 2 * self.rows * self.in_features * self.out_features


# Projections of the attention, then both layers of the feed-forward.
LAYERS = tuple(
    layer
    for model, rows, width, wide in (
        ("wan-14b", 72000, 5120, 13824),
        ("wan-1.3b", 32760, 1536, 8960),
        ("hunyuan-video", 108256, 3072, 12288),
    )
    for layer in (
        Layer(model, rows, width, width),
        Layer(model, rows, width, wide, "gelu_tanh"),
        Layer(model, rows, wide, width),
    )
)


def cases() -> list[OperatorCase]:
    """Every layer in both precisions."""
    made = []
    for layer in LAYERS:
        weights, ends = layer.in_features * layer.out_features, layer.rows * (layer.in_features + layer.out_features)
        common = OperatorCase(
            "Linear", layer.model, layer.size, layer.flops, 2 * (weights + ends), partial(same, layer)
        )
        made += [
            common,
            replace(
                common,
                operator="Fp8Linear",
                bytes=weights + layer.rows * (layer.in_features + 2 * layer.out_features),
                prepare=partial(fp8, layer),
            ),
        ]
    return made


@dataclass(frozen=True)
class Tensors:
    """Input [R, K], weight [O, K] and bias [O] in the 16-bit type."""

    input: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def random(cls, layer: Layer, dtype: str, seed: int) -> Tensors:
        """Random tensors with unit-normal inputs and, before the activation, products."""
        generator = torch.Generator("cuda").manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device="cuda", dtype=torch_dtype(dtype))

        weight = normal(layer.out_features, layer.in_features) * layer.in_features**-0.5
        return cls(normal(layer.rows, layer.in_features), weight, normal(layer.out_features))


def activated(layer: Layer, product: Tensor) -> Tensor:
    """Torch's activation."""
    return functional.gelu(product, approximate="tanh") if layer.activation == "gelu_tanh" else product


def same(layer: Layer, dtype: str, seed: int) -> Prepared:
    """`Linear` beside torch's layer and the one call of torch that has the activation in the epilogue."""
    tensors = Tensors.random(layer, dtype, seed)
    library_call = _call(layer, dtype, "same", tensors.bias, input=tensors.input, weight=tensors.weight)
    implementations = [
        Implementation(
            "torch", lambda: activated(layer, functional.linear(tensors.input, tensors.weight, tensors.bias))
        ),
        Implementation("vorta-trt", library_call, ours=True),
    ]
    if layer.activation == "gelu_tanh":
        first = _call(layer, dtype, "same", tensors.bias, candidate=1, input=tensors.input, weight=tensors.weight)
        implementations.append(Implementation("vorta-trt, cuBLASLt's first kernel", first, ours=True))
        fused = partial(torch._addmm_activation, tensors.bias, tensors.input, tensors.weight.T, use_gelu=True)
        implementations.insert(1, Implementation("torch _addmm_activation", fused))
    sample = _sample(layer)
    wanted = activated(layer, tensors.input[sample].double() @ tensors.weight.double().T + tensors.bias.double())
    return Prepared(implementations, lambda output: relative_error(output[sample], wanted))


def fp8(layer: Layer, dtype: str, seed: int) -> Prepared:
    """`Fp8Linear` beside torch's product with scales per row and column; neither quantises its input."""
    tensors = Tensors.random(layer, dtype, seed)
    weight, weight_scale = quantized(tensors.weight)
    rows, row_scale = quantized(tensors.input)
    call = partial(_call, layer, dtype, "fp8", tensors.bias, input=rows, input_scale=row_scale, weight=weight)

    def torch_product(fast: bool) -> Tensor:
        product = torch._scaled_mm(
            rows, weight.T, row_scale[:, None], weight_scale[None], out_dtype=tensors.input.dtype, use_fast_accum=fast
        )
        return activated(layer, product + tensors.bias)

    def torch_layer() -> Tensor:
        return activated(layer, functional.linear(tensors.input, tensors.weight, tensors.bias))

    implementations = [
        Implementation("torch _scaled_mm, quantised input", partial(torch_product, False)),
        Implementation("torch _scaled_mm, fast sums", partial(torch_product, True)),
        Implementation("vorta-trt", call(weight_scale=weight_scale), ours=True),
        Implementation("vorta-trt, cuBLASLt", call(candidate=1, weight_scale=weight_scale), ours=True),
    ]
    sample = _sample(layer)
    sampled = rows.view(torch.uint8)[sample].view(rows.dtype).double()  # torch may index no e4m3
    product = sampled @ weight.double().T * row_scale[sample].double()[:, None] * weight_scale.double()
    wanted = activated(layer, product + tensors.bias.double())
    return Prepared(implementations, lambda output: relative_error(output[sample], wanted))


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [R, K] as e4m3 with a scale each, float32 [R]; by parts, since float32 takes twice the memory."""
    parts = []
    for part in rows.split(8192):
        numbers, scale = quantize_rows(part)
        parts.append((numbers, scale[:, 0]))
    # torch concatenates no e4m3.
    return (
        torch.cat([numbers.view(torch.uint8) for numbers, _ in parts]).view(torch.float8_e4m3fn),
        torch.cat([scale for _, scale in parts]),
    )


class _Call:
    """One call of the library, whose output and workspace are allocated beforehand."""

    def __init__(
        self, layer: Layer, dtype: str, precision: str, bias: Tensor, candidate: int, tensors: dict[str, Tensor]
    ) -> None:
        self._library, self._kept = load_library(), (bias, tensors)
        self._output = torch.empty(layer.rows, layer.out_features, dtype=torch_dtype(dtype), device="cuda")
        self._params = LinearParams(
            dtype=dtype,
            precision=precision,
            activation=layer.activation,
            candidate=candidate,
            rows=layer.rows,
            in_features=layer.in_features,
            out_features=layer.out_features,
            bias=bias.data_ptr(),
            output=self._output.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        )
        size = workspace_size(self._library, self._params)
        self._workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
        self._params.workspace, self._params.workspace_bytes = self._workspace.data_ptr(), size

    def __call__(self) -> Tensor:
        enqueue(self._library, self._params, torch.cuda.current_stream().cuda_stream)
        return self._output


def _call(layer: Layer, dtype: str, precision: str, bias: Tensor, candidate: int = 0, **tensors: Tensor) -> _Call:
    return _Call(layer, dtype, precision, bias, candidate, tensors)


def _sample(layer: Layer) -> Tensor:
    """Rows that are checked: the first, the last and some between, int64 on the GPU."""
    return torch.linspace(0, layer.rows - 1, SAMPLED_ROWS, device="cuda").long()
