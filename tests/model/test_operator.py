# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, routed_attention, routed_attention_reference

VIDEO = AttentionGeometry((4, 6, 4), (2, 3, 2), (3, 1, 3), (2, 3, 2), 6)
WITH_TEXT = AttentionGeometry((4, 6, 4), (2, 3, 2), (3, 1, 3), (2, 3, 2), 6, "key", 3)
GEOMETRIES = [pytest.param(VIDEO, id="video"), pytest.param(WITH_TEXT, id="text")]


def arguments(geometry: AttentionGeometry, normal: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Any, ...]:
    tensors = [normal(2, geometry.tokens, 3, 8, dtype=dtype) for _ in range(3)]
    routes = torch.tensor([[0, 1, 2], [2, 1, 7]], dtype=torch.int32)
    length = torch.tensor([0, 2], dtype=torch.int32) if geometry.text_tokens else None
    return (*tensors, routes, geometry, length)


def op_arguments(geometry: AttentionGeometry, normal: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Any, ...]:
    query, key, value, routes, _, length = arguments(geometry, normal, dtype)
    attributes = tuple(geometry.to_dict().values())
    return (query.requires_grad_(), key.requires_grad_(), value.requires_grad_(), routes, length, *attributes, 0.3)


def test_schema() -> None:
    assert str(torch.ops.vorta.routed_attention.default._schema) == (
        "vorta::routed_attention(Tensor query, Tensor key, Tensor value, Tensor routes, Tensor? text_length, "
        "int[] grid, int[] tile, int[] window, int[] bucket, int keep, str coreset_keys, int text_tokens, "
        'float scale, str attention_precision="same") -> Tensor'
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("precision", [(), ("same",), ("fp8",)])
def test_opcheck(
    geometry: AttentionGeometry, dtype: torch.dtype, precision: tuple[str, ...], normal: Callable[..., Tensor]
) -> None:
    given = (*op_arguments(geometry, normal, dtype), *precision)
    result = torch.library.opcheck(torch.ops.vorta.routed_attention.default, given)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_the_reference(geometry: AttentionGeometry, normal: Callable[..., Tensor]) -> None:
    given = arguments(geometry, normal, torch.float32)
    assert torch.equal(routed_attention(*given), routed_attention_reference(*given))
    assert torch.equal(routed_attention(*given, scale=0.1), routed_attention_reference(*given, scale=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_fp8_is_a_permission_and_the_cpu_exact(
    geometry: AttentionGeometry, dtype: torch.dtype, normal: Callable[..., Tensor]
) -> None:
    query, key, value, *rest = arguments(geometry, normal, dtype)
    weight = normal(*query.shape, dtype=dtype)
    results = []
    for precision in ("same", "fp8"):
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        out = routed_attention(*leaves, *rest, attention_precision=precision)
        results.append((out, *torch.autograd.grad((out * weight).sum(), leaves)))
    for same, fp8 in zip(*results, strict=True):
        assert torch.equal(same, fp8)


@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_export_and_compile_keep_the_precision(precision: str, normal: Callable[..., Tensor]) -> None:
    class Attention(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, routes: Tensor) -> Tensor:
            return routed_attention(query, key, value, routes, VIDEO, attention_precision=precision)

    query, key, value, routes, *_ = arguments(VIDEO, normal, torch.float32)
    program = torch.export.export(Attention(), (query, key, value, routes))
    operator = torch.ops.vorta.routed_attention.default
    (node,) = (node for node in program.graph.nodes if node.target is operator)
    position = [argument.name for argument in operator._schema.arguments].index("attention_precision")
    given = node.args[position] if len(node.args) > position else node.kwargs.get("attention_precision", "same")
    assert given == precision
    expected = routed_attention(query, key, value, routes, VIDEO)
    assert torch.equal(program.module()(query, key, value, routes), expected)
    compiled = torch.compile(Attention(), backend="aot_eager", fullgraph=True)
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    out = compiled(*leaves, routes)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)


@pytest.mark.parametrize("precision", ["", "FP8", "bf16", 8, None])
def test_unknown_precision(precision: Any, normal: Callable[..., Tensor]) -> None:
    given = arguments(VIDEO, normal, torch.float32)
    message = f"attention_precision {precision!r}: must be 'same' or 'fp8'; use 'same' unless fp8 is wanted"
    with pytest.raises(ValueError, match=f"^{message}$"):
        routed_attention(*given, attention_precision=precision)
    if isinstance(precision, str):
        with pytest.raises(ValueError, match=message):
            torch.ops.vorta.routed_attention(*op_arguments(VIDEO, normal, torch.float32), precision)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_equal_the_references(geometry: AttentionGeometry, normal: Callable[..., Tensor]) -> None:
    query, key, value, *rest = arguments(geometry, normal, torch.float64)
    weight = normal(*query.shape, dtype=torch.float64)
    found = []
    for attend in (routed_attention, routed_attention_reference):
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        found.append(torch.autograd.grad((attend(*leaves, *rest) * weight).sum(), leaves))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_gradient_of_one_input_only(normal: Callable[..., Tensor]) -> None:
    query, key, value, *rest = arguments(VIDEO, normal, torch.float32)
    routed_attention(query, key, value.requires_grad_(), *rest).sum().backward()
    assert query.grad is None and value.grad is not None


def test_strided_inputs(normal: Callable[..., Tensor]) -> None:
    packed = normal(1, 3, VIDEO.tokens, 3, 8)  # [B, N, S, 3, D]
    query, key, value = (packed[:, :, :, part].transpose(1, 2) for part in range(3))  # [B, S, N, D]
    assert not query.is_contiguous()
    routes = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    out = routed_attention(query, key, value, routes, VIDEO)
    assert out.is_contiguous()
    assert torch.equal(out, routed_attention(query.contiguous(), key.contiguous(), value.contiguous(), routes, VIDEO))


def test_meta_and_compile(normal: Callable[..., Tensor]) -> None:
    query, key, value, routes, geometry, length = arguments(WITH_TEXT, normal, torch.float16)
    on_meta = [tensor.to("meta") for tensor in (query, key, value, routes)]
    out = routed_attention(*on_meta, geometry, length.to("meta"))
    assert out.shape == query.shape and out.dtype == query.dtype and out.device.type == "meta"
    compiled = torch.compile(routed_attention, backend="aot_eager", fullgraph=True)
    expected = routed_attention(query, key, value, routes, geometry, length)
    assert torch.equal(compiled(query, key, value, routes, geometry, length), expected)


def replaced(index: int, change: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    def apply(given: list[Any]) -> None:
        given[index] = change(given[index])

    return apply


@pytest.mark.parametrize(
    ("geometry", "change", "error", "message"),
    [
        (VIDEO, replaced(0, lambda t: t[0]), ValueError, r"query of shape .*must be \[B, S\+T, N, D\]"),
        (VIDEO, replaced(0, lambda t: t.int()), TypeError, "query of dtype torch.int32: must be a float"),
        (VIDEO, replaced(1, lambda t: t[:, 1:]), ValueError, r"key of shape \(2, 95, 3, 8\): must equal query's"),
        (
            VIDEO,
            replaced(2, lambda t: t.half()),
            TypeError,
            r"value of dtype torch.float16.*use value.to\(torch.float32\)",
        ),
        (VIDEO, replaced(2, lambda t: t.to("meta")), ValueError, "value on meta: must be where query is"),
        (
            VIDEO,
            replaced(3, lambda t: t.long()),
            TypeError,
            r"routes of dtype torch.int64.*use routes.to\(torch.int32\)",
        ),
        (VIDEO, replaced(3, lambda t: t[:, :2]), ValueError, r"routes of shape \(2, 2\): must be \(2, 3\)"),
        (VIDEO, replaced(4, lambda g: g.to_dict()), TypeError, "must be an AttentionGeometry"),
        (VIDEO, replaced(4, lambda g: WITH_TEXT), ValueError, "must have the geometry's 96 video \\+ 3 text tokens"),
        (VIDEO, replaced(5, lambda _: torch.zeros(2).int()), ValueError, "text_length given: the geometry has no text"),
        (WITH_TEXT, replaced(5, lambda _: None), ValueError, "text_length None: required"),
        (WITH_TEXT, replaced(5, lambda t: t.float()), TypeError, "text_length of dtype torch.float32: must be int32"),
        (
            WITH_TEXT,
            replaced(5, lambda t: t + 2),
            ValueError,
            r"text_length \[2, 4\]: every entry must be between 0 and",
        ),
    ],
)
def test_bad_arguments(
    geometry: AttentionGeometry,
    change: Callable[[list[Any]], None],
    error: type[Exception],
    message: str,
    normal: Callable[..., Tensor],
) -> None:
    given = list(arguments(geometry, normal, torch.float32))
    change(given)
    with pytest.raises(error, match=message):
        routed_attention(*given)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_bad_scale(scale: float, normal: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="scale .*: must be finite and positive"):
        routed_attention(*arguments(VIDEO, normal, torch.float32), scale=scale)


@pytest.mark.parametrize("text_tokens", [0, 5])
@pytest.mark.parametrize(("batch", "heads"), [(0, 2), (2, 0), (0, 0)])
def test_tensors_without_elements_give_one_without(batch: int, heads: int, text_tokens: int) -> None:
    """As torch's own attention does."""
    geometry = AttentionGeometry((3, 4, 5), (2, 2, 2), (1, 1, 1), (2, 2, 2), 4, "key", text_tokens)
    tensors = [torch.randn(batch, geometry.tokens, heads, 16, requires_grad=True) for _ in range(3)]
    lengths = torch.zeros(batch, dtype=torch.int32) if text_tokens else None
    output = routed_attention(*tensors, torch.zeros(batch, heads, dtype=torch.int32), geometry, lengths)
    assert output.shape == tensors[0].shape
    output.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.shape == tensor.shape for tensor in tensors)
