# SPDX-License-Identifier: Apache-2.0
"""Loading libvorta_trt.so into the plugin registry of a TensorRT flavour."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

from vorta_trt.engines.errors import FlavourError
from vorta_trt.engines.flavours import Flavour
from vorta_trt.model.files import absence
from vorta_trt.plugins.library import library_path, rtx_shim_path
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

logger = logging.getLogger(__name__)

_loaded: dict[str, Path] = {}  # flavour name -> the library that registered our plugin in this process


def load_plugin(flavour: Flavour, library: Path | None = None) -> Path:
    """Registers the RoutedAttention plugin with `flavour`, once per process, and returns the library's path.

    `library` defaults to the installed libvorta_trt.so. The path is made absolute: TensorRT's `load_library` accepts a
    relative one and registers nothing. Raises FlavourError if the plugin is not in the registry afterwards, or if this
    process has registered it from another file.
    """
    path = Path(library or library_path()).resolve()
    if not path.is_file():
        there = absence(path, "no such plugin library")
        raise FileNotFoundError(f"{path}: {there}; build it (make build) or reinstall vorta-trt")
    if earlier := _loaded.get(flavour.name):
        if not earlier.samefile(path):
            raise FlavourError(
                f"{path}: this process has loaded the plugin from {earlier} already, and TensorRT keeps one plugin per "
                "name; use one library per process"
            )
        return path
    trt = flavour.module
    preload_parser_support(flavour)
    if hasattr(trt, "init_libnvinfer_plugins"):  # the lean and dispatch runtimes have no plugins of their own
        trt.init_libnvinfer_plugins(flavour.logger, "")
    with flavour.hub.collect() as collected:
        if registered(trt) is None:
            trt.get_plugin_registry().load_library(str(path))
        if registered(trt) is None:
            said = "; ".join([*collected.errors, *collected.warnings, *_reasons(flavour, path)])
            said = said or "TensorRT logged no reason"
            raise FlavourError(
                f"{path}: loaded into {flavour.title_and_version}, but it did not register plugin "
                f"{ROUTED_ATTENTION} version {ROUTED_ATTENTION.version} ({said}); build vorta-trt again"
            )
    _loaded[flavour.name] = path
    return path


def loaded_library(flavour: Flavour) -> Path | None:
    """The library that `load_plugin` has loaded for a flavour in this process."""
    return _loaded.get(flavour.name)


def registered(trt: Any, operator: str = ROUTED_ATTENTION.name) -> Any:
    """The creator of an operator's plugin in the registry of module `trt`, or None."""
    wanted = (ROUTED_ATTENTION.namespace, operator, ROUTED_ATTENTION.version)
    registry = trt.get_plugin_registry()
    # Not get_creator(), which logs errors if there is none. In TensorRT 8.6 the list has another name.
    creators = getattr(registry, "all_creators_recursive", None)
    for creator in registry.plugin_creator_list if creators is None else creators:
        if (creator.plugin_namespace, creator.name, creator.plugin_version) == wanted:
            return creator
    return None


def make_runtime(flavour: Flavour, plugin_in_plan: bool) -> Any:
    """Makes TensorRT's runtime. It may run host code of a library in the plan only if `plugin_in_plan` is true.

    Args:
        flavour: Flavour of the plan.
        plugin_in_plan: Whether the plan carries the plugin library, as its manifest says.
    """
    runtime = flavour.module.Runtime(flavour.logger)
    if plugin_in_plan:
        runtime.engine_host_code_allowed = True
    return runtime


def _reasons(flavour: Flavour, path: Path) -> list[str]:
    """Why `load_library` registered nothing, where TensorRT does not say."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return [str(error)]
    if hasattr(library, entry := flavour.plugin_entry_point):
        return []
    return [f"it has no {entry}()" + ("; set VORTA_TENSORRT8=ON" if entry == "getPluginCreators" else "")]


def preload_parser_support(flavour: Flavour) -> None:
    """Makes `libtensorrt_rtx.so` resolvable for the ONNX parser of TensorRT-RTX.

    On the first plugin node the parser dlopens that name, which the wheel lacks (it has `.so.1`), and the process
    aborts if that fails. The shim carries the name and needs the `.so.1`, which importing the module has loaded.
    """
    if flavour.name == "rtx":
        flavour.module  # noqa: B018  (loads libtensorrt_rtx.so.1 first)
        ctypes.CDLL(str(rtx_shim_path()), mode=ctypes.RTLD_GLOBAL)
