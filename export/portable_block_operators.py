# SPDX-License-Identifier: Apache-2.0
"""The block operators in standard ONNX operators: what ONNX Runtime runs, and what a build with native ones inlines.

Norms, modulation, rotation and quantisation are in float32 and rounded once at each output. The products of `Linear`
and `CrossAttention`, the bias and the activation are in the type of the inputs, so that a runtime takes its fast
kernels.

Letters: B batch, X tokens, Y tokens of the keys, E = N * D, N heads, D head dimension, K and O channels of a product,
M modulations (1, or 2 where the first tokens have one of their own).
"""

# mypy: ignore-errors
# (onnxscript reads these functions, Python never runs them: their operators and closures make ONNX nodes)

from __future__ import annotations

from onnxscript import FLOAT, script
from onnxscript import opset23 as op

from vorta_trt.export.branch_policies import VORTA


@script(VORTA, default_opset=op)
def rms_norm(tokens, weight, epsilon: float):
    """Float32 RMS norm of [B, X, E] over groups of as many channels as the weight has: [B, X, E / group, group]."""
    group = op.Concat([0, 0, -1], op.Shape(weight), axis=0)  # [4]
    grouped = op.Reshape(op.Cast(tokens, to=1), group)  # [B, X, E / group, group]
    return op.RMSNormalization(grouped, op.Cast(weight, to=1), axis=-1, epsilon=epsilon)


@script(VORTA, default_opset=op)
def layer_norm(tokens, epsilon: float):
    """Float32 LayerNorm without weight of [B, X, E]."""
    ones = op.Expand(1.0, op.Shape(tokens, start=2, end=3))  # [E]
    return op.LayerNormalization(op.Cast(tokens, to=1), ones, axis=-1, epsilon=epsilon)


@script(VORTA, default_opset=op)
def by_token(modulation: FLOAT, tokens, first_tokens: int):
    """The modulation [B or 1, M, E] in a shape that broadcasts to tokens [B, X, E]: [B or 1, 1 or X, E]."""
    if op.Shape(modulation, start=1, end=2) > 1:
        rows = op.Range(0, op.Squeeze(op.Shape(tokens, start=1, end=2)), 1)  # [X]
        is_first = op.Unsqueeze(rows < op.Constant(value_int=first_tokens), [1])  # [X, 1]
        first = op.Gather(modulation, [0], axis=1)  # [B or 1, 1, E]
        last = op.Gather(modulation, [-1], axis=1)  # [B or 1, 1, E]
        chosen = op.Where(is_first, first, last)  # [B or 1, X, E]
    else:
        chosen = op.Identity(modulation)
    return chosen


@script(VORTA, default_opset=op)
def activated(product, activation: str):
    """Applies the named activation to a product."""
    named = op.Unsqueeze(op.Constant(value_string=activation), [0])  # [1]
    both = op.Concat(named, op.Constant(value_strings=["gelu_tanh"]), axis=0)  # [2] strings of one length
    if both[0:1] == both[1:2]:
        result = op.Gelu(product, approximate="tanh")
    else:
        result = op.Identity(product)
    return result


@script(VORTA, default_opset=op)
def in_heads(tokens, heads: int):
    """[B, X, ...] with N * D channels -> [B, X, N, D]."""
    count = op.Unsqueeze(op.Constant(value_int=heads), [0])  # [1]
    return op.Reshape(tokens, op.Concat([0, 0], count, [-1], axis=0))


@script(VORTA, default_opset=op)
def rotated(tokens: FLOAT, cos: FLOAT, sin: FLOAT):
    """Rotation of neighbouring pairs: tokens [B, X, N, D], cos and sin [1, X, 1, D/2] -> [B, X, N, D]."""
    pairs = op.Reshape(tokens, [0, 0, 0, -1, 2])  # [B, X, N, D/2, 2]
    even, odd = op.Split(pairs, num_outputs=2, axis=-1)  # [B, X, N, D/2, 1]
    cosine = op.Unsqueeze(cos, [-1])  # [1, X, 1, D/2, 1]
    sine = op.Unsqueeze(sin, [-1])  # [1, X, 1, D/2, 1]
    turned = op.Concat(even * cosine - odd * sine, even * sine + odd * cosine, axis=-1)  # [B, X, N, D/2, 2]
    return op.Reshape(turned, [0, 0, 0, -1])


