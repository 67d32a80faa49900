# SPDX-License-Identifier: Apache-2.0
"""Checks of a routed model that the tests of every family use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vorta_trt.model import RoutedTransformer
from vorta_trt.plugins.operator_schema import BLOCK_OPERATORS


def run(model: RoutedTransformer, inputs: dict[str, Tensor], **changes: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        sample, routes = model(**{**inputs, **changes})
    return sample, routes


def override(routed: RoutedTransformer, branch: int) -> Tensor:
    return torch.full((routed.num_layers, routed.num_heads), branch, dtype=torch.int32)


def check_export_with_dynamic_batch(routed: RoutedTransformer, batched: Iterable[str], seed: int) -> None:
    """Checks that torch.export with a dynamic batch keeps the operator in all 3 layers, and, if possible, its results.

    batched: the inputs with a batch axis.
    """
    batch = torch.export.Dim("batch")
    dynamic: dict[str, Any] = {name: {0: batch} for name in batched} | {"tau": None, "route_override": None}
    program = torch.export.export(routed, (), routed.inputs(2, seed), dynamic_shapes=dynamic, strict=False)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("vorta.routed_attention.default") == 3
    assert not [target for target in targets if "copy" in target or "scatter" in target or "index_put" in target]
    if routed.materialized:
        inputs = routed.inputs(3, seed)
        sample, routes = program.module()(**inputs)
        expected, expected_routes = run(routed, inputs)
        assert torch.equal(routes, expected_routes)
        torch.testing.assert_close(sample, expected, rtol=0, atol=1e-5)


def check_block_ops(
    load: Callable[[torch.dtype], RoutedTransformer], inputs: dict[str, Tensor], counts: dict[str, int]
) -> None:
    """Checks that fused operators give torch's results: in float32 up to the order of sums, in bfloat16 as exactly.

    Heads are full and sliding in turn, since the last bit of a similarity may change a coreset.

    load: loads the model in a type.
    inputs: in float32.
    counts: how often each operator is called, by its name in torch.
    """
    routed = load(torch.float32)
    inputs = inputs | {"route_override": 2 * (torch.arange(routed.num_heads) % 2).repeat(routed.num_layers, 1).int()}
    native, _ = run(routed, inputs)
    routed.block_ops = "plugin"
    with CountedOperators() as counted:
        fused, _ = run(routed, inputs)
    print(f"relative error {float((fused - native).norm() / native.norm()):.1e}")
    assert (fused - native).norm() <= 1e-6 * native.norm()
    assert counted.calls == counts
    routed.block_ops = "native"
    assert torch.equal(run(routed, inputs)[0], native)

    half = load(torch.bfloat16)
    of_dtype = {spec.name for spec in routed.facts().inputs(routed.config) if spec.kind in ("latents", "embedding")}
    rounded = inputs | {name: inputs[name].bfloat16() for name in of_dtype}
    exact, _ = run(routed, inputs | {name: rounded[name].float() for name in of_dtype})
    native, _ = run(half, rounded)
    half.block_ops = "plugin"
    fused, _ = run(half, rounded)
    assert fused.dtype == torch.bfloat16
    errors = [float((sample.float() - exact).norm() / exact.norm()) for sample in (fused, native)]
    print("relative errors, fused and native: {:.1e} {:.1e}".format(*errors))
    assert errors[0] <= 1.5 * errors[1]


class CountedOperators(TorchDispatchMode):
    """Counts calls of the block operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("vorta::")
        if name in {operator.torch_name for operator in BLOCK_OPERATORS}:
            self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))
