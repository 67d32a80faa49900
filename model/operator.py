# SPDX-License-Identifier: Apache-2.0
"""`vorta::routed_attention`, the operator as torch sees it.

On the CPU it is the reference; on CUDA it is the kernels of libvorta_trt, called through their C API on the current
stream. It traces (fake tensors, torch.export, torch.compile) and differentiates: the backward pass recomputes the
forward pass through the reference. The branch choice and the coreset are constants of the gradient.

`attention_precision` is a permission to the kernels: with "fp8" they may multiply in 8 bits, Q K^T as int8 and P V as
e4m3, with scales computed on the fly. The reference, and with it the CPU and every backward pass, is exact either way.

Letters: B batch, S video tokens, T padded text tokens, N heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.precision import dtype_name
from vorta_trt.model.reference import routed_attention_reference
from vorta_trt.plugins.kernel_support import prepare_gpu
from vorta_trt.plugins.library import KERNEL_DTYPES, Problem, Tensors, load_library
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION, SAME_PRECISION, Attribute, choices

MAX_KERNEL_HEAD_DIM = 256
_ALIGNMENT = 16  # bytes, of the kernels' pointers and strides


def _declared(attribute: Attribute) -> str:
    """An attribute in a torch schema; callers from before `attention_precision` existed leave it out."""
    default = f"='{attribute.default}'" if attribute.name == "attention_precision" else ""
    return f"{attribute.kind.value} {attribute.name}{default}"


ARGUMENTS = "Tensor query, Tensor key, Tensor value, Tensor routes, Tensor? text_length, " + ", ".join(
    map(_declared, ROUTED_ATTENTION.attributes)
)

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The function that a block's self-attention calls: query, key and value -> output, [B, S+T, N, D] each."""

AttentionObserver = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], object]
"""A block's `observer`: called with query, key, value and output of its attention, and text_length."""


def routed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    geometry: AttentionGeometry,
    text_length: Tensor | None = None,
    scale: float | None = None,
    attention_precision: str = SAME_PRECISION,
) -> Tensor:
    """Attention in which every head of every sample takes its own branch.

    `branch_attention.py` has the two other forms, which routers are trained with: the soft mixture of a router's scores
    (`mixed_attention`), and full attention through torch (`full_attention`).

    Args:
        query: [B, S+T, N, D], after QK norm and rotary embedding. CUDA: float16 or bfloat16, D a multiple of 8 up to
            256. CPU: any float dtype.
        key: Keys, of the shape and dtype of `query`, on the same device.
        value: Values, of the shape and dtype of `query`, on the same device.
        routes: int32 [B, N], ids of `Branch`; any other id is full. Never read by the host on CUDA.
        geometry: Grid, tiles, windows and buckets of the tokens.
        text_length: int32 [B], valid text tokens; required if and only if `geometry.text_tokens` > 0.
        scale: Factor of the logits; None is 1/sqrt(D).
        attention_precision: "same" multiplies in the dtype of the inputs; "fp8" lets the kernels multiply in 8 bits,
            faster and less exact (GPUs of compute capability 9.0, D 64 or 128). The CPU computes the same for both.

    Returns:
        [B, S+T, N, D], contiguous; rows of padded text are 0.

    Raises:
        TypeError: An argument has the wrong type; the message names argument, value, rule and remedy.
        ValueError: An argument breaks another rule above.
        GpuSupportError: CUDA only: the library has no kernels for this GPU, or needs a newer driver.
        LibraryError: CUDA only: there is no kernel for "fp8" with this D.
    """
    check_attention_precision(attention_precision)
    check_tensors(query, key, value, geometry, text_length)
    _check_routes(routes, query)
    scale = checked_scale(scale, query)
    out: Tensor = torch.ops.vorta.routed_attention(
        query, key, value, routes, text_length, *geometry.to_dict().values(), scale, attention_precision
    )  # [B, S+T, N, D]
    return out


def check_attention_precision(value: str) -> None:
    """Raises ValueError unless `value` names a precision that the operator knows."""
    if value not in choices("attention_precision"):
        known = " or ".join(map(repr, choices("attention_precision")))
        raise ValueError(f"attention_precision {value!r}: must be {known}; use {SAME_PRECISION!r} unless fp8 is wanted")


