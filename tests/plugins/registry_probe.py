# SPDX-License-Identifier: Apache-2.0
"""Loads the plugin into one TensorRT flavour's registry and prints the outcome as JSON. The tests run it.

    python registry_probe.py MODULE PATH

It runs in a process of its own: two flavours in one process share the plugin library, and a flavour that does not
accept a plugin may end the process.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import numpy as np

INT_FIELDS = {
    "grid": [4, 6, 4],
    "tile": [2, 3, 2],
    "window": [1, 1, 1],
    "bucket": [2, 3, 2],
    "keep": [6],
    "text_tokens": [0],
}


def make_plugin(trt: Any, creator: Any, **changed: list[int]) -> Any:
    integers = {**INT_FIELDS, **changed}
    fields = [
        trt.PluginField(name, np.array(value, np.int32), trt.PluginFieldType.INT32) for name, value in integers.items()
    ]
    fields.append(trt.PluginField("coreset_keys", b"query", trt.PluginFieldType.CHAR))
    return creator.create_plugin("layer", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)


def main(module: str, path: str) -> None:
    trt = importlib.import_module(module)
    messages: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.append(message)

    logger = Logger()
    # A builder makes its logger the one that the plugin finds. The lean runtime has none, and its Runtime needs a GPU.
    builder = trt.Builder(logger) if hasattr(trt, "Builder") else None
    registry = trt.get_plugin_registry()
    handle = registry.load_library(path)
    creator = registry.get_creator("RoutedAttention", "1", "vorta")
    result: dict[str, Any] = {
        "version": trt.__version__,
        "has_builder": builder is not None,
        "loaded": handle is not None,
        "creator": creator is not None,
        "creators": sorted(c.name for c in registry.all_creators_recursive if c.plugin_namespace == "vorta"),
    }
    if creator is not None:
        good, bad = make_plugin(trt, creator), make_plugin(trt, creator, window=[2, 1, 1])
        core = good.get_capability_interface(trt.PluginCapabilityType.CORE)
        result["fields"] = [field.name for field in creator.field_names]
        result["plugin"] = [core.plugin_namespace, core.plugin_name, core.plugin_version]
        result["bad"] = bad is not None
        again = registry.load_library(path)
        result["loaded_again"] = again is not None
        del good, bad, core, creator
        registry.deregister_library(handle)
        result["after_deregister"] = registry.get_creator("RoutedAttention", "1", "vorta") is not None
    result["messages"] = messages
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
