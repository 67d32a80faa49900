# SPDX-License-Identifier: Apache-2.0
"""The block operators on CUDA: each allocates its outputs and launches a kernel of libvorta_trt on the current stream.

Arguments have been checked against the table. The letters are those of `references.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.block_operators.references import FLOAT8
from vorta_trt.model.precision import dtype_name
from vorta_trt.plugins import block_operators
from vorta_trt.plugins import cross_attention as cross
from vorta_trt.plugins import linear as products
from vorta_trt.plugins.kernel_support import prepare_gpu
from vorta_trt.plugins.library import KERNEL_DTYPES, PluginLibrary, load_library
from vorta_trt.plugins.operator_calls import enqueue

_ALIGNMENT = 16  # bytes, of pointers, and of strides between rows


def qk_norm_rotary(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """CUDA version of `references.qk_norm_rotary`."""
    library, query, key = _library(query), _rows(query), _rows(key)
    query_weight, key_weight = _of_one_type(query_weight, key_weight)
    cos, sin = cos.contiguous(), sin.contiguous()
    query_output, key_output = _heads_of(query, heads), _heads_of(key, heads)
    params = block_operators.QKNormRotaryParams(
        **_norm(query, query_weight, heads, epsilon),
        query=query.data_ptr(),
        key=key.data_ptr(),
        query_weight=query_weight.data_ptr(),
        key_weight=key_weight.data_ptr(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        query_output=query_output.data_ptr(),
        key_output=key_output.data_ptr(),
        query_stride=query.stride()[:2],
        key_stride=key.stride()[:2],
        query_output_stride=query_output.stride()[:2],
        key_output_stride=key_output.stride()[:2],
    )
    _launch(library, params, query)
    return query_output, key_output


def head_norm(tokens: Tensor, weight: Tensor, heads: int, epsilon: float) -> Tensor:
    """CUDA version of `references.head_norm`."""
    library, tokens, weight = _library(tokens), _rows(tokens), weight.contiguous()
    output = _heads_of(tokens, heads)
    params = block_operators.HeadNormParams(
        **_norm(tokens, weight, heads, epsilon),
        tokens=tokens.data_ptr(),
        weight=weight.data_ptr(),
        output=output.data_ptr(),
        tokens_stride=tokens.stride()[:2],
        output_stride=output.stride()[:2],
    )
    _launch(library, params, tokens)
    return output


def norm_modulate(tokens: Tensor, scale: Tensor, shift: Tensor, epsilon: float, first_tokens: int) -> Tensor:
    """CUDA version of `references.norm_modulate`."""
    output = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    _norm_modulate(tokens, (scale, shift), epsilon, first_tokens, **_outputs(output=output))
    return output


def norm_modulate_quantize(
    tokens: Tensor, scale: Tensor, shift: Tensor, epsilon: float, first_tokens: int
) -> tuple[Tensor, Tensor]:
    """CUDA version of `references.norm_modulate_quantize`."""
    pair = _empty_quantized(tokens)
    _norm_modulate(tokens, (scale, shift), epsilon, first_tokens, **_pointers(*pair))
    return pair


def residual_norm_modulate(
    residual: Tensor, update: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, epsilon: float, first_tokens: int
) -> tuple[Tensor, Tensor]:
    """CUDA version of `references.residual_norm_modulate`."""
    residual_output = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    output = torch.empty_like(residual_output)
    outputs = _outputs(residual_output=residual_output, output=output)
    _residual_norm_modulate(residual, update, (gate, scale, shift), epsilon, first_tokens, **outputs)
    return residual_output, output


def residual_norm_modulate_quantize(
    residual: Tensor, update: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, epsilon: float, first_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """CUDA version of `references.residual_norm_modulate_quantize`."""
    residual_output = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    pair = _empty_quantized(residual)
    outputs = _outputs(residual_output=residual_output) | _pointers(*pair)
    _residual_norm_modulate(residual, update, (gate, scale, shift), epsilon, first_tokens, **outputs)
    return residual_output, *pair


def quantize(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """CUDA version of `references.quantize`."""
    rows = _rows(tokens.reshape(-1, tokens.shape[2]))  # [B * X, E]; copied only if the samples are not contiguous
    return _quantize(tokens, rows, features=rows.shape[1])


def joined_quantize(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """CUDA version of `references.joined_quantize`."""
    rows, more = (_rows(tokens.reshape(-1, tokens.shape[2])) for tokens in (first, second))  # [B * X, J or K]
    return _quantize(
        first,
        rows,
        features=rows.shape[1] + more.shape[1],
        second_input=more.data_ptr(),
        second_stride=more.stride(0),
        second_features=more.shape[1],
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """CUDA version of `references.linear`."""
    rows = _rows(input.reshape(-1, input.shape[2]))  # [B * X, K]; copied only if the samples are not contiguous
    return _product(input.shape, weight, bias, activation, "same", input=rows.data_ptr(), input_stride=rows.stride(0))


def joined_linear(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """CUDA version of `references.joined_linear`.

    The sums of the first input are rounded before those of the second are added.
    """
    rows, more = (_rows(tokens.reshape(-1, tokens.shape[2])) for tokens in (first, second))  # [B * X, J or K]
    return _product(
        first.shape,
        weight,
        bias,
        activation,
        "same",
        input=rows.data_ptr(),
        input_stride=rows.stride(0),
        second_input=more.data_ptr(),
        second_stride=more.stride(0),
        second_features=more.shape[1],
    )


def fp8_linear(
    input: Tensor, input_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, activation: str
) -> Tensor:
    """CUDA version of `references.fp8_linear`."""
    rows, input_scale, weight_scale = input.contiguous(), input_scale.contiguous(), weight_scale.contiguous()
    return _product(
        input.shape,
        weight,
        bias,
        activation,
        "fp8",
        input=rows.data_ptr(),
        input_scale=input_scale.data_ptr(),
        weight_scale=weight_scale.data_ptr(),
    )


def cross_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """CUDA version of `references.cross_attention`."""
    library = _library(query)
    query, key, value = _rows(query), _rows(key), _rows(value)
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    params = cross.CrossAttentionParams(
        dtype=dtype_name(query.dtype),
        batch=query.shape[0],
        query_tokens=query.shape[1],
        key_tokens=key.shape[1],
        heads=query.shape[2],
        head_dim=query.shape[3],
        scale=scale,
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        output=output.data_ptr(),
        query_stride=query.stride()[:3],
        key_stride=key.stride()[:3],
        value_stride=value.stride()[:3],
        output_stride=output.stride()[:3],
    )
    with torch.cuda.device(query.device):
        enqueue(library, params, _stream(query))
    return output


def _product(
    shape: torch.Size, weight: Tensor, bias: Tensor, activation: str, precision: str, **pointers: int
) -> Tensor:
    """A linear layer of either precision for an input of shape [B, X, K] -> [B, X, O]."""
    library = _library(bias)
    weight, bias = weight.contiguous(), bias.contiguous()
    output = torch.empty((*shape[:2], weight.shape[0]), dtype=bias.dtype, device=bias.device)
    params = products.LinearParams(
        dtype=dtype_name(bias.dtype),
        precision=precision,
        activation=activation,
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        rows=shape[0] * shape[1],
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        output=output.data_ptr(),
        **pointers,
    )
    params.workspace_bytes = products.workspace_size(library, params)
    # The workspace may be freed on return: torch's allocator hands it out again on this stream only.
    workspace = torch.empty(max(params.workspace_bytes, 1), dtype=torch.uint8, device=bias.device)
    params.workspace = workspace.data_ptr()
    with torch.cuda.device(bias.device):
        products.prepare_products(library, precision, torch.cuda.current_device())
        enqueue(library, params, _stream(bias))
    return output


def _quantize(tokens: Tensor, rows: Tensor, features: int, **second: int) -> tuple[Tensor, Tensor]:
    """Quantised tokens [B, X, features] of the rows of tokens [B, X, ...], and of a second input."""
    library = _library(tokens)
    pair = _empty_quantized(tokens, features)
    params = products.QuantizeParams(
        dtype=dtype_name(tokens.dtype),
        features=features,
        rows=rows.shape[0],
        input=rows.data_ptr(),
        input_stride=rows.stride(0),
        **_pointers(*pair),
        **second,
    )
    with torch.cuda.device(tokens.device):
        enqueue(library, params, _stream(tokens))
    return pair


def _norm_modulate(
    tokens: Tensor, modulation: tuple[Tensor, Tensor], epsilon: float, first_tokens: int, **outputs: Any
) -> None:
    """Launches a NormModulate; modulation: scale and shift; outputs: pointers and strides."""
    library, tokens = _library(tokens), _rows(tokens)
    scale, shift = map(_rows, modulation)
    params = block_operators.NormModulateParams(
        **_modulated(tokens, epsilon, first_tokens),
        tokens=tokens.data_ptr(),
        scale=_strided(scale),
        shift=_strided(shift),
        tokens_stride=tokens.stride()[:2],
        **outputs,
    )
    _launch(library, params, tokens)


def _residual_norm_modulate(
    residual: Tensor,
    update: Tensor,
    modulation: tuple[Tensor, Tensor, Tensor],
    epsilon: float,
    first_tokens: int,
    **outputs: Any,
) -> None:
    """Launches a ResidualNormModulate; modulation: gate, scale and shift; outputs: pointers and strides."""
    library, residual, update = _library(residual), _rows(residual), _rows(update)
    gate, scale, shift = map(_rows, modulation)
    params = block_operators.ResidualNormModulateParams(
        **_modulated(residual, epsilon, first_tokens),
        residual=residual.data_ptr(),
        update=update.data_ptr(),
        gate=_strided(gate),
        scale=_strided(scale),
        shift=_strided(shift),
        residual_stride=residual.stride()[:2],
        update_stride=update.stride()[:2],
        **outputs,
    )
    _launch(library, params, residual)


def _outputs(**tensors: Tensor) -> dict[str, Any]:
    """Pointers and strides of outputs [B, X, E], by name."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        found |= {name: tensor.data_ptr(), f"{name}_stride": tensor.stride()[:2]}
    return found


