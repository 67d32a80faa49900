# SPDX-License-Identifier: Apache-2.0
"""ONNX -> engine bundle: TensorRT flavours, builder, manifest, inspection. Names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vorta_trt.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vorta_trt.engines.builder import build_engine as build_engine
    from vorta_trt.engines.bundle import Bundle as Bundle
    from vorta_trt.engines.engine_key import EngineKey as EngineKey
    from vorta_trt.engines.errors import BuildCancelled as BuildCancelled
    from vorta_trt.engines.errors import BuildError as BuildError
    from vorta_trt.engines.errors import BundleError as BundleError
    from vorta_trt.engines.errors import FlavourError as FlavourError
    from vorta_trt.engines.errors import SelectionError as SelectionError
    from vorta_trt.engines.flavours import available_flavours as available_flavours
    from vorta_trt.engines.flavours import get_flavour as get_flavour
    from vorta_trt.engines.inspect import inspect_bundle as inspect_bundle
    from vorta_trt.engines.inspect import inspect_onnx as inspect_onnx
    from vorta_trt.engines.manifest import Manifest as Manifest
    from vorta_trt.engines.picture import draw_layers as draw_layers
    from vorta_trt.engines.plugin import load_plugin as load_plugin
    from vorta_trt.engines.progress import BuildProgress as BuildProgress

_HOME = {
    "BuildCancelled": "errors",
    "BuildError": "errors",
    "BuildProgress": "progress",
    "Bundle": "bundle",
    "BundleError": "errors",
    "EngineKey": "engine_key",
    "FlavourError": "errors",
    "Manifest": "manifest",
    "SelectionError": "errors",
    "available_flavours": "flavours",
    "build_engine": "builder",
    "draw_layers": "picture",
    "get_flavour": "flavours",
    "inspect_bundle": "inspect",
    "inspect_onnx": "inspect",
    "load_plugin": "plugin",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_attributes(__name__, _HOME)
