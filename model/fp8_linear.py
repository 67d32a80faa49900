# SPDX-License-Identifier: Apache-2.0
"""Linear layers with e4m3 weights, the modules of `vorta::fp8_linear`, in the places of a model's `nn.Linear`.

    weight[o, :]  = weight_scale[o] * e4m3          weight_scale[o] = largest magnitude of the row / 448
    input[x, :]   = input_scale[x] * e4m3           input_scale[x]  = largest magnitude of the token / 448, when it runs
    output[x, o]  = activation(input_scale[x] * weight_scale[o] * sum + bias[o])

Products of e4m3 are exact in float32, sums are float32, and the output is rounded once. A row of zeros has scale 1.
A layer takes tokens that are quantised already (`QuantizedTokens`), or quantises them itself.

Letters: X tokens (any leading axes), K input features, O output features.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vorta_trt.model import block_operators as _registers_the_torch_operator  # noqa: F401
from vorta_trt.model.block_operators.references import FLOAT8
from vorta_trt.plugins.operator_schema import Activation

WEIGHT, WEIGHT_SCALE = "weight", "weight_scale"  # parameters of the module


class QuantizedTokens(NamedTuple):
    """Tokens in e4m3, as layers with fp8 products read them.

    Attributes:
        values: e4m3 [B, X, K].
        scale: Scale of each token, which its values are multiplied with, float32 [B, X].
        dtype: Data type of the tokens before quantisation, and of the layers' outputs.
    """

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, tokens: Tensor) -> QuantizedTokens:
        """Quantises tokens [B, X, K]."""
        values, scale = torch.ops.vorta.quantize(tokens)
        return cls(values, scale, tokens.dtype)

    @classmethod
    def of_both(cls, first: Tensor, second: Tensor) -> QuantizedTokens:
        """Quantises tokens [B, X, J] and [B, X, K], whose features are concatenated."""
        values, scale = torch.ops.vorta.joined_quantize(first, second)
        return cls(values, scale, first.dtype)


class Fp8Linear(nn.Module):
    """Replaces an `nn.Linear`; its parameters have no gradients.

    Args:
        in_features: K.
        out_features: O.
        bias: Whether the layer has a bias.
        dtype: Data type of the bias.
        device: Device of all parameters.

    Attributes:
        weight: e4m3 [O, K].
        weight_scale: float32 [O].
        bias: [O], or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

        def parameter(*shape: int, of: torch.dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=of, device=device), requires_grad=False)

        self.weight = parameter(out_features, in_features, of=FLOAT8)
        self.weight_scale = parameter(out_features, of=torch.float32)
        self.register_parameter("bias", parameter(out_features, of=dtype) if bias else None)

    def forward(self, tokens: Tensor | QuantizedTokens, activation: Activation = "none") -> Tensor:
        """[..., K] -> [..., O], in the type of the tokens."""
        if not isinstance(tokens, QuantizedTokens):
            rows = tokens if tokens.ndim == 3 else tokens.reshape(1, -1, self.in_features)  # [B, X, K]
            product = self.forward(QuantizedTokens.of(rows), activation)
            return product if tokens.ndim == 3 else product.view(*tokens.shape[:-1], self.out_features)
        values, scale, dtype = tokens
        bias = values.new_zeros(self.out_features, dtype=dtype) if self.bias is None else self.bias
        result: Tensor = torch.ops.vorta.fp8_linear(values, scale, self.weight, self.weight_scale, bias, activation)
        return result

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def take_fp8(model: nn.Module, layers: Collection[str]) -> None:
    """Puts an empty `Fp8Linear` in the place of every `nn.Linear` that is named, in `model`."""
    for name in layers:
        layer: Any = model.get_submodule(name)
        new = Fp8Linear(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            dtype=layer.weight.dtype,
            device=layer.weight.device,
        )
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, new)


def fp8_layers(model: nn.Module) -> dict[str, Fp8Linear]:
    """The layers of a model that have e4m3 weights, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Fp8Linear)}


def fixed_types(model: nn.Module) -> dict[str, torch.dtype]:
    """Types of the parameters that are the same in every precision of the model, by name."""
    return {
        f"{name}.{parameter}": dtype
        for name in fp8_layers(model)
        for parameter, dtype in ((WEIGHT, FLOAT8), (WEIGHT_SCALE, torch.float32))
    }