def checked_scale(scale: float | None, query: Tensor) -> float:
    """The scale of the logits; ValueError unless it is positive."""
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale {scale}: must be finite and positive; use None for 1/sqrt(D)")
    return scale


def check_tensors(
    query: Tensor, key: Tensor, value: Tensor, geometry: AttentionGeometry, text_length: Tensor | None
) -> None:
    """Raises TypeError or ValueError unless the arguments fit each other, as `routed_attention` says."""
    if not isinstance(geometry, AttentionGeometry):
        raise TypeError(f"geometry {geometry!r}: must be an AttentionGeometry; use AttentionGeometry.for_video(...)")
    if query.ndim != 4:
        raise ValueError(f"query of shape {tuple(query.shape)}: must be [B, S+T, N, D]; unflatten the heads first")
    if not query.is_floating_point():
        raise TypeError(f"query of dtype {query.dtype}: must be a float dtype")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != query.shape:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)}: must equal query's {tuple(query.shape)}")
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} of dtype {tensor.dtype}: must equal query's; use {name}.to({query.dtype})")
        check_device(name, tensor, query)
    if query.shape[1] != geometry.tokens:
        raise ValueError(
            f"query of shape {tuple(query.shape)}: must have the geometry's {geometry.video_tokens} video + "
            f"{geometry.text_tokens} text tokens; use a geometry for your video size, e.g. AttentionGeometry.for_video"
        )
    if text_length is not None:
        if not geometry.text_tokens:
            raise ValueError("text_length given: the geometry has no text tokens; leave it out, or set text_tokens")
        _check_int32("text_length", text_length, query.shape[:1], query)
    elif geometry.text_tokens:
        raise ValueError(
            f"text_length None: required because the geometry has {geometry.text_tokens} text tokens; pass int32 [B]"
        )


def _check_routes(routes: Tensor, query: Tensor) -> None:
    _check_int32("routes", routes, (query.shape[0], query.shape[2]), query)


def _check_int32(name: str, tensor: Tensor, shape: Sequence[int], query: Tensor) -> None:
    if tensor.dtype != torch.int32:
        raise TypeError(f"{name} of dtype {tensor.dtype}: must be int32; use {name}.to(torch.int32)")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}: must be {tuple(shape)}, from query's batch and heads")
    check_device(name, tensor, query)


def check_device(name: str, tensor: Tensor, query: Tensor) -> None:
    """Raises ValueError unless `tensor` lies where `query` does."""
    if tensor.device != query.device:
        raise ValueError(f"{name} on {tensor.device}: must be where query is; use {name}.to('{query.device}')")


def attention_attributes(values: tuple[Any, ...]) -> tuple[AttentionGeometry, float, str]:
    """Geometry, scale and precision from the operator's attributes, in the order of the table."""
    named = dict(zip((attribute.name for attribute in ROUTED_ATTENTION.attributes), values, strict=False))
    attention_precision = named.pop("attention_precision", SAME_PRECISION)
    check_attention_precision(attention_precision)
    scale = named.pop("scale")
    return AttentionGeometry.from_dict(named), scale, attention_precision


@torch.library.custom_op(
    "vorta::routed_attention", mutates_args=(), device_types="cpu", schema=f"({ARGUMENTS}) -> Tensor"
)
def _on_cpu(
    query: Tensor, key: Tensor, value: Tensor, routes: Tensor, text_length: Tensor | None, *attributes: Any
) -> Tensor:
    geometry, scale, _ = attention_attributes(attributes)
    check_tensors(query, key, value, geometry, text_length)
    _check_routes(routes, query)
    return routed_attention_reference(query, key, value, routes, geometry, text_length, scale)


@_on_cpu.register_fake
def _fake(query: Tensor, *arguments: Any) -> Tensor:
    return query.new_empty(query.shape)


