# SPDX-License-Identifier: Apache-2.0
"""What the tests of every family do with a routed model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model import RoutedTransformer


def run(model: RoutedTransformer, inputs: dict[str, Tensor], **changes: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        sample, routes = model(**{**inputs, **changes})
    return sample, routes


def override(routed: RoutedTransformer, branch: int) -> Tensor:
    return torch.full((routed.num_layers, routed.num_heads), branch, dtype=torch.int32)


def check_export_with_dynamic_batch(routed: RoutedTransformer, batched: Iterable[str], seed: int) -> None:
    """torch.export with a dynamic batch keeps the operator in all 3 layers; what it gives is compared if it can run.

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
