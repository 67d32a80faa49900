# SPDX-License-Identifier: Apache-2.0
"""The norms of a block, and what quantises, beside the same formulas in torch, compiled and eager.

Letters: X tokens, N heads, D head dimension, E features (= N D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import vorta_trt.model.block_operators  # noqa: F401  # registers torch.ops.vorta
from vorta_trt.benchmarks.blocks.case import Implementation, OperatorCase, Prepared
from vorta_trt.benchmarks.checks import relative_error
from vorta_trt.model.block_operators import references
from vorta_trt.model.precision import torch_dtype

SAMPLED_TOKENS = 64
EPSILON = 1e-6
Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Block:
    """A block of a model at one video size; `per_head`: whether the RMS norms are over a head or all features."""

    model: str
    tokens: int
    heads: int
    head_dim: int
    per_head: bool

    @property
    def features(self) -> int:
        """E."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Norm:
    """An operator of `torch.ops.vorta` and its formula in torch.

    Attributes:
        operator: Name of the operator as an ONNX node.
        overload: Name of the operator in torch.
        passes: Least number of 16-bit tensors [X, E] that a call reads and writes; a tensor in e4m3 counts as half.
        names: Names of its tensors, as `Tensors.make` takes them.
        by_token: Names of the tensors that have a row for each token.
        numbers: Gives the arguments that follow the tensors, for a block.
        quantizes: The formula without quantisation, whose last output the operator quantises; None if it quantises
            nothing.
    """

    operator: str
    overload: str
    passes: float
    names: tuple[str, ...]
    by_token: tuple[str, ...]
    numbers: Callable[[Block], tuple[Any, ...]]
    quantizes: Callable[..., Outputs] | None = None


def _heads(block: Block) -> tuple[Any, ...]:
    return block.heads, EPSILON


def _one_row(block: Block) -> tuple[Any, ...]:
    return EPSILON, 0


QK_NORM_ROTARY = Norm(
    "QKNormRotary", "qk_norm_rotary", 4, ("tokens", "other_tokens", "weight", "weight", "cos", "sin"),
    ("tokens", "other_tokens", "cos", "sin"), _heads,
)  # fmt: skip
HEAD_NORM = Norm("HeadNorm", "head_norm", 2, ("tokens", "weight"), ("tokens",), _heads)
NORM_MODULATE = Norm("NormModulate", "norm_modulate", 2, ("tokens", "scale", "shift"), ("tokens",), _one_row)
RESIDUAL_NORM_MODULATE = Norm(
    "ResidualNormModulate", "residual_norm_modulate", 4, ("tokens", "other_tokens", "gate", "scale", "shift"),
    ("tokens", "other_tokens"), _one_row,
)  # fmt: skip

QUANTIZING = (
    Norm("Quantize", "quantize", 1.5, ("tokens",), ("tokens",), lambda block: (), lambda tokens: tokens),
    replace(
        NORM_MODULATE, operator="NormModulateQuantize", overload="norm_modulate_quantize", passes=1.5,
        quantizes=references.norm_modulate,
    ),
    replace(
        RESIDUAL_NORM_MODULATE, operator="ResidualNormModulateQuantize", overload="residual_norm_modulate_quantize",
        passes=3.5, quantizes=references.residual_norm_modulate,
    ),
)  # fmt: skip
WITH_CROSS_ATTENTION = (QK_NORM_ROTARY, HEAD_NORM, NORM_MODULATE, RESIDUAL_NORM_MODULATE, *QUANTIZING)
NORMS: tuple[tuple[Block, tuple[Norm, ...]], ...] = (
    (Block("wan-14b", 72000, 40, 128, per_head=False), WITH_CROSS_ATTENTION),
    (Block("wan-1.3b", 32760, 12, 128, per_head=False), WITH_CROSS_ATTENTION),
    (
        Block("hunyuan-video", 108256, 24, 128, per_head=True),
        (QK_NORM_ROTARY, NORM_MODULATE, RESIDUAL_NORM_MODULATE, *QUANTIZING),
    ),
)


def cases() -> list[OperatorCase]:
    """Every norm of every block."""
    return [
        OperatorCase(
            norm.operator,
            block.model,
            f"{block.tokens:,} x {block.features}",
            flops=0,
            bytes=round(2 * norm.passes * block.tokens * block.features),
            prepare=partial(prepare, block, norm),
        )
        for block, norms in NORMS
        for norm in norms
    ]


class Tensors:
    """Random tensors of a block, by the names that a `Norm` gives them."""

    def __init__(self, block: Block, dtype: str, seed: int, device: str) -> None:
        self._block, self._dtype = block, torch_dtype(dtype)
        self._generator = torch.Generator(device).manual_seed(seed)

    def make(self, name: str) -> Tensor:
        """Tokens [1, X, E], a weight [E] or [D], a modulation [1, 1, E], or the cosines or sines [1, X, 1, D/2]."""
        block = self._block
        if name in ("tokens", "other_tokens"):
            return self._normal(1, block.tokens, block.features).to(self._dtype)
        if name == "weight":
            return (1 + 0.2 * self._normal(block.head_dim if block.per_head else block.features)).to(self._dtype)
        if name in ("cos", "sin"):
            wave = torch.cos if name == "cos" else torch.sin
            return wave(3 * self._normal(1, block.tokens, 1, block.head_dim // 2))
        return (1.0 if name == "scale" else 0.0) + 0.5 * self._normal(1, 1, block.features)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._generator.device)


def prepare(block: Block, norm: Norm, dtype: str, seed: int, device: str = "cuda") -> Prepared:
    """The operator beside its formula, which rounds at the same places."""
    made = Tensors(block, dtype, seed, device)
    tensors = [made.make(name) for name in norm.names]
    numbers = norm.numbers(block)
    formula = getattr(references, norm.overload)
    implementations = [
        Implementation("torch.compile", partial(_when_called(formula), *tensors, *numbers)),
        Implementation("torch", partial(formula, *tensors, *numbers)),
        Implementation("vorta-trt", partial(getattr(torch.ops.vorta, norm.overload), *tensors, *numbers), ours=True),
    ]
    sample = torch.linspace(0, block.tokens - 1, SAMPLED_TOKENS, device=device).long()
    few = [
        (tensor[:, sample] if name in norm.by_token else tensor).float()
        for name, tensor in zip(norm.names, tensors, strict=True)
    ]
    wanted = _listed((norm.quantizes or formula)(*few, *numbers))  # inputs are float32, so nothing is rounded

    def error(outputs: Outputs) -> float:
        found = _listed(outputs)
        if norm.quantizes is not None:
            *found, values, scale = found
            found.append(values.float() * scale.unsqueeze(-1))
        pairs = zip(found, wanted, strict=True)
        return max(relative_error(output[:, sample], exact) for output, exact in pairs)

    return Prepared(implementations, error)


def _when_called(formula: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """Compiles at the first call, which is not timed."""
    compiled = cache(lambda: torch.compile(formula, dynamic=False))
    return lambda *arguments: compiled()(*arguments)


def _listed(outputs: Outputs) -> Sequence[Tensor]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs
