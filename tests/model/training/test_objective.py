# SPDX-License-Identifier: Apache-2.0
"""The loss: its terms, their weights, and what its gradient reaches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vorta_trt.model import RoutedTransformer
from vorta_trt.model.families.wan.training import WanTraining
from vorta_trt.model.training.objective import (
    LossWeights,
    RouterObjective,
    attach_routers,
    freeze_all_but_routers,
    router_parameters,
)

from .samples import GEOMETRY, HEADS, LAYERS, SHAPE, TEXT_DIM, Setup

WEIGHTS = LossWeights(diffusion=0.7, distillation=3.0, regularisation=0.2)


@pytest.fixture
def objective(setup: Setup, family: WanTraining) -> RouterObjective:
    model = RoutedTransformer.from_pretrained(setup.checkpoint, geometry=GEOMETRY)
    attach_routers(model, seed=5)
    freeze_all_but_routers(model)
    return RouterObjective(model, family, WEIGHTS)


@pytest.fixture
def batch(normal: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"latents": normal(2, *SHAPE), "noise": normal(2, *SHAPE), "prompt_embeds": normal(2, 6, TEXT_DIM)}


def losses(objective: RouterObjective, batch: dict[str, Tensor], *timesteps: float) -> dict[str, Tensor]:
    conditions = {"prompt_embeds": batch["prompt_embeds"]}
    result: dict[str, Tensor] = objective(batch["latents"], batch["noise"], torch.tensor(timesteps), conditions)
    return result


def test_the_terms_and_their_weights(objective: RouterObjective, batch: dict[str, Tensor]) -> None:
    found = losses(objective, batch, 900.0, 300.0)
    scores = objective.model.route_scores(torch.tensor([900.0, 300.0]))  # [L, B, N, 3]
    assert found["scores"].shape == (LAYERS, 2, HEADS, 3)
    torch.testing.assert_close(found["scores"], scores.detach())
    regularisation = sum(layer[..., 0].square().mean() for layer in scores)
    torch.testing.assert_close(found["regularisation"], torch.as_tensor(regularisation).detach())
    expected = 0.7 * found["diffusion"] + 3 * found["distillation"] + 0.2 * found["regularisation"]
    torch.testing.assert_close(found["total"].detach(), expected)
    assert found["distillation"] > 0

    sigma = torch.tensor([0.9, 0.3]).view(2, 1, 1, 1, 1)
    noisy = (1 - sigma) * batch["latents"] + sigma * batch["noise"]
    inputs = {"timestep": torch.tensor([900.0, 300.0]), "encoder_hidden_states": batch["prompt_embeds"]}
    full, _ = objective.model(hidden_states=noisy, **inputs, tau=2.0)  # the inference path, dense
    for router in router_parameters(objective.model).values():
        router.data.zero_()
    for block in objective.model.blocks:  # type: ignore[attr-defined,union-attr]
        block.router.linear.bias.data.view(HEADS, 3)[:, 0] = 50.0  # certainly full
    found = losses(objective, batch, 900.0, 300.0)
    assert found["distillation"] < 1e-10
    target = batch["noise"] - batch["latents"]
    torch.testing.assert_close(found["diffusion"], (full - target).square().mean().detach(), rtol=1e-4, atol=0)


def test_without_diffusion_where_there_is_the_least_noise(objective: RouterObjective, batch: dict[str, Tensor]) -> None:
    found = losses(objective, batch, 199.0, 1.0)
    expected = 2 * 3 * found["distillation"] + 0.2 * found["regularisation"]
    torch.testing.assert_close(found["total"].detach(), expected)
    assert found["diffusion"] > 0  # still measured
    for lowest in (200.0, 201.0):  # the authors' code compares with <
        high = losses(objective, batch, lowest, 201.0)
        expected = 0.7 * high["diffusion"] + 3 * high["distillation"] + 0.2 * high["regularisation"]
        torch.testing.assert_close(high["total"].detach(), expected)
    objective.weights = LossWeights(diffusion=0, distillation=3.0, regularisation=0.2)  # nothing to take the place of
    found = losses(objective, batch, 199.0, 1.0)
    torch.testing.assert_close(found["total"].detach(), 3 * found["distillation"] + 0.2 * found["regularisation"])


def test_gradients_reach_all_routers_and_nothing_else(objective: RouterObjective, batch: dict[str, Tensor]) -> None:
    losses(objective, batch, 900.0, 100.0)["total"].backward()
    plain = {}
    for name, parameter in objective.model.named_parameters():
        if ".router." in name:
            assert parameter.grad is not None
            assert bool((parameter.grad != 0).any()), name
            plain[name] = parameter.grad.clone()
        else:
            assert parameter.grad is None, name
    objective.zero_grad()
    objective.model.gradient_checkpointing = True
    losses(objective, batch, 900.0, 100.0)["total"].backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(objective.model.get_parameter(name).grad, gradient, rtol=0, atol=0)


def test_the_model_is_left_as_it_was(objective: RouterObjective, batch: dict[str, Tensor]) -> None:
    losses(objective, batch, 900.0, 100.0)
    inputs = objective.model.inputs(batch=1)
    _, routes = objective.model(**inputs)
    assert routes.dtype == torch.int32
    assert routes.shape == (LAYERS, 1, HEADS)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"regularisation": -1}, "regularisation -1: must be greater than or equal to 0"),
        ({"distillation": float("nan")}, "distillation nan: must be a finite number"),
        (
            {"diffusion": 0, "distillation": 0},
            "weights of diffusion and distillation 0: there is nothing to learn from",
        ),
    ],
)
def test_weights_that_make_no_sense(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossWeights(**weights)