def _empty_quantized(tokens: Tensor, features: int | None = None) -> tuple[Tensor, Tensor]:
    """Empty e4m3 [B, X, features] and float32 [B, X] for tokens [B, X, E]; `features` None means E."""
    shape = (*tokens.shape[:2], tokens.shape[2] if features is None else features)
    return (
        torch.empty(shape, dtype=FLOAT8, device=tokens.device),
        torch.empty(tokens.shape[:2], dtype=torch.float32, device=tokens.device),
    )


def _pointers(quantized: Tensor, scale: Tensor) -> dict[str, int]:
    return {"quantized": quantized.data_ptr(), "quantized_scale": scale.data_ptr()}


def _library(tokens: Tensor) -> PluginLibrary:
    """The library, prepared for the tokens' GPU; TypeError for a dtype that its kernels do not have."""
    if dtype_name(tokens.dtype) not in KERNEL_DTYPES:
        raise TypeError(
            f"tokens of dtype {tokens.dtype} on CUDA: the kernels compute in float16 and bfloat16; convert the model "
            f'with .to(torch.bfloat16), or run it with block_ops="native"'
        )
    library = load_library()
    prepare_gpu(library, tokens.device.index)
    return library


def _launch(library: PluginLibrary, params: block_operators.BlockOperatorParams, tokens: Tensor) -> None:
    with torch.cuda.device(tokens.device):
        enqueue(library, params, _stream(tokens))


