# SPDX-License-Identifier: Apache-2.0
"""Video diffusion transformers with VORTA's routed sparse attention on NVIDIA TensorRT.

This file is installed as `vorta_trt/__init__.py`. Importing it is cheap: the public names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vorta_trt.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vorta_trt.engines import Bundle as Bundle
    from vorta_trt.engines import build_engine as build_engine
    from vorta_trt.export import export_onnx as export_onnx
    from vorta_trt.model import AttentionGeometry as AttentionGeometry
    from vorta_trt.model import RoutedTransformer as RoutedTransformer
    from vorta_trt.model import RouteTable as RouteTable
    from vorta_trt.model import routed_attention as routed_attention
    from vorta_trt.runtime import Engine as Engine
    from vorta_trt.runtime import SamplingParams as SamplingParams
    from vorta_trt.runtime import VortaPipeline as VortaPipeline
    from vorta_trt.runtime import VortaTransformer as VortaTransformer

    __version__: str

_HOME = {
    "AttentionGeometry": "model",
    "Bundle": "engines",
    "Engine": "runtime",
    "RouteTable": "model",
    "RoutedTransformer": "model",
    "SamplingParams": "runtime",
    "VortaPipeline": "runtime",
    "VortaTransformer": "runtime",
    "build_engine": "engines",
    "export_onnx": "export",
    "routed_attention": "model",
}
__all__ = list(_HOME)
_attribute, __dir__ = lazy_attributes(__name__, _HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vorta-trt")
    return _attribute(name)
