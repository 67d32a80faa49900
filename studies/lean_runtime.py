# SPDX-License-Identifier: Apache-2.0
"""Does TensorRT's lean runtime take the plugin library on a GPU, and what does it say to plans that are not its own?

    python studies/lean_runtime.py try [PLAN ...] [--package tensorrt_lean_bindings] [--output FILE.json]
    python studies/lean_runtime.py build PLAN [--flavour tensorrt8]

`try` needs a GPU and the lean runtime's wheels (tensorrt-lean-cu13-bindings and -libs; no TensorRT). It constructs the
runtime, registers the plugins, and loads bytes that are no plan and every PLAN: each outcome is a line, whether it was
loaded or which message of ours refused it. `build` writes such a plan, version compatible, of a tiny engine with a
TensorRT that builds on this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from vorta_trt.engines.flavours import LeanRuntime, get_flavour
from vorta_trt.engines.plugin import load_plugin
from vorta_trt.model.files import write_json
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.gpu import driver_report
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION
from vorta_trt.runtime.executors.tensorrt_api import checked

NO_PLAN = b"these bytes are no plan" * 100


def try_plans(package: str, plans: list[Path]) -> dict[str, Any]:
    """Everything that a lean runtime can be asked without an engine of its own.

    Args:
        package: The module with its bindings: tensorrt_lean_bindings where the package tensorrt-lean is not whole.
        plans: Files to load.

    Returns:
        Version, GPU, the creators of our namespace, and an outcome for each plan.
    """
    devices = driver_report().devices
    if not devices:
        raise SystemExit(f"lean_runtime: needs a GPU, or TensorRT ends the process ({driver_report().reason})")
    flavour = type("Lean", (LeanRuntime,), {"package": package})()
    runtime = flavour.module.Runtime(flavour.logger)
    load_plugin(flavour)
    creators = flavour.module.get_plugin_registry().all_creators_recursive
    outcomes = {"bytes that are no plan": _outcome(flavour, runtime, NO_PLAN)}
    for plan in plans:
        outcomes[plan.name] = _outcome(flavour, runtime, plan.read_bytes())
    return {
        "package": package,
        "version": flavour.version or flavour.module.__version__,
        "gpu": str(devices[0]),
        "creators": sorted(c.name for c in creators if c.plugin_namespace == ROUTED_ATTENTION.namespace),
        "plans": outcomes,
    }


def _outcome(flavour: LeanRuntime, runtime: Any, plan: bytes) -> str:
    try:
        engine = checked(flavour, "loading the plan", runtime.deserialize_cuda_engine, plan)
    except VortaError as error:
        return str(error)
    return f"loaded: {engine.num_layers} layers, tensors {engine.num_io_tensors}"


def build(path: Path, flavour: str) -> None:
    """Writes the plan of a tiny version-compatible engine, without the lean runtime that it could carry."""
    from tiny_engine import build_tiny_engine

    with tempfile.TemporaryDirectory() as folder:
        bundle = build_tiny_engine(Path(folder) / "tiny.bundle", get_flavour(flavour), version_compatible=True)
        path.write_bytes(bundle.plan_path.read_bytes())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    trying = commands.add_parser("try")
    trying.add_argument("plans", nargs="*", type=Path)
    trying.add_argument("--package", default="tensorrt_lean_bindings")
    trying.add_argument("--output", type=Path)
    building = commands.add_parser("build")
    building.add_argument("plan", type=Path)
    building.add_argument("--flavour", default="tensorrt8")
    options = parser.parse_args()
    if options.command == "build":
        build(options.plan, options.flavour)
        return
    found = try_plans(options.package, options.plans)
    json.dump(found, sys.stdout, indent=2)
    print()
    if options.output is not None:
        write_json(options.output, found)


if __name__ == "__main__":
    main()
