# SPDX-License-Identifier: Apache-2.0
"""The `polygraphy` command with our plugin registered.

    python -m vorta_trt.engines.polygraphy_tool run model.onnx --trt

Polygraphy's own `--plugins` dlopens a library and expects it to register itself on loading, as TensorRT's old static
plugins do. Ours registers through `IPluginRegistry.load_library`, so that one binary fits every TensorRT. Without the
plugin, TensorRT would silently take the function body in the file. Everything else is Polygraphy's, arguments included.

POLYGRAPHY_USE_TENSORRT_RTX=0 chooses `tensorrt` instead of `tensorrt_rtx`.
"""

from __future__ import annotations

import os
import sys

from vorta_trt.engines.flavours import get_flavour
from vorta_trt.engines.plugin import load_plugin
from vorta_trt.engines.telemetry import disable_telemetry
from vorta_trt.plugins.extras import import_extra

VARIABLE = "POLYGRAPHY_USE_TENSORRT_RTX"


def main() -> int:
    """Runs Polygraphy with this process's arguments and returns its exit code."""
    os.environ.setdefault(VARIABLE, "1")  # Polygraphy reads it when it is imported
    disable_telemetry()  # --onnxrt imports ONNX Runtime
    load_plugin(get_flavour("rtx" if os.environ[VARIABLE] != "0" else "tensorrt"))
    sys.argv[0] = "polygraphy"
    return int(import_extra("polygraphy.tools", "polygraphy").main() or 0)


if __name__ == "__main__":
    sys.exit(main())
