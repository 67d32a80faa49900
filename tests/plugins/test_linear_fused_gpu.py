# SPDX-License-Identifier: Apache-2.0
"""Products with a gated residual or an output in e4m3, and CUTLASS's other tiles, on a GPU against float64.

Letters: R rows, K input features, O output features.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.plugins.test_linear_gpu import Case, Layer, expected, make_layer, operands, peer, relative_error, run
from vorta_trt.plugins import load_library
from vorta_trt.plugins.linear import OWN_KERNEL, LinearParams, workspace_size
from vorta_trt.plugins.operator_calls import enqueue

pytestmark = pytest.mark.gpu
TILES = (0, 2, 3, 4)  # of variants.h, those that are compiled, for float16
FUSED_TILES = (0, 3)  # those with every epilogue
ORDERS = (0, 2, 3, 12)  # rows in bands of 1, 4 and 8 clusters, columns in bands of 4
SHAPES = [
    Case(1, 64, 128),
    Case(129, 512, 384),
    Case(2049, 1040, 1280),  # neither axis a multiple of a tile, a band or a cluster
    Case(5000, 512, 2816, bias=False),
]
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
hopper = pytest.mark.skipif(not HOPPER, reason="the variants are Hopper's")


def variant(tile: int, order: int) -> int:
    """As variants.h counts them."""
    return 1000 + 20 * tile + order


@hopper
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_every_tile_in_every_order_is_the_product(precision: str, tile: int) -> None:
    for case, order, activation in itertools.product(SHAPES, ORDERS, ("none", "gelu_tanh")):
        case = replace(case, dtype="float16", precision=precision, activation=activation)
        layer = make_layer(case, seed=case.rows)
        output = run(replace(case, candidate=variant(tile, order)), layer)
        assert output.isfinite().all()
        reference = expected(case, layer)
        limit = 2 * relative_error(peer(case, layer), reference) + torch.finfo(output.dtype).eps / 8
        assert relative_error(output, reference) <= limit, (case, order)


def call(case: Case, layer: Layer, output: Tensor, **more: Any) -> None:
    """`test_linear_gpu.run` with what is new; tensors among `more` are given by their address."""
    given = operands(case, layer)
    tensors = {**given, **{name: value for name, value in more.items() if isinstance(value, Tensor)}}
    params = LinearParams(
        dtype=case.dtype, precision=case.precision, activation=case.activation, rows=case.rows,
        in_features=case.in_features, out_features=case.out_features, candidate=case.candidate,
        input_stride=given["input"].stride(0), weight=layer.weight.data_ptr(), output=output.data_ptr(),
        output_stride=output.stride(0),
        weight_scale=None if layer.weight_scale is None else layer.weight_scale.data_ptr(),
        bias=None if layer.bias is None else layer.bias.data_ptr(),
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        **{name: value for name, value in more.items() if not isinstance(value, Tensor)},
    )  # fmt: skip
    library = load_library()
    workspace = torch.empty(workspace_size(library, params), dtype=torch.uint8, device="cuda")
    params.workspace, params.workspace_bytes = workspace.data_ptr(), workspace.numel()
    enqueue(library, params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()


FUSED = [(dtype, candidate) for dtype in ("float16", "bfloat16") for candidate in (OWN_KERNEL, 0)]
if HOPPER:
    FUSED += [("float16", variant(tile, order)) for tile in FUSED_TILES for order in ORDERS]


@pytest.mark.parametrize(("dtype", "candidate"), FUSED)
@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_gated_residual(dtype: str, precision: str, candidate: int) -> None:
    """One rounding in place of two: the error is that of rounding the exact sum, and some of the product's sums."""
    for case in SHAPES:
        case = replace(case, dtype=dtype, precision=precision, candidate=candidate)
        layer = make_layer(case, seed=case.rows)
        kind = layer.input.dtype
        memory = torch.randn(case.rows, case.out_features + 16, device="cuda").to(kind) * 3
        residual, gate = memory[:, : case.out_features], torch.randn(case.out_features, device="cuda")
        output = torch.full((case.rows, case.out_features), torch.nan, device="cuda", dtype=kind)
        exact = residual.double() + gate.double() * expected(case, layer)
        call(case, layer, output, residual=residual, residual_stride=memory.stride(0), gate=gate)
        today = (residual.float() + gate * peer(case, layer).float()).to(kind)
        floor = torch.finfo(kind).eps / 8
        assert relative_error(output, exact) <= 1.2 * relative_error(today, exact) + floor
        ungated = torch.full_like(output, torch.nan)
        call(case, layer, ungated, residual=residual, residual_stride=memory.stride(0))
        exact = residual.double() + expected(case, layer)
        today = (residual.float() + peer(case, layer).float()).to(kind)
        assert relative_error(ungated, exact) <= 1.2 * relative_error(today, exact) + floor


@pytest.mark.parametrize("by_feature", [True, False])
@pytest.mark.parametrize(("dtype", "candidate"), FUSED)
def test_output_in_e4m3_errs_like_a_quantised_one(dtype: str, candidate: int, by_feature: bool) -> None:
    for case in SHAPES:
        case = replace(case, dtype=dtype, precision="fp8", activation="gelu_tanh", candidate=candidate)
        layer = make_layer(case, seed=case.rows)
        assert layer.weight_scale is not None
        if not by_feature:  # then the scale of a row is for its largest feature, as in Quantize
            layer.weight_scale = layer.weight_scale / (layer.weight.float().norm(dim=1) * layer.weight_scale)
        sums = layer.weight.float().abs().sum(1) * layer.weight_scale  # [O]
        bias = torch.zeros_like(sums) if layer.bias is None else layer.bias.float().abs()
        factors = {"feature_factor": 1 / sums} if by_feature else {}
        factor = 1.0 if by_feature else float(sums.max())
        offset = float((bias / (sums if by_feature else 1.0)).max()) / 448 + 1e-12
        output = torch.full((case.rows, case.out_features), torch.nan, device="cuda").to(torch.float8_e4m3fn)
        scales = torch.full((case.rows,), torch.nan, device="cuda")
        call(case, layer, output, output_scale=scales, scale_factor=factor, scale_offset=offset, **factors)
        torch.testing.assert_close(scales, operands(case, layer)["input_scale"] * factor + offset, rtol=1e-6, atol=0)
        values = output.float()
        assert values.isfinite().all() and bool((values.abs() <= 448).all())
        restored = values * scales[:, None] * (sums if by_feature else 1.0)
        # e4m3 alone is 2.7 % off; the bound lies up to 2^7 above the largest, which costs little of it.
        assert relative_error(restored, expected(case, layer)) <= 0.05


@hopper
def test_the_environment_names_a_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read once a process, so this asks a process of its own."""
    import subprocess
    import sys

    program = """
import torch
from tests.plugins.test_linear_gpu import PLAIN, expected, make_layer, relative_error, replace, run
from torch.profiler import ProfilerActivity, profile
case = replace(PLAIN, dtype="float16")
layer = make_layer(case, 1)
with profile(activities=[ProfilerActivity.CUDA]) as seen:
    output = run(case, layer)
assert any("BandScheduler" in event.key or "Bands" in event.key for event in seen.key_averages())
assert relative_error(output, expected(case, layer)) < 1e-3
"""
    monkeypatch.setenv("VORTA_LINEAR_VARIANT", "16:1003")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