@script(VORTA, default_opset=op)
def HeadNorm(  # noqa: N802
    tokens,
    weight,
    heads: int,
    epsilon: float,
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """[B, X, E] -> [B, X, N, D]; weight [E] or [D]."""
    return op.CastLike(in_heads(rms_norm(tokens, weight, epsilon), heads), tokens)


@script(VORTA, default_opset=op)
def QKNormRotary(  # noqa: N802
    query,
    key,
    query_weight,
    key_weight,
    cos: FLOAT,
    sin: FLOAT,
    heads: int,
    epsilon: float,
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """Query and key [B, X, E] -> [B, X, N, D]; weights [E] or [D]."""
    normed_query = in_heads(rms_norm(query, query_weight, epsilon), heads)  # [B, X, N, D]
    normed_key = in_heads(rms_norm(key, key_weight, epsilon), heads)  # [B, X, N, D]
    rotated_query = op.CastLike(rotated(normed_query, cos, sin), query)
    rotated_key = op.CastLike(rotated(normed_key, cos, sin), key)
    return rotated_query, rotated_key


@script(VORTA, default_opset=op)
def NormModulate(  # noqa: N802
    tokens,
    scale: FLOAT,
    shift: FLOAT,
    epsilon: float,
    first_tokens: int = 0,
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """[B, X, E] -> [B, X, E]; scale and shift [B or 1, M, E]."""
    scaled = layer_norm(tokens, epsilon) * by_token(scale, tokens, first_tokens)  # [B, X, E]
    return op.CastLike(scaled + by_token(shift, tokens, first_tokens), tokens)


@script(VORTA, default_opset=op)
def ResidualNormModulate(  # noqa: N802
    residual,
    update,
    gate: FLOAT,
    scale: FLOAT,
    shift: FLOAT,
    epsilon: float,
    first_tokens: int = 0,
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """Residual and update [B, X, E] -> their sum and its norm, [B, X, E] each; gate, scale, shift [B or 1, M, E]."""
    added = op.Cast(update, to=1) * by_token(gate, update, first_tokens)  # [B, X, E]
    written = op.CastLike(op.Cast(residual, to=1) + added, residual)  # [B, X, E]
    scaled = layer_norm(written, epsilon) * by_token(scale, update, first_tokens)  # [B, X, E]
    return written, op.CastLike(scaled + by_token(shift, update, first_tokens), residual)


@script(VORTA, default_opset=op)
def Linear(  # noqa: N802
    input,
    weight,
    bias,
    activation: str = "none",
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """[B, X, K] -> [B, X, O]; weight [O, K], bias [O]."""
    return activated(op.Add(op.MatMul(input, op.Transpose(weight, perm=[1, 0])), bias), activation)


@script(VORTA, default_opset=op)
def JoinedLinear(  # noqa: N802
    first,
    second,
    weight,
    bias,
    activation: str = "none",
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """First [B, X, J], second [B, X, K] -> [B, X, O]; weight [O, J + K], bias [O]."""
    return Linear(op.Concat(first, second, axis=2), weight, bias, activation)


@script(VORTA, default_opset=op)
def quantize_rows(tokens):
    """[B, X, E] -> e4m3 [B, X, E], and a scale of each token [B, X]."""
    wide = op.Cast(tokens, to=1)  # [B, X, E]
    largest = op.ReduceMax(op.Abs(wide), [-1], keepdims=1)  # [B, X, 1]
    scale = op.Where(largest > 0.0, largest / 448.0, 1.0)  # [B, X, 1]
    return op.Cast(wide / scale, to=17), op.Squeeze(scale, [-1])


@script(VORTA, default_opset=op)
def Quantize(  # noqa: N802
    tokens,
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """[B, X, E] -> e4m3 [B, X, E], and a scale of each token [B, X]."""
    quantized, quantized_scale = quantize_rows(tokens)
    return quantized, quantized_scale


@script(VORTA, default_opset=op)
def JoinedQuantize(  # noqa: N802
    first,
    second,
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """`Quantize` of first [B, X, J] and second [B, X, K] side by side."""
    quantized, quantized_scale = quantize_rows(op.Concat(first, second, axis=2))
    return quantized, quantized_scale


@script(VORTA, default_opset=op)
def NormModulateQuantize(  # noqa: N802
    tokens,
    scale: FLOAT,
    shift: FLOAT,
    epsilon: float,
    first_tokens: int = 0,
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """`Quantize` of what `NormModulate` gives."""
    normed = NormModulate(tokens, scale, shift, epsilon, first_tokens)
    quantized, quantized_scale = quantize_rows(normed)
    return quantized, quantized_scale


@script(VORTA, default_opset=op)
def ResidualNormModulateQuantize(  # noqa: N802
    residual,
    update,
    gate: FLOAT,
    scale: FLOAT,
    shift: FLOAT,
    epsilon: float,
    first_tokens: int = 0,
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """The sum of `ResidualNormModulate`, and `Quantize` of its norm."""
    written, normed = ResidualNormModulate(residual, update, gate, scale, shift, epsilon, first_tokens)
    quantized, quantized_scale = quantize_rows(normed)
    return written, quantized, quantized_scale


@script(VORTA, default_opset=op)
def Fp8Linear(  # noqa: N802
    input,
    input_scale: FLOAT,
    weight,
    weight_scale: FLOAT,
    bias,
    activation: str = "none",
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """[B, X, K] in e4m3 with scales [B, X] -> [B, X, O]; weight [O, K] in e4m3, its scale and the bias [O]."""
    sums = op.MatMul(op.Cast(input, to=1), op.Transpose(op.Cast(weight, to=1), perm=[1, 0]))  # [B, X, O]
    product = sums * op.Unsqueeze(input_scale, [-1]) * weight_scale  # [B, X, O]
    return op.CastLike(activated(product + op.Cast(bias, to=1), activation), bias)


@script(VORTA, default_opset=op)
def CrossAttention(  # noqa: N802
    query,
    key,
    value,
    scale: float = 0.0,
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """Query [B, X, N, D], key and value [B, Y, N, D] -> [B, X, N, D]."""
    rows = op.Transpose(query, perm=[0, 2, 1, 3])  # [B, N, X, D]
    columns = op.Transpose(key, perm=[0, 2, 1, 3])  # [B, N, Y, D]
    values = op.Transpose(value, perm=[0, 2, 1, 3])  # [B, N, Y, D]
    if op.Constant(value_float=scale) > 0.0:
        attended = op.Attention(rows, columns, values, scale=scale)
    else:
        attended = op.Attention(rows, columns, values)
    return op.Transpose(attended, perm=[0, 2, 1, 3])
