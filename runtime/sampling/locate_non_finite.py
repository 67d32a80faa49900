# SPDX-License-Identifier: Apache-2.0
"""Finds the first module whose output is not finite, by running the same inputs again and checking every module.

In an exported ONNX file, whose nodes are named after the modules (see `verification.layers`), a probe after every
module says whether its output is finite: the sum of x - x is 0, or NaN. Only these numbers leave the graph, so the run
needs little more memory than a plain run. In torch, forward hooks check the outputs.

A run of a real-size model on the CPU takes hours; a caller decides whether to look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vorta_trt.model.constants import DENSE_TAU
from vorta_trt.runtime.target import Target
from vorta_trt.runtime.tensors import to_numpy

if TYPE_CHECKING:
    import onnx

    from vorta_trt.model import RoutedTransformer

PROBE = "vorta_trt/finite/"


def locate_in_onnx(target: Target, inputs: Mapping[str, Any]) -> str:
    """Runs an ONNX file, or the one in a bundle, on the CPU; says in words where values became non-finite.

    Args:
        target: The bundle or ONNX file that gave the sample.
        inputs: The inputs that the engine had at the step, by name.
    """
    import numpy as np

    from vorta_trt.export.onnx_file import read_onnx
    from vorta_trt.runtime.engine import Engine
    from vorta_trt.runtime.executors.onnx_executors import NOT_PORTABLE
    from vorta_trt.runtime.verification.layers import module_tensors, probed_copy

    if bad := _bad_inputs(inputs):
        return bad
    metadata = target.metadata
    if target.onnx_path is None or metadata is None:
        return (
            "the layer was not looked for, since the bundle holds no ONNX file: build it with --keep-onnx, or run the "
            "exported file"
        )
    onnx_file = read_onnx(target.onnx_path)
    if not onnx_file.is_portable:
        return f"the layer was not looked for, since {target.onnx_path.name} {NOT_PORTABLE}"
    tensors = module_tensors(onnx_file.model, metadata.compared_modules())
    probes = _add_probes(onnx_file.model, tensors)
    with probed_copy(onnx_file, list(probes.values())) as copy, np.errstate(invalid="ignore"):
        executor = "reference" if metadata.precision == "bf16" else "onnxruntime"
        with Engine(copy, executor=executor) as engine:
            known = {spec.name for spec in engine.inputs}
            outputs = engine(**{name: _host(value) for name, value in inputs.items() if name in known})
    finite = {module: bool(to_numpy(outputs[probe]) == 0) for module, probe in probes.items()}
    first = next((module for module, is_finite in finite.items() if not is_finite), None)
    if first is not None:
        return f"it began in {first}: the first module of {target.onnx_path.name} whose output is not finite"
    if target.bundle is not None:
        return (
            f"{target.onnx_path.name} gives finite values for the same inputs on the CPU: look at the engine and its "
            f"kernels, and run with --tau {DENSE_TAU:g} to see whether a sparse branch is to blame"
        )
    return "every module's output is finite when the same inputs are run again: look behind the last module"


def locate_in_torch(model: RoutedTransformer, inputs: Mapping[str, Any]) -> str:
    """Runs a routed transformer again; says in words in which module values became non-finite."""
    import torch

    if bad := _bad_inputs(inputs):
        return bad
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if not found and any(isinstance(part, torch.Tensor) and not _is_finite(part) for part in tensors):
            found.append(name)

    handles = [
        module.register_forward_hook(lambda module, given, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.inference_mode():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "every module's output is finite when the same inputs are run again: look behind the last module"
    return f"it began in {found[0]}: the first module whose output is not finite"


def _add_probes(model: onnx.ModelProto, tensors: Mapping[str, str]) -> dict[str, str]:
    """Appends a probe after every module; maps each module to the probe's output, which is 0 or NaN."""
    import onnx

    probes = {}
    for module, tensor in tensors.items():
        difference, probe = f"{PROBE}{module}/difference", f"{PROBE}{module}"
        model.graph.node.append(onnx.helper.make_node("Sub", [tensor, tensor], [difference], name=difference))
        model.graph.node.append(onnx.helper.make_node("ReduceSum", [difference], [probe], name=probe, keepdims=0))
        probes[module] = probe
    return probes


def _bad_inputs(inputs: Mapping[str, Any]) -> str | None:
    """Says in words which inputs already are not finite; None if all are."""
    bad = [name for name, value in inputs.items() if not _is_finite(value)]
    if not bad:
        return None
    return (
        f"its input {' and '.join(bad)} had such values already: look at the step before, the scheduler or the prompt"
    )


def _is_finite(value: Any) -> bool:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    array = np.asarray(value)
    return array.dtype.kind in "iub" or bool(np.isfinite(array.astype(np.float32)).all())


def _host(value: Any) -> Any:
    import torch

    return value.cpu() if isinstance(value, torch.Tensor) else value
