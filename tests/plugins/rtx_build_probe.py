# SPDX-License-Identifier: Apache-2.0
"""Parses a one-node ONNX model with TensorRT-RTX, builds an engine without a GPU, and prints the outcome as JSON.

python rtx_build_probe.py LIBRARY SHIM MODEL CAPABILITY
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from typing import Any

import tensorrt_rtx as trt


class Logger(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)


def main(library: str, shim: str, model: str, capability: str) -> None:
    ctypes.CDLL(shim, mode=ctypes.RTLD_GLOBAL)
    logger = Logger()
    builder = trt.Builder(logger)
    trt.get_plugin_registry().load_library(library)
    network = builder.create_network(0)  # strongly typed, as every network of this flavour
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(model)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    plugins = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    result: dict[str, Any] = {"parsed": parsed, "layers": len(layers), "plugins": len(plugins), "plan": 0}
    if parsed and plugins:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            least, most = ([batch if extent < 0 else extent for extent in tensor.shape] for batch in (1, 2))
            profile.set_shape(tensor.name, least, least, most)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            content = bytes(plan)
            result["plan"] = len(content)
            result["fields_in_plan"] = all(
                name in content for name in (b"RoutedAttention", b"vorta", b"coreset_keys", b"text_tokens")
            )
            stored = re.search(rb"attention_precision.{,200}?(same|fp8)", content, re.DOTALL)  # name, type, value
            result["attention_precision_in_plan"] = stored[1].decode() if stored else None
    result["errors"] = logger.errors
    result["parser_errors"] = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
