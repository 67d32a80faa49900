# SPDX-License-Identifier: Apache-2.0
"""`vorta::ulysses_attention`: routed attention of a sequence whose tokens lie on several GPUs, in one operator.

It is what the plugin of an engine runs: kernels of libvorta_trt that pack, NCCL's exchange, routed attention of this
rank's heads over all tokens, the exchange back, and a kernel that unpacks. Two launches and two exchanges surround the
attention; the permutation of heads costs nothing beside. It needs a communicator (`vorta_trt.plugins.communicator`).
CUDA only, without a gradient.

Letters: P ranks, B batch, S video tokens, T padded text tokens, X = S / P rounded up, N heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.operator import attention_attributes, check_attention_precision, check_device, checked_scale
from vorta_trt.model.precision import dtype_name
from vorta_trt.plugins.kernel_support import prepare_gpu
from vorta_trt.plugins.library import KERNEL_DTYPES, Problem, Tensors, load_library
from vorta_trt.plugins.operator_calls import enqueue
from vorta_trt.plugins.operator_schema import SAME_PRECISION, ULYSSES_ATTENTION
from vorta_trt.plugins.ulysses_attention import UlyssesAttentionParams, workspace_size


def shard_tokens(geometry: AttentionGeometry, ranks: int) -> int:
    """X, the video tokens of a rank, with the padding of the last ranks.

    Args:
        geometry: Of all tokens.
        ranks: P.
    """
    return -(-geometry.video_tokens // ranks)


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
    """Attention of all ranks' tokens, of which every rank gives and gets its own. All ranks call it in the same order.

    Args:
        query: [B, X+T, N, D] of this rank: its video tokens, padding behind them on the last ranks, and all text
            tokens. CUDA, float16 or bfloat16, D a multiple of 8 up to 256.
        key: As query.
        value: As query.
        routes: int32 [B, N] of all heads, the same on every rank.
        head_order: int32 [N], a permutation, the same on every rank: rank p computes heads
            `head_order[p * N/P : (p + 1) * N/P]`. See `placement.head_order`.
        geometry: Of all tokens.
        ranks: P, a divisor of N.
        text_length: int32 [B], valid text tokens; required if and only if `geometry.text_tokens` > 0.
        scale: Factor of the logits; None is 1/sqrt(D).
        attention_precision: As for `routed_attention`.

    Returns:
        [B, X+T, N, D], contiguous: this rank's tokens, 0 for their padding, and all text rows.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument breaks another rule above.
        LibraryError: This process has no communicator of P ranks on this GPU, or NCCL fails.
    """
    check_attention_precision(attention_precision)
    _check(query, key, value, routes, head_order, text_length, geometry, ranks)
    scale = checked_scale(scale, query)
    attributes = (*geometry.to_dict().values(), scale, attention_precision, ranks)
    out: Tensor = torch.ops.vorta.ulysses_attention(
        query, key, value, routes, head_order, text_length, *attributes
    )  # [B, X+T, N, D]
    return out


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    head_order: Tensor,
    text_length: Tensor | None,
    geometry: AttentionGeometry,
    ranks: int,
) -> None:
    if query.ndim != 4 or ranks < 1 or query.shape[2] % ranks:
        raise ValueError(
            f"query of shape {tuple(query.shape)} on {ranks} ranks: must be [B, X+T, N, D] with N a multiple of the "
            f"ranks, for every GPU attends with equally many heads; use a number of GPUs that divides them"
        )
    rows = shard_tokens(geometry, ranks) + geometry.text_tokens
    if query.shape[1] != rows:
        raise ValueError(
            f"query of shape {tuple(query.shape)}: must have {rows} rows, a shard of the geometry's "
            f"{geometry.video_tokens} video tokens for {ranks} ranks and {geometry.text_tokens} text tokens"
        )
    if dtype_name(query.dtype) not in KERNEL_DTYPES:
        raise TypeError(f"query of dtype {query.dtype}: the kernels compute in float16 and bfloat16; convert the model")
    batch, _, heads, _ = query.shape
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != query.shape or tensor.dtype != query.dtype:
            raise ValueError(f"{name} {tensor.dtype} {tuple(tensor.shape)}: must be as query {tuple(query.shape)}")
        check_device(name, tensor, query)
    if (text_length is None) != (geometry.text_tokens == 0):
        raise ValueError(f"text_length {text_length}: must be given if and only if text_tokens is not 0")
    integers = {"routes": (routes, (batch, heads)), "head_order": (head_order, (heads,))}
    if text_length is not None:
        integers["text_length"] = (text_length, (batch,))
    for name, (tensor, shape) in integers.items():
        if tensor.dtype != torch.int32 or tuple(tensor.shape) != shape:
            raise ValueError(f"{name} {tensor.dtype} {tuple(tensor.shape)}: must be int32 {shape}")
        check_device(name, tensor, query)


_SCHEMA = ", ".join(
    [
        *(f"Tensor{'?' if tensor.optional else ''} {tensor.name}" for tensor in ULYSSES_ATTENTION.input_tensors),
        *(f"{attribute.kind.value} {attribute.name}" for attribute in ULYSSES_ATTENTION.attributes),
    ]
)


@torch.library.custom_op(
    "vorta::ulysses_attention", mutates_args=(), device_types="cuda", schema=f"({_SCHEMA}) -> Tensor"
)
def _on_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    head_order: Tensor,
    text_length: Tensor | None,
    *attributes: Any,
) -> Tensor:
    *values, ranks = attributes
    geometry, scale, attention_precision = attention_attributes(tuple(values))
    _check(query, key, value, routes, head_order, text_length, geometry, ranks)
    library = load_library()
    prepare_gpu(library, query.device.index)
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    routes, head_order = routes.contiguous(), head_order.contiguous()
    text_length = None if text_length is None else text_length.contiguous()
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)  # [B, X+T, N, D]
    params = UlyssesAttentionParams(
        ranks=ranks,
        attention=Problem(
            dtype=dtype_name(query.dtype),
            batch=query.shape[0],
            heads=query.shape[2],
            head_dim=query.shape[3],
            **geometry.to_dict(),
            scale=scale,
            attention_precision=attention_precision,
        ),
        head_order=head_order.data_ptr(),
    )
    size = workspace_size(library, params)
    # The workspace may be freed on return: torch's allocator hands it out again on this stream only.
    workspace = torch.empty(max(size, 1), dtype=torch.uint8, device=query.device)  # torch aligns to 512
    params.tensors = Tensors(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        routes=routes.data_ptr(),
        text_length=None if text_length is None else text_length.data_ptr(),
        output=output.data_ptr(),
        query_stride=query.stride()[:3],
        key_stride=key.stride()[:3],
        value_stride=value.stride()[:3],
        output_stride=output.stride()[:3],
        workspace=workspace.data_ptr(),
        workspace_bytes=size,
    )
    with torch.cuda.device(query.device):
        enqueue(library, params, torch.cuda.current_stream(query.device).cuda_stream)
    return output


@_on_cuda.register_fake
def _fake(query: Tensor, *arguments: Any) -> Tensor:
    return query.new_empty(query.shape)
