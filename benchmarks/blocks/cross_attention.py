# SPDX-License-Identifier: Apache-2.0
"""Cross-attention, video rows to text or image keys, beside torch's attention on the same tensors.

Letters: X query tokens, Y key tokens, N heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vorta_trt.benchmarks.blocks.case import Implementation, OperatorCase, Prepared
from vorta_trt.benchmarks.checks import dense_exactly, relative_error
from vorta_trt.model.precision import torch_dtype
from vorta_trt.plugins import load_library
from vorta_trt.plugins.cross_attention import TENSORS, CrossAttentionParams
from vorta_trt.plugins.operator_calls import enqueue


@dataclass(frozen=True)
class Attention:
    """The cross-attention of a model at one video size; one sample."""

    model: str
    queries: int
    keys: int
    heads: int
    head_dim: int = 128

    @property
    def size(self) -> str:
        """The size in words."""
        return f"{self.queries:,} x {self.keys} keys, {self.heads} heads of {self.head_dim}"


# Texts have 512 tokens, the images of the 14B model CLIP's 257.
ATTENTIONS = (
    Attention("wan-14b", 72000, 512, 40),
    Attention("wan-14b", 72000, 257, 40),
    Attention("wan-1.3b", 32760, 512, 12),
)


def cases() -> list[OperatorCase]:
    """Every cross-attention."""
    made = []
    for attention in ATTENTIONS:
        width = attention.heads * attention.head_dim
        flops = 4 * attention.queries * attention.keys * width
        size = 4 * width * (attention.queries + attention.keys)
        prepared = partial(prepare, attention)
        made.append(OperatorCase("CrossAttention", attention.model, attention.size, flops, size, prepared))
    return made


def prepare(attention: Attention, dtype: str, seed: int) -> Prepared:
    """Unit-normal tensors; one head is checked."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(tokens: int) -> Tensor:
        shape = (1, tokens, attention.heads, attention.head_dim)
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch_dtype(dtype))

    inputs = (normal(attention.queries), normal(attention.keys), normal(attention.keys))

    def by_torch(backend: SDPBackend) -> Tensor:
        query, key, value = (tensor.transpose(1, 2) for tensor in inputs)
        with sdpa_kernel(backend):
            output: Tensor = functional.scaled_dot_product_attention(query, key, value)
        return output.transpose(1, 2)

    head = attention.heads // 2
    wanted = dense_exactly(*(tensor[0, :, head].float() for tensor in inputs))  # [X, D]
    return Prepared(
        [
            Implementation("torch cuDNN", partial(by_torch, SDPBackend.CUDNN_ATTENTION)),
            Implementation("torch FlashAttention-2", partial(by_torch, SDPBackend.FLASH_ATTENTION)),
            Implementation("vorta-trt", _Call(attention, dtype, inputs), ours=True),
        ],
        lambda output: relative_error(output[0, :, head], wanted),
    )


class _Call:
    """One call of the library, whose output is allocated beforehand."""

    def __init__(self, attention: Attention, dtype: str, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        self._library, self._inputs, self._output = load_library(), inputs, torch.empty_like(inputs[0])
        tensors = dict(zip(TENSORS, (*inputs, self._output), strict=True))
        self._params = CrossAttentionParams(
            dtype=dtype,
            batch=1,
            query_tokens=attention.queries,
            key_tokens=attention.keys,
            heads=attention.heads,
            head_dim=attention.head_dim,
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
            **{f"{name}_stride": tensor.stride()[:3] for name, tensor in tensors.items()},
        )

    def __call__(self) -> Tensor:
        enqueue(self._library, self._params, torch.cuda.current_stream().cuda_stream)
        return self._output
