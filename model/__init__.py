# SPDX-License-Identifier: Apache-2.0
"""The method in PyTorch: geometry, the three branches, router, routed transformers.

Names are loaded on first use: importing `AttentionGeometry` alone does not import torch, and the kernels' tests do not
import diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vorta_trt.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vorta_trt.model.checkpoint import CheckpointReader as CheckpointReader
    from vorta_trt.model.geometry import AttentionGeometry as AttentionGeometry
    from vorta_trt.model.geometry import Branch as Branch
    from vorta_trt.model.operator import routed_attention as routed_attention
    from vorta_trt.model.reference import routed_attention_reference as routed_attention_reference
    from vorta_trt.model.route_table import RouteTable as RouteTable
    from vorta_trt.model.router import Router as Router
    from vorta_trt.model.router import hard_routes as hard_routes
    from vorta_trt.model.router_checkpoint import RouterCheckpoint as RouterCheckpoint
    from vorta_trt.model.router_checkpoint import load_router as load_router
    from vorta_trt.model.transformer import RoutedTransformer as RoutedTransformer

_HOME = {
    "AttentionGeometry": "geometry",
    "Branch": "geometry",
    "CheckpointReader": "checkpoint",
    "RouteTable": "route_table",
    "RoutedTransformer": "transformer",
    "Router": "router",
    "RouterCheckpoint": "router_checkpoint",
    "hard_routes": "router",
    "load_router": "router_checkpoint",
    "routed_attention": "operator",
    "routed_attention_reference": "reference",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_attributes(__name__, _HOME)
