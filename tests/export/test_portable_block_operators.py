# SPDX-License-Identifier: Apache-2.0
"""The block operators in standard ONNX operators, as functions and inlined, against torch in float32."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.nn import functional

from vorta_trt.export.function_body import portable_function
from vorta_trt.export.names import OPSET, OPSET_17
from vorta_trt.export.native_operators import with_native_operators
from vorta_trt.model.block_operators.references import quantize
from vorta_trt.model.rotary import rotate

BATCH, TOKENS, HEADS, HEAD_DIM, KEYS, FIRST, OUT = 2, 7, 3, 8, 5, 3, 16
WIDTH = HEADS * HEAD_DIM
EPSILON = 1e-6
ERRORS = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}  # relative L2, of a rounding or two
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HALF = "half"  # an input in the type of the activations


@dataclass(frozen=True)
class Case:
    """An operator, the shapes and types of its inputs, and what it computes of them."""

    operator: str
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[int, ...]]
    compute: Callable[..., Tensor | tuple[Tensor, ...]]
    attributes: dict[str, Any] = field(default_factory=dict)
    output_types: dict[str, int] = field(default_factory=dict)  # of those that do not have the activations' type

    def __str__(self) -> str:
        shapes = "-".join("x".join(map(str, shape)) for _, shape in self.inputs.values())
        return f"{self.operator}-{shapes}-{'-'.join(map(str, self.attributes.values()))}"


def in_heads(tokens: Tensor) -> Tensor:
    return tokens.unflatten(-1, (HEADS, HEAD_DIM))


def head_norm(tokens: Tensor, weight: Tensor) -> Tensor:
    grouped = tokens.unflatten(-1, (-1, weight.numel()))
    return in_heads(functional.rms_norm(grouped, weight.shape, weight, EPSILON).flatten(-2))


def qk_norm_rotary(
    query: Tensor, key: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    return rotate(head_norm(query, query_weight), cos, sin), rotate(head_norm(key, key_weight), cos, sin)


def by_token(modulation: Tensor) -> Tensor:
    first, last = modulation[:, :1], modulation[:, -1:]
    return torch.cat((first.expand(-1, FIRST, -1), last.expand(-1, TOKENS - FIRST, -1)), dim=1)


def norm_modulate(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return functional.layer_norm(tokens, (WIDTH,), eps=EPSILON) * by_token(scale) + by_token(shift)


def linear(activation: str) -> Callable[..., Tensor]:
    def compute(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        product = functional.linear(tokens, weight, bias)
        return functional.gelu(product, approximate="tanh") if activation == "gelu_tanh" else product

    return compute


def joined_linear(activation: str) -> Callable[..., Tensor]:
    def compute(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(activation)(torch.cat((first, second), dim=2), weight, bias)

    return compute


def fp8_linear(activation: str) -> Callable[..., Tensor]:
    def compute(tokens: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
        product = functional.linear(tokens, weight) * scale.unsqueeze(-1) * weight_scale + bias
        return functional.gelu(product, approximate="tanh") if activation == "gelu_tanh" else product

    return compute


def cross_attention(scale: float) -> Callable[..., Tensor]:
    def compute(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        return functional.scaled_dot_product_attention(*rows, scale=scale or None).transpose(1, 2)

    return compute


TOKEN = (HALF, (BATCH, TOKENS, WIDTH))
IN_HEADS = (BATCH, TOKENS, HEADS, HEAD_DIM)
TABLE = ("float32", (1, TOKENS, 1, HEAD_DIM // 2))
NORM = {"heads": HEADS, "epsilon": EPSILON}
MODULATION = {"epsilon": EPSILON, "first_tokens": FIRST}
PRODUCT = {"weight": (HALF, (OUT, WIDTH)), "bias": (HALF, (OUT,))}
JOINED = 5  # features of the first of two inputs
JOINED_PRODUCT = {"weight": (HALF, (OUT, JOINED + WIDTH)), "bias": (HALF, (OUT,))}
FP8_PRODUCT = {
    "input": ("float8_e4m3fn", TOKEN[1]),
    "input_scale": ("float32", TOKEN[1][:2]),
    "weight": ("float8_e4m3fn", (OUT, WIDTH)),
    "weight_scale": ("float32", (OUT,)),
    "bias": (HALF, (OUT,)),
}


def modulation(batch: int, rows: int) -> tuple[str, tuple[int, ...]]:
    return "float32", (batch, rows, WIDTH)


CASES = [
    *(
        Case("HeadNorm", {"tokens": TOKEN, "weight": (HALF, (of,))}, {"output": IN_HEADS}, head_norm, NORM)
        for of in (WIDTH, HEAD_DIM)
    ),
    *(
        Case(
            "QKNormRotary",
            {
                "query": TOKEN,
                "key": TOKEN,
                "query_weight": (HALF, (of,)),
                "key_weight": (HALF, (of,)),
                "cos": TABLE,
                "sin": TABLE,
            },
            {"rotated_query": IN_HEADS, "rotated_key": IN_HEADS},
            qk_norm_rotary,
            NORM,
        )
        for of in (WIDTH, HEAD_DIM)
    ),
    *(
        Case(
            "NormModulate",
            {"tokens": TOKEN, "scale": modulation(BATCH, rows), "shift": modulation(1, 1)},
            {"output": TOKEN[1]},
            norm_modulate,
            MODULATION,
        )
        for rows in (1, 2)
    ),
    *(
        Case(
            "ResidualNormModulate",
            {
                "residual": TOKEN,
                "update": TOKEN,
                "gate": modulation(BATCH, gate),
                "scale": modulation(1, scale),
                "shift": modulation(1, scale),
            },
            {"sum": TOKEN[1], "normed": TOKEN[1]},
            lambda residual, update, gate, scale, shift: residual_norm_modulate(residual, update, gate, scale, shift),
            MODULATION,
        )
        for gate, scale in ((1, 1), (2, 1), (2, 2))
    ),
    *(
        Case(
            "Linear",
            {"input": TOKEN, **PRODUCT},
            {"output": (BATCH, TOKENS, OUT)},
            linear(activation),
            {"activation": activation},
        )
        for activation in ("none", "gelu_tanh")
    ),
    *(
        Case(
            "JoinedLinear",
            {"first": (HALF, (BATCH, TOKENS, JOINED)), "second": TOKEN, **JOINED_PRODUCT},
            {"output": (BATCH, TOKENS, OUT)},
            joined_linear(activation),
            {"activation": activation},
        )
        for activation in ("none", "gelu_tanh")
    ),
    *(
        Case(
            "Fp8Linear",
            FP8_PRODUCT,
            {"output": (BATCH, TOKENS, OUT)},
            fp8_linear(activation),
            {"activation": activation},
        )
        for activation in ("none", "gelu_tanh")
    ),
    *(
        Case(
            "CrossAttention",
            {name: (HALF, (BATCH, rows, HEADS, HEAD_DIM)) for name, rows in zip(names, counts, strict=True)},
            {"output": IN_HEADS},
            cross_attention(scale),
            {"scale": scale},
        )
        for names, counts in [(("query", "key", "value"), (TOKENS, KEYS, KEYS))]
        for scale in (0.0, 1 / math.sqrt(12))
    ),
]


def residual_norm_modulate(
    residual: Tensor, update: Tensor, gate: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    added = residual + update * by_token(gate)
    return added, norm_modulate(added, scale, shift)


def tensors(case: Case, dtype: str) -> dict[str, Tensor]:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, (kind, shape) in case.inputs.items():
        own = DTYPES.get(dtype if kind == HALF else kind, torch.float8_e4m3fn)
        made[name] = torch.randn(shape, generator=generator).to(own)
    return made


def as_numpy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()


def model_of(case: Case, given: dict[str, Tensor], opset: int = OPSET) -> onnx.ModelProto:
    """One node; its parameters are weights, and the batch is open."""
    arrays = {name: as_numpy(tensor) for name, tensor in given.items()}
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in arrays.items()}
    activation = next(types[name] for name, (kind, _) in case.inputs.items() if kind == HALF)
    info = onnx.helper.make_tensor_value_info
    fed, weights = [], []
    for name, array in arrays.items():
        # ONNX Runtime is fed no e4m3.
        if types[name] == onnx.TensorProto.FLOAT8E4M3FN or (array.ndim < 3 and array.shape[0] != BATCH):
            weights.append(
                onnx.helper.make_tensor(name, types[name], array.shape, np.ascontiguousarray(array).tobytes(), raw=True)
            )
        else:
            shape = ("batch" if array.shape[0] == BATCH else array.shape[0], *array.shape[1:])
            fed.append(info(name, types[name], shape))
    node = onnx.helper.make_node(
        case.operator,
        list(arrays),
        list(case.outputs),
        name=f"blocks.0.attn/{case.operator}",
        domain="vorta",
        plugin_namespace="vorta",
        plugin_version="1",
        **case.attributes,
    )
    results = [
        info(name, case.output_types.get(name, activation), ("batch", *shape[1:]))
        for name, shape in case.outputs.items()
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one_node", fed, results, weights),
        functions=[portable_function(case.operator)] if opset == OPSET else [],
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("vorta", 1)],
        ir_version=11 if opset == OPSET else 8,
    )
    return model


def run(model: onnx.ModelProto, given: dict[str, Tensor]) -> list[Tensor]:
    onnx.checker.check_model(model, full_check=True)
    names = {value.name for value in model.graph.input}
    feed = {name: as_numpy(tensor) for name, tensor in given.items() if name in names}
    if any(tensor.dtype == torch.bfloat16 for tensor in given.values()):  # which ONNX Runtime's CPU does not compute in
        results = ReferenceEvaluator(model).run(None, feed)
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(None, feed)
    return [as_tensor(np.asarray(result)) for result in results]


def as_tensor(result: np.ndarray) -> Tensor:
    if result.dtype == np.uint8:  # as ONNX Runtime gives e4m3
        result = result.view(ml_dtypes.float8_e4m3fn)
    return torch.from_numpy(result.astype(np.float32))


def check(case: Case, given: dict[str, Tensor], got: list[Tensor], dtype: str) -> None:
    exact = case.compute(*(tensor.float() for tensor in given.values()))
    for name, wanted, found in zip(case.outputs, exact if isinstance(exact, tuple) else (exact,), got, strict=True):
        assert found.shape == case.outputs[name] and found.isfinite().all()
        error = ((found - wanted).norm() / wanted.norm()).item()
        assert error <= ERRORS[dtype], name


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_function(case: Case, dtype: str) -> None:
    given = tensors(case, dtype)
    check(case, given, run(model_of(case, given), given), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("opset", [OPSET, OPSET_17])
@pytest.mark.parametrize("case", [case for case in CASES if case.operator != "Fp8Linear"], ids=str)
def test_inlined(case: Case, opset: int, dtype: str) -> None:
    given = tensors(case, dtype)
    model = model_of(case, given, opset)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    inlined = with_native_operators(model, [case.operator])
    assert not any(node.domain for node in inlined.graph.node) and not inlined.functions
    assert not {"If", "Equal", "Identity", "Shape"} & {node.op_type for node in inlined.graph.node}
    assert all(node.name.startswith(f"blocks.0.attn/{case.operator}.") for node in inlined.graph.node)
    assert {entry.version for entry in inlined.opset_import if entry.domain == ""} == {opset}
    kept = {tensor.name: tensor for tensor in inlined.graph.initializer if tensor.name in weights}
    assert {name: tensor.raw_data for name, tensor in kept.items()} == {
        name: tensor.raw_data for name, tensor in weights.items()
    }
    check(case, given, run(inlined, given), dtype)


PAIR = {
    "outputs": {"quantized": TOKEN[1], "quantized_scale": TOKEN[1][:2]},
    "output_types": {"quantized": onnx.TensorProto.FLOAT8E4M3FN, "quantized_scale": onnx.TensorProto.FLOAT},
}


def quantised_by(case: Case, given: dict[str, Tensor]) -> list[Tensor]:
    """What the norm of a case leaves if it quantises, or `Quantize` of a tensor: both in float32."""
    outputs = dict(list(case.outputs.items())[:-1]) | PAIR["outputs"]
    made = replace(case, operator=f"{case.operator}Quantize", outputs=outputs, output_types=PAIR["output_types"])
    return run(model_of(made, given), given)[-2:]


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("case", [case for case in CASES if "NormModulate" in case.operator], ids=str)
def test_norms_that_quantise(case: Case, dtype: str) -> None:
    """Bit for bit `Quantize` of what the norm gives without, and both are torch's own."""
    given = tensors(case, dtype)
    normed = run(model_of(case, given), given)[-1].to(DTYPES[dtype])  # exact: it was rounded to that type
    alone = Case("", {"tokens": TOKEN}, {"": ()}, quantize)
    values, scale = quantize(normed)
    for found, found_scale in (quantised_by(case, given), quantised_by(alone, {"tokens": normed})):
        assert torch.equal(found, values.float()) and torch.equal(found_scale, scale)


def test_two_inputs_are_quantised_as_one() -> None:
    tokens = torch.randn(TOKEN[1])
    halves = {"first": tokens[..., :JOINED].contiguous(), "second": tokens[..., JOINED:].contiguous()}
    inputs = {name: (HALF, tuple(half.shape)) for name, half in halves.items()}
    values, scale = quantised_by(Case("Joined", inputs, {"": ()}, quantize), halves)
    wanted, wanted_scale = quantize(tokens)
    assert torch.equal(values, wanted.float()) and torch.equal(scale, wanted_scale)


def test_zeros_are_quantised_over_one() -> None:
    alone = Case("", {"tokens": TOKEN}, {"": ()}, quantize)
    values, scale = quantised_by(alone, {"tokens": torch.zeros(TOKEN[1])})
    assert not values.any() and torch.equal(scale, torch.ones(TOKEN[1][:2]))


def test_only_the_named_operators_are_inlined() -> None:
    case = CASES[0]
    given = tensors(case, "float32")
    model = model_of(case, given)
    assert with_native_operators(model, ["Linear"]).graph.node[0].op_type == "HeadNorm"
