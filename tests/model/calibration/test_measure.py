# SPDX-License-Identifier: Apache-2.0
"""Errors of branches and of routes in a dense pass, against the reference on the same query, key and value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, Branch, RoutedTransformer, routed_attention_reference
from vorta_trt.model.calibration import measure
from vorta_trt.model.calibration.measure import measure_branches, measure_routes, routed

from ..running import run
from ..watching import LargestTensor

FAMILIES = ["pipeline", "hunyuan_video"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> RoutedTransformer:
    """3 layers of 4 heads, without a router."""
    made: Any = request.getfixturevalue(request.param)
    return RoutedTransformer.from_pretrained(made.checkpoint, geometry=made.geometry).requires_grad_(False)


@pytest.fixture
def inputs(model: RoutedTransformer, seed: int) -> dict[str, Tensor]:
    inputs = model.inputs(1, seed)
    del inputs["tau"], inputs["route_override"]
    return inputs


def attentions(model: RoutedTransformer, inputs: dict[str, Tensor]) -> list[tuple[Any, ...]]:
    """Per layer: query, key, value, text length, and a function from an attention output to what the block adds."""
    seen: list[tuple[Any, ...]] = []
    for block in model.routed_blocks():
        video_weight, text_weight = block.output_weights()

        def project(attended: Tensor, both: tuple[Tensor, Tensor] = (video_weight, text_weight)) -> Tensor:
            assert model.geometry is not None
            rows, video = attended[0].flatten(1), model.geometry.video_tokens
            return torch.cat([rows[:video] @ both[0].T, rows[video:] @ both[1].T])

        block.observer = lambda query, key, value, _, text, project=project: seen.append(
            (query, key, value, text, project)
        )
    run(model, inputs)
    for block in model.routed_blocks():
        block.observer = None
    return seen


def branch_output(model: RoutedTransformer, attention: tuple[Any, ...], routes: Tensor) -> Tensor:
    query, key, value, text, _ = attention
    assert model.geometry is not None
    return routed_attention_reference(query, key, value, routes[None], model.geometry, text)


def test_errors_of_the_branches(model: RoutedTransformer, inputs: dict[str, Tensor]) -> None:
    sample, squares = measure_branches(model, inputs)
    assert squares.shape == (3, 4, 3) and squares.dtype == torch.float64
    assert bool((squares[..., Branch.FULL] == 0).all())
    assert bool((squares[..., 1:] > 1e-6).all())
    expected_sample, _ = run(model, inputs)
    assert torch.equal(sample, expected_sample)
    for layer, attention in enumerate(attentions(model, inputs)):
        project = attention[4]
        full = branch_output(model, attention, torch.zeros(4, dtype=torch.int32))
        for branch in (Branch.CORESET, Branch.SLIDING):
            for head in range(4):
                routes = torch.zeros(4, dtype=torch.int32)
                routes[head] = int(branch)
                difference = project(branch_output(model, attention, routes) - full)
                expected = difference.square().sum() / project(full).square().sum()
                assert float(squares[layer, head, branch]) == pytest.approx(float(expected), rel=1e-4)


def test_errors_of_routes(model: RoutedTransformer, inputs: dict[str, Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    routes = torch.randint(0, 3, (3, 4), generator=generator, dtype=torch.int32)
    sample, squares = measure_routes(model, inputs, routes)
    expected_sample, _ = run(model, inputs)
    assert torch.equal(sample, expected_sample), "the pass itself is dense"
    for layer, attention in enumerate(attentions(model, inputs)):
        project = attention[4]
        full = branch_output(model, attention, torch.zeros(4, dtype=torch.int32))
        difference = project(branch_output(model, attention, routes[layer]) - full)
        expected = difference.square().sum() / project(full).square().sum()
        assert float(squares[layer]) == pytest.approx(float(expected), rel=1e-4)
    taken, _ = run(model, inputs, route_override=routes)
    assert torch.equal(routed(model, inputs, routes), taken)


def products_of(
    block: Any, model: RoutedTransformer, inputs: dict[str, Tensor]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """A block's attention output [R, N * D], and the weight and input of every linear layer that ran in it."""
    products: list[tuple[Tensor, Tensor]] = []
    outputs: list[Tensor] = []
    hooks = [
        linear.register_forward_pre_hook(lambda layer, given: products.append((layer.weight, given[0][0])))
        for linear in block.modules()
        if isinstance(linear, torch.nn.Linear)
    ]
    block.observer = lambda query, key, value, attended, text: outputs.append(attended[0].flatten(1))
    run(model, inputs)
    block.observer = None
    for hook in hooks:
        hook.remove()
    return outputs[0], products


def test_output_weights_are_what_the_block_multiplies_with(model: RoutedTransformer, inputs: dict[str, Tensor]) -> None:
    assert model.geometry is not None
    video, width = model.geometry.video_tokens, model.num_heads * model.head_dim
    for block in model.routed_blocks():
        attended, products = products_of(block, model, inputs)
        for weight, part in zip(block.output_weights(), (attended[:video], attended[video:]), strict=True):
            taken = [  # layers that read this part of the rows, or all of them
                layer[:, :width]
                for layer, given in products
                if given.ndim == 2
                and any(torch.equal(given[:, :width], rows) for rows in (part, attended) if len(part))
            ]
            assert len(taken) == bool(len(part))
            assert all(torch.equal(weight, layer) for layer in taken)


def test_heads_in_groups(model: RoutedTransformer, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    _, at_once = measure_branches(model, inputs)
    assert model.geometry is not None
    monkeypatch.setattr(measure, "ROWS_BYTES", 4 * model.geometry.tokens * model.head_dim * 3)
    calls: list[int] = []
    attend = measure.routed_attention

    def count(query: Tensor, *arguments: Any) -> Tensor:
        calls.append(query.shape[2])
        return attend(query, *arguments)

    monkeypatch.setattr(measure, "routed_attention", count)
    _, in_groups = measure_branches(model, inputs)
    assert calls == [3, 3, 1, 1] * 3
    torch.testing.assert_close(in_groups, at_once, rtol=1e-5, atol=0)


def test_no_observer_stays(model: RoutedTransformer, inputs: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="hidden_states"):
        measure_branches(model, inputs | {"hidden_states": inputs["hidden_states"][0]})
    assert [block.observer for block in model.routed_blocks()] == [None] * 3


def test_no_score_matrix(pipeline: Any, seed: int) -> None:
    geometry = AttentionGeometry((4, 24, 24), (2, 8, 8), (1, 1, 1), (2, 3, 2), keep=6)  # 2,304 tokens
    model = RoutedTransformer.from_pretrained(pipeline.checkpoint, geometry=geometry)
    inputs = model.inputs(1, seed)
    del inputs["tau"], inputs["route_override"]
    with LargestTensor() as watch:  # sees the operator as one; inside is the reference, which has its own test
        measure_branches(model, inputs)
        measure_routes(model, inputs, torch.ones(3, 4, dtype=torch.int32))
    assert watch.elements >= geometry.tokens * 4 * 24  # it did watch
    assert watch.elements < geometry.tokens**2 / 4