@_on_cpu.register_kernel("cuda")
def _on_cuda(
    query: Tensor, key: Tensor, value: Tensor, routes: Tensor, text_length: Tensor | None, *attributes: Any
) -> Tensor:
    geometry, scale, attention_precision = attention_attributes(attributes)
    check_tensors(query, key, value, geometry, text_length)
    _check_routes(routes, query)
    if dtype_name(query.dtype) not in KERNEL_DTYPES:
        raise TypeError(
            f"query of dtype {query.dtype} on CUDA: the kernels compute in float16 and bfloat16; convert query, key "
            f"and value with .to(torch.bfloat16), or use vorta_trt.model.routed_attention_reference for {query.dtype}"
        )
    batch, _, heads, head_dim = query.shape
    if head_dim % 8 or head_dim > MAX_KERNEL_HEAD_DIM:
        raise ValueError(
            f"head dimension {head_dim} on CUDA: must be a multiple of 8, at most {MAX_KERNEL_HEAD_DIM}; pad the "
            f"heads, or use vorta_trt.model.routed_attention_reference"
        )
    library = load_library()
    prepare_gpu(library, query.device.index)
    query, key, value = (aligned(tensor) for tensor in (query, key, value))
    routes = routes.contiguous()
    text_length = None if text_length is None else text_length.contiguous()
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)  # [B, S+T, N, D]
    problem = Problem(
        dtype=dtype_name(query.dtype),
        batch=batch,
        heads=heads,
        head_dim=head_dim,
        **geometry.to_dict(),
        scale=scale,
        attention_precision=attention_precision,
    )
    with torch.cuda.device(query.device):
        workspace_bytes = library.workspace_size(problem)
        workspace = torch.empty(max(workspace_bytes, 1), dtype=torch.uint8, device=query.device)  # torch aligns to 512
        tensors = kernel_tensors(query, key, value, routes, text_length, output, workspace, workspace_bytes)
        # The workspace may be freed on return: torch's allocator hands it out again on this stream only.
        library.enqueue(problem, tensors, torch.cuda.current_stream(query.device).cuda_stream)
    return output


def kernel_tensors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    text_length: Tensor | None,
    output: Tensor,
    workspace: Tensor,
    workspace_bytes: int,
) -> Tensors:
    """Pointers and strides of tensors on the GPU, for the C API; the tensors have to live until the work is done."""
    return Tensors(
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
        workspace_bytes=workspace_bytes,
    )


def aligned(tensor: Tensor) -> Tensor:
    """`tensor` itself if the kernels can read its strides, else a contiguous copy."""
    bytes_each = tensor.element_size()
    readable = (
        tensor.stride(3) == 1
        and tensor.data_ptr() % _ALIGNMENT == 0
        and all(stride * bytes_each % _ALIGNMENT == 0 for stride in tensor.stride()[:3])
    )
    return tensor if readable else tensor.clone(memory_format=torch.contiguous_format)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, routes, text_length, *attributes = inputs
    ctx.save_for_backward(query, key, value, routes, text_length)
    ctx.attributes = tuple(attributes)  # from grid to attention_precision


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    query, key, value, routes, text_length = ctx.saved_tensors
    needed = [position for position in range(3) if ctx.needs_input_grad[position]]
    grads: list[Tensor | None] = [None] * (5 + len(ctx.attributes))
    if needed:
        found = torch.ops.vorta.routed_attention_backward(grad, query, key, value, routes, text_length, *ctx.attributes)
        for position in needed:
            grads[position] = found[position]
    return tuple(grads)


def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    text_length: Tensor | None,
    *attributes: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by query, key and value: the reference, recomputed with autograd on, exact for every precision."""
    geometry, scale, _ = attention_attributes(attributes)
    with torch.enable_grad():
        query, key, value = (tensor.detach().requires_grad_() for tensor in (query, key, value))
        out = routed_attention_reference(query, key, value, routes, geometry, text_length, scale)
        by_query, by_key, by_value = torch.autograd.grad(out, (query, key, value), grad)
    return by_query.contiguous(), by_key.contiguous(), by_value.contiguous()


def _fake_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


_on_cpu.register_autograd(_backward, setup_context=_remember)

# Not a custom_op: those run with autograd switched off underneath them, and this one needs it for its recomputation.
# With a fallthrough for the autograd key nothing switches it off.
_library = torch.library.Library("vorta", "FRAGMENT")
_library.define(f"routed_attention_backward(Tensor grad, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
_library.impl("routed_attention_backward", torch.library.fallthrough_kernel, "Autograd")
_library.impl("routed_attention_backward", _gradients, "CPU")
_library.impl("routed_attention_backward", _gradients, "CUDA")
torch.library.register_fake("vorta::routed_attention_backward", _fake_gradients, lib=_library)
