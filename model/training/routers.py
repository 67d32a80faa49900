# SPDX-License-Identifier: Apache-2.0
"""The trainable part of a routed transformer: a router per block; everything else is frozen."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vorta_trt.model.router import Router
from vorta_trt.model.training.devices import whole
from vorta_trt.model.transformer import RoutedTransformer


def attach_routers(model: RoutedTransformer, seed: int) -> None:
    """Gives every block that has no router one with random weights, as torch starts linear layers, from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    dim = model.num_heads * model.head_dim
    for block in list(model.modules()):
        if getattr(block, "router", model) is None:  # a routed block without a router
            router = Router(dim, model.num_heads)
            for parameter in router.parameters():
                nn.init.uniform_(parameter, -1 / math.sqrt(dim), 1 / math.sqrt(dim), generator=generator)
            block.router = router
    model.has_router = True


def freeze_all_but_routers(model: RoutedTransformer) -> None:
    model.requires_grad_(False).eval()
    for parameter in router_parameters(model).values():
        parameter.requires_grad_(True)


def router_parameters(model: RoutedTransformer) -> dict[str, nn.Parameter]:
    """`<stack>.{i}.router.linear.{weight,bias}` -> parameter, the names of the published checkpoints."""
    return {name: parameter for name, parameter in model.named_parameters() if ".router." in name}


def router_state(model: RoutedTransformer) -> dict[str, Tensor]:
    """What router.pt holds: whole tensors on the CPU. With sharded parameters every process must call it."""
    return {name: whole(parameter.detach()) for name, parameter in router_parameters(model).items()}
