# SPDX-License-Identifier: Apache-2.0
"""Finds where a file departs from the checkpoint: compares the output of every module in ONNX with that in torch.

The exporter names the nodes of the graph after the modules of the model ("blocks.1.ffn.net.2/Add"), so the last tensor
that leaves a module is its output. Those tensors become outputs of a temporary copy of the graph, which shares the
weights with the original, and forward hooks give the same outputs in torch. Polygraphy's `ModifyOutputs` is not used:
it loads and rewrites the weights too, which for a 28 GB model is not an option.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.export.onnx_file import OnnxFile, read_onnx
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION
from vorta_trt.runtime.executors.onnx_executors import NOT_PORTABLE
from vorta_trt.runtime.verification.cases import Case
from vorta_trt.runtime.verification.report import LayerReport

if TYPE_CHECKING:
    import onnx

    from vorta_trt.runtime.verification.sides import Subject


def compare_layers(subject: Subject, case: Case, case_passed: bool) -> LayerReport:
    """Runs one case and compares the output of every module. For a bundle, it runs the ONNX file inside the bundle."""
    from vorta_trt.runtime.engine import Engine

    path = subject.target.onnx_path
    if path is None:
        note = "the bundle carries no ONNX file to look into; build it with --keep-onnx, or verify the exported file"
        return LayerReport(case=case.name, modules=[], note=note)
    onnx_file = read_onnx(path)
    if not onnx_file.is_portable:
        return LayerReport(case=case.name, modules=[], note=f"the ONNX file {NOT_PORTABLE}")
    metadata = subject.target.metadata
    tensors = module_tensors(onnx_file.model, metadata.compared_modules() if metadata else ())
    with probed_copy(onnx_file, list(tensors.values())) as copy:
        executor = "reference" if subject.precision == "bf16" else "onnxruntime"
        subject.progress(f"comparing {len(tensors)} modules, case {case.name!r}")
        _, (sides,) = subject.run([case], lambda: Engine(copy, executor=executor), modules=list(tensors))
    modules = [sides.error(name, tensor) for name, tensor in tensors.items()]
    report = LayerReport(case=case.name, modules=modules, note="")
    if report.first_departure is not None:
        note = f"first departure: {report.first_departure}"
    elif case_passed:
        note = "no module departs"
    elif subject.target.bundle is not None:
        note = "no module of the bundle's ONNX file departs on the CPU: look at the engine and its kernels"
    else:
        note = "no module departs: look behind the last one, and at the routes"
    return report.model_copy(update={"note": note})


def module_tensors(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    """Maps each module to the tensor of the graph that is its output, in the order of `names`.

    Modules that the graph does not have are left out.
    """
    graph_outputs = {value.name for value in model.graph.output}
    users: dict[str, list[str]] = {}
    for node in model.graph.node:
        for tensor in node.input:
            users.setdefault(tensor, []).append(_module(node.name))
    found: dict[str, str] = {}
    for name in names:
        for node in model.graph.node:
            if not _inside(_module(node.name), name):
                continue
            for tensor in node.output:
                leaves = any(not _inside(user, name) for user in users.get(tensor, ()))
                if leaves and tensor not in graph_outputs:
                    # The last tensor wins. A block operator has two outputs: the first is the module's output, the
                    # second is the norm of the module that follows.
                    found[name] = node.output[0] if node.domain == ROUTED_ATTENTION.namespace else tensor
    return found


@contextmanager
def probed_copy(onnx_file: OnnxFile, tensors: Sequence[str]) -> Iterator[Path]:
    """A temporary copy of the graph with `tensors` as additional outputs, in a folder with links to the weights."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(onnx_file.model)
    known = {value.name: value for value in model.graph.value_info}
    for tensor in tensors:
        model.graph.output.append(known.get(tensor) or onnx.helper.make_empty_tensor_value_info(tensor))
    with tempfile.TemporaryDirectory(prefix="vorta-trt-verify-") as folder:
        for source in onnx_file.data_files:
            (Path(folder) / source.name).symlink_to(source.resolve())
        path = Path(folder) / onnx_file.path.name
        onnx.save(model, path)
        yield path


def _module(node_name: str) -> str:
    return node_name.rpartition("/")[0]


def _inside(module: str, name: str) -> bool:
    return f"{module}.".startswith(f"{name}.")
