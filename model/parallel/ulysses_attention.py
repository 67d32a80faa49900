# SPDX-License-Identifier: Apache-2.0
"""`vorta::ulysses_attention` and `vorta::gather_tokens`: what an exported model on several GPUs calls.

On CUDA they are what the plugins of an engine run: kernels of libvorta_trt that pack, NCCL's exchange, routed attention
of this rank's heads over all tokens, the exchange back, and a kernel that unpacks. The permutation of heads costs
nothing extra. They need a communicator (`vorta_trt.plugins.communicator`). On the CPU they do the same through the
default group of torch.distributed. They have no gradient.

Letters: P ranks, B batch, S video tokens, T padded text tokens, X = S / P rounded up, N heads, D head dim, C features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.operator import (
    attention_attributes,
    check_attention_precision,
    check_device,
    checked_scale,
)
from vorta_trt.model.parallel.attention import sharded_attention
from vorta_trt.model.parallel.exchange import gather_shards
from vorta_trt.model.parallel.library_exchange import UlyssesCall, check_kernel_dtype, ready_library
from vorta_trt.model.parallel.placement import check_ranks
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.plugins.operator_calls import enqueue
from vorta_trt.plugins.operator_schema import GATHER_TOKENS, SAME_PRECISION, ULYSSES_ATTENTION, Operator
from vorta_trt.plugins.ulysses_attention import GatherTokensParams


def ulysses_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    head_order: Tensor,
    geometry: AttentionGeometry,
    ranks: int,
    text_length: Tensor | None = None,
    scale: float | None = None,
    attention_precision: str = SAME_PRECISION,
) -> Tensor:
    """Attention over all ranks' tokens; each rank passes and gets its own. All ranks call it in the same order.

    Args:
        query: [B, X+T, N, D] of this rank: its video tokens, followed by padding on the last ranks, and all text
            tokens. CUDA: float16 or bfloat16, D a multiple of 8 up to 256. CPU: any float dtype.
        key: Keys, of the shape and dtype of `query`.
        value: Values, of the shape and dtype of `query`.
        routes: int32 [B, N] of all heads, the same on every rank.
        head_order: int32 [N], a permutation, the same on every rank: rank p computes heads
            `head_order[p * N/P : (p + 1) * N/P]`. See `placement.head_order`.
        geometry: Geometry of all tokens.
        ranks: P, a divisor of N.
        text_length: int32 [B], valid text tokens; required if and only if `geometry.text_tokens` > 0.
        scale: Factor of the logits; None is 1/sqrt(D).
        attention_precision: "same" or "fp8"; see `routed_attention`.

    Returns:
        [B, X+T, N, D], contiguous: this rank's tokens, 0 for their padding, and all text rows.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument breaks another rule above.
        RuntimeError: CPU only: the default group of torch.distributed does not have P processes.
        LibraryError: CUDA only: this process has no communicator of P ranks on this GPU, or NCCL fails.
    """
    check_attention_precision(attention_precision)
    scale = checked_scale(scale, query)
    given = _Given(query, key, value, routes, head_order, text_length, geometry, scale, attention_precision, ranks)
    given.check()
    attributes = (*geometry.to_dict().values(), scale, attention_precision, ranks)
    out: Tensor = torch.ops.vorta.ulysses_attention(*given.tensors, *attributes)  # [B, X+T, N, D]
    return out


class _Given(NamedTuple):
    """The arguments of the operator, see `ulysses_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    routes: Tensor
    head_order: Tensor
    text_length: Tensor | None
    geometry: AttentionGeometry
    scale: float
    attention_precision: str
    ranks: int

    @classmethod
    def of(cls, *arguments: Any) -> _Given:
        """Makes it from the operator's tensors and attributes, in their order, and checks it."""
        count = len(ULYSSES_ATTENTION.input_tensors)
        *attention, ranks = arguments[count:]
        given = cls._make((*arguments[:count], *attention_attributes(tuple(attention)), ranks))
        given.check()
        return given

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The operator's inputs."""
        return self.query, self.key, self.value, self.routes, self.head_order, self.text_length

    def check(self) -> None:
        """Raises TypeError or ValueError where an argument breaks a rule of `ulysses_attention`."""
        query, geometry, ranks, text_length = self.query, self.geometry, self.ranks, self.text_length
        if query.ndim != 4:
            raise ValueError(f"query of shape {tuple(query.shape)}: must be [B, X+T, N, D]")
        check_ranks(query.shape[2], ranks)
        rows = TokenShards(geometry.video_tokens, ranks).rows + geometry.text_tokens
        if query.shape[1] != rows:
            raise ValueError(
                f"query of shape {tuple(query.shape)}: must have {rows} rows, a shard of the geometry's "
                f"{geometry.video_tokens} video tokens for {ranks} ranks and {geometry.text_tokens} text tokens"
            )
        if query.is_cuda:
            check_kernel_dtype(query)
        batch, _, heads, _ = query.shape
        for name, tensor in (("key", self.key), ("value", self.value)):
            if tensor.shape != query.shape or tensor.dtype != query.dtype:
                raise ValueError(f"{name} {tensor.dtype} {tuple(tensor.shape)}: must be as query {tuple(query.shape)}")
            check_device(name, tensor, query)
        if (text_length is None) != (geometry.text_tokens == 0):
            raise ValueError(f"text_length {text_length}: must be given if and only if text_tokens is not 0")
        integers = {"routes": (self.routes, (batch, heads)), "head_order": (self.head_order, (heads,))}
        if text_length is not None:
            integers["text_length"] = (text_length, (batch,))
        for name, (tensor, shape) in integers.items():
            if tensor.dtype != torch.int32 or tuple(tensor.shape) != shape:
                raise ValueError(f"{name} {tensor.dtype} {tuple(tensor.shape)}: must be int32 {shape}")
            check_device(name, tensor, query)


def gather_tokens(rows: Tensor, tokens: int, ranks: int) -> Tensor:
    """Gathers the tokens of all ranks. All ranks call it in the same order.

    Args:
        rows: [B, X, C] of this rank, followed by padding on the last ranks.
        tokens: S.
        ranks: P.

    Returns:
        [B, S, C], contiguous.

    Raises:
        ValueError: X is not S / P rounded up.
        RuntimeError: CPU only: the default group of torch.distributed does not have P processes.
        LibraryError: CUDA only: this process has no communicator of P ranks on this GPU, or NCCL fails.
    """
    out: Tensor = torch.ops.vorta.gather_tokens(rows, tokens, ranks)
    return out


def _check_rows(rows: Tensor, tokens: int, ranks: int) -> None:
    if rows.ndim != 3 or ranks < 1 or rows.shape[1] != TokenShards(tokens, ranks).rows:
        raise ValueError(f"rows of shape {tuple(rows.shape)}: must be [B, {tokens} / {ranks} rounded up, C]")


def _schema(operator: Operator) -> str:
    tensors = (f"Tensor{'?' if tensor.optional else ''} {tensor.name}" for tensor in operator.input_tensors)
    attributes = (f"{attribute.kind.value} {attribute.name}" for attribute in operator.attributes)
    return f"({', '.join((*tensors, *attributes))}) -> Tensor"


def _group(ranks: int) -> dist.ProcessGroup:
    """The default group, which must have `ranks` processes."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() != ranks:
        raise RuntimeError(
            f"ranks {ranks}: on the CPU the default group of torch.distributed must have as many processes; call "
            f"torch.distributed.init_process_group in each of {ranks}"
        )
    group = dist.group.WORLD
    assert isinstance(group, dist.ProcessGroup)
    return group


@torch.library.custom_op(
    "vorta::ulysses_attention", mutates_args=(), device_types="cpu", schema=_schema(ULYSSES_ATTENTION)
)
def _on_cpu(*arguments: Any) -> Tensor:
    given = _Given.of(*arguments)
    orders, group = given.head_order.long(), _group(given.ranks)
    out: Tensor = sharded_attention(*given[:4], orders, given.geometry, group, given.text_length, given.scale)
    return out


@_on_cpu.register_kernel("cuda")
def _on_cuda(*arguments: Any) -> Tensor:
    given = _Given.of(*arguments)
    query = given.query
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)  # [B, X+T, N, D]
    UlyssesCall(
        *given[:5], output, given.text_length, given.geometry, given.ranks, given.scale, given.attention_precision
    ).enqueue()
    return output


@_on_cpu.register_fake
def _fake(query: Tensor, *arguments: Any) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("vorta::gather_tokens", mutates_args=(), device_types="cpu", schema=_schema(GATHER_TOKENS))
def _gather_on_cpu(input: Tensor, tokens: int, ranks: int) -> Tensor:  # noqa: A002, named as the node's input
    _check_rows(input, tokens, ranks)
    return gather_shards(input, tokens, _group(ranks)).contiguous()  # [B, S, C]


@_gather_on_cpu.register_kernel("cuda")
def _gather_on_cuda(input: Tensor, tokens: int, ranks: int) -> Tensor:  # noqa: A002
    _check_rows(input, tokens, ranks)
    rows, library = input.contiguous(), ready_library(input)
    output = torch.empty((rows.shape[0], tokens, rows.shape[2]), dtype=rows.dtype, device=rows.device)  # [B, S, C]
    params = GatherTokensParams(
        ranks=ranks,
        batch=rows.shape[0],
        tokens=tokens,
        row_bytes=rows.shape[2] * rows.element_size(),
        input=rows.data_ptr(),
        output=output.data_ptr(),
    )
    with torch.cuda.device(rows.device):
        enqueue(library, params, torch.cuda.current_stream(rows.device).cuda_stream)
    return output


@_gather_on_cpu.register_fake
def _gather_fake(input: Tensor, tokens: int, ranks: int) -> Tensor:  # noqa: A002
    return input.new_empty((input.shape[0], tokens, input.shape[2]))