def _stream(tokens: Tensor) -> int:
    stream: int = torch.cuda.current_stream(tokens.device).cuda_stream
    return stream


def _norm(tokens: Tensor, weight: Tensor, heads: int, epsilon: float) -> dict[str, Any]:
    """Parameters that the calls of both RMS norms share."""
    batch, token_count, features = tokens.shape
    return {
        "dtype": dtype_name(tokens.dtype),
        "weight_float32": int(weight.dtype == torch.float32),
        "batch": batch,
        "token_count": token_count,
        "heads": heads,
        "head_dim": features // heads,
        "weight_length": weight.shape[0],
        "epsilon": epsilon,
    }


def _modulated(tokens: Tensor, epsilon: float, first_tokens: int) -> dict[str, Any]:
    """Parameters that the calls of both modulated norms share."""
    batch, token_count, features = tokens.shape
    return {
        "dtype": dtype_name(tokens.dtype),
        "batch": batch,
        "token_count": token_count,
        "features": features,
        "first_tokens": first_tokens,
        "epsilon": epsilon,
    }


def _heads_of(tokens: Tensor, heads: int) -> Tensor:
    """An empty [B, X, N, D] for tokens [B, X, E]."""
    shape = (*tokens.shape[:2], heads, tokens.shape[2] // heads)
    return torch.empty(shape, dtype=tokens.dtype, device=tokens.device)


def _rows(tensor: Tensor) -> Tensor:
    """`tensor` itself if the kernels can read its strides, else a contiguous copy."""
    bytes_each = tensor.element_size()
    readable = (
        tensor.stride(-1) == 1
        and tensor.data_ptr() % _ALIGNMENT == 0
        and all(stride * bytes_each % _ALIGNMENT == 0 for stride in tensor.stride()[:-1])
    )
    return tensor if readable else tensor.clone(memory_format=torch.contiguous_format)


def _strided(modulation: Tensor) -> tuple[int, int, int]:
    """Pointer and strides of a modulation; a stride is 0 along a broadcast axis."""
    batch, rows = (modulation.stride(axis) if modulation.shape[axis] > 1 else 0 for axis in (0, 1))
    return modulation.data_ptr(), batch, rows


def _of_one_type(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both weights contiguous, in float32 unless they have the same type."""
    if first.dtype != second.dtype:
        return first.float().contiguous(), second.float().contiguous()
    return first.contiguous(), second.contiguous()
