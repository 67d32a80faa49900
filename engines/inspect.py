# SPDX-License-Identifier: Apache-2.0
"""Reports on the content of a bundle or an ONNX file: layers, types, memory, profiles, inputs and outputs.

The manifest and layers.json describe the input of the builder, on any machine. Only the engine itself says which
kernels and formats TensorRT chose, and it can be deserialized only on a GPU that can run it: without such a GPU,
`deserialize_cuda_engine` returns None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.engine_key import EngineKey
from vorta_trt.engines.errors import BundleError
from vorta_trt.engines.layers import LayerGraph, engine_information, from_onnx, read_layers, readable_bytes
from vorta_trt.engines.manifest import Manifest, TensorSpec
from vorta_trt.engines.modules import collapse
from vorta_trt.engines.part_report import PartReport, parts_of_bundle, parts_of_onnx
from vorta_trt.engines.plugin import load_plugin, make_runtime
from vorta_trt.export.metadata import LoraRecord
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION, ROUTED_ATTENTIONS, AttentionPrecision


class ModuleLine(BaseModel):
    """One line of the table of modules; counts and bytes over all repetitions."""

    name: str
    repeats: int
    layers: int
    dtypes: dict[str, int]
    weight_bytes: int


class NetworkReport(BaseModel):
    """The network that went into the builder."""

    layers: int
    plugin_layers: int
    kinds: dict[str, int]
    dtypes: dict[str, int]
    weight_bytes: int
    modules: list[ModuleLine]


class EngineReport(BaseModel):
    """The engine that came out of the builder, as TensorRT describes it after deserialization."""

    layers: int
    layer_information: JsonValue  # TensorRT's own description: kernels, formats, shapes; None from the lean runtime
    device_memory_bytes: int
    streamable_weight_bytes: int | None
    auxiliary_streams: int


class EngineLine(BaseModel):
    """One engine of a bundle."""

    component: str
    size: str | None
    plan: str
    bytes_on_disk: int  # size of the plan's file
    plan_bytes: int  # size of the whole plan
    shared_with: str | None  # plan that holds the other bytes of this one; None if the file is the whole plan
    build_seconds: float

    def line(self) -> str:
        """The engine as text."""
        text = f"{EngineKey(self.component, self.size)}: {self.plan} {readable_bytes(self.bytes_on_disk)}"
        if self.shared_with is None:
            return text
        return f"{text}, with {self.shared_with} a plan of {readable_bytes(self.plan_bytes)}"


class BundleReport(BaseModel):
    """Everything `vorta-trt inspect BUNDLE` shows: one engine in detail, and every engine in a line."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    path: str
    component: str
    size: str | None
    engines: list[EngineLine]
    parts: list[PartReport] = []  # VAE and encoders
    manifest: Manifest  # the manifest of all engines, or of the selected one
    problems: list[str]  # what keeps the engines from running on this machine; the files themselves are intact
    route_override: str | None = None  # calibrated routes, in a line
    network: NetworkReport | None
    engine: EngineReport | None
    engine_missing: str | None  # why `engine` is None

    @property
    def is_part(self) -> bool:
        """Whether the engine is that of a VAE or an encoder."""
        return any(part.graph == self.component for part in self.parts)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        m, e = self.manifest, self.manifest.engine
        yield self.path
        if len(self.engines) > 1:
            yield from ("engine     " + engine.line() for engine in self.engines)
        if len(self.engines) + len(self.parts) > 1:
            yield f"shown      {EngineKey(self.component, self.size)}"
        for part in self.parts:
            yield from part.lines()
        yield f"model      {m.family or 'unknown family'}, {m.precision or 'unknown precision'}"
        yield from (f"LoRA       {lora}" for lora in fused_loras(m.metadata))
        if count := (m.metadata or {}).get("float8_weights"):
            yield f"float8     {count} weights of the checkpoint"
        yield f"attention  {describe_attention(m.attention_precision)}"
        if m.metadata is not None:
            metadata = self.manifest.model_metadata(self.path)
            yield from (*metadata.linear_lines(), *metadata.gpu_lines())
        if m.geometry is not None:
            geometry = AttentionGeometry.from_dict(m.geometry)
            yield f"geometry   {geometry}"
            yield f"           {geometry.coverage}"
        yield f"made       {m.created} by {m.created_by}"
        targets = ", ".join(e.compute_capabilities) + (" and newer" if e.and_newer else "")
        yield f"engine     {e.flavour} {e.version} for compute capability {targets}"
        where = f"on {e.builder_gpu}" if e.builder_gpu else "without a GPU"
        yield f"built      in {e.build_seconds:.1f} s {where}, optimization level {e.optimization_level}"
        if m.plugin is not None:
            included = ("included" if m.plugin.included else "not included") + ", in the plan" * m.plugin.in_plan
            yield f"plugin     {m.plugin.layers} x {m.plugin.namespace}::{m.plugin.name}"
            if m.block_operators is not None:
                yield f"operators  {m.block_operators}"
            yield f"library    {m.plugin.library} {m.plugin.library_version}, {included}"
        memory = {"weights": e.memory.weights, "activations": e.memory.activations, "scratch": e.memory.scratch}
        known = ", ".join(f"{name} {readable_bytes(size)}" for name, size in memory.items() if size is not None)
        yield f"memory     {known or 'not stated by the builder'}"
        yield from ("files      " + f"{name} {readable_bytes(entry.bytes)}" for name, entry in m.files.items())
        if m.refit is not None:
            yield f"refit      takes other weights; has {'; '.join(map(str, m.refit.lora)) or 'no LoRA'}"
        if self.route_override is not None:
            yield f"overrides  {self.route_override}"
        yield from ("input      " + describe_tensor(spec) for spec in m.inputs)
        yield from ("output     " + describe_tensor(spec) for spec in m.outputs)
        if self.network is not None:
            yield from network_lines(self.network)
        if self.engine is not None:
            memory_here = readable_bytes(self.engine.device_memory_bytes)
            yield f"on this GPU {self.engine.layers} engine layers, {memory_here} of activations"
        else:
            yield f"kernels and formats are not shown: {self.engine_missing}"
        yield from ("here       " + problem for problem in self.problems)


class OnnxReport(BaseModel):
    """Everything `vorta-trt inspect MODEL.onnx` shows."""

    path: str
    total_bytes: int
    parts: list[PartReport] = []  # report on the file itself if it is a part, else on the part files beside it
    opsets: dict[str, int]
    metadata: dict[str, str]
    operators: dict[str, int]  # number of nodes of each of our operators
    without_function_body: list[str]  # names of operators
    nodes_without_plugin_attributes: list[str]
    attention_precision: AttentionPrecision
    linears: list[str]  # text lines about linear layers, and about the GPUs of a model for several GPUs
    inputs: dict[str, str]
    outputs: dict[str, str]
    network: NetworkReport

    @property
    def is_part(self) -> bool:
        """Whether the file is that of a VAE or an encoder."""
        return any(part.file == Path(self.path).name for part in self.parts)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"{self.path}: {readable_bytes(self.total_bytes)} with its weights"
        for part in self.parts:
            yield from part.lines()
        yield "opsets     " + ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in self.opsets.items())
        bodies = f"has NO function body for {', '.join(self.without_function_body)}"
        yield f"portable   {bodies if self.without_function_body else 'has a function body for every operator'}"
        yield "operators  " + (", ".join(f"{name} {count}" for name, count in self.operators.items()) or "none of ours")
        if self.nodes_without_plugin_attributes:
            count = len(self.nodes_without_plugin_attributes)
            yield (
                f"warning    {count} nodes of our operators lack plugin attributes: TensorRT would not use the plugin"
            )
        yield f"LoRA       {self.metadata.get('LoRA', 'none')}"
        yield f"attention  {describe_attention(self.attention_precision)}"
        yield from self.linears
        yield from (f"input      {name} {kind}" for name, kind in self.inputs.items())
        yield from (f"output     {name} {kind}" for name, kind in self.outputs.items())
        yield from network_lines(self.network)


def describe_attention(precision: AttentionPrecision) -> str:
    """Says in words in which type the products of routed attention are computed."""
    return "fp8 products, where the kernels have them" if precision == "fp8" else "products in the type of the inputs"


def fused_loras(metadata: Mapping[str, Any] | None) -> list[str]:
    """The LoRA files that the metadata of a model names, in words."""
    return [str(LoraRecord.model_validate(record)) for record in (metadata or {}).get("lora", ())]


def network_lines(network: NetworkReport) -> Iterator[str]:
    """Gives the report on a network as lines of text."""
    yield f"layers     {network.layers}, of them {network.plugin_layers} {ROUTED_ATTENTION.name}"
    yield f"weights    {readable_bytes(network.weight_bytes)}"
    yield "kinds      " + ", ".join(f"{kind} {count}" for kind, count in network.kinds.items())
    yield "types      " + ", ".join(f"{dtype} {count}" for dtype, count in network.dtypes.items())
    for module in network.modules:
        times = f" x {module.repeats}" if module.repeats > 1 else ""
        weights = f", weights {readable_bytes(module.weight_bytes)}" if module.weight_bytes else ""
        yield f"  {module.name or '(no module)'}{times}: {module.layers} layers{weights}"


def describe_tensor(spec: TensorSpec) -> str:
    """Describes an input or output: "hidden_states bfloat16 [-1, 16, 21, 60, 104], batch 1 to 2 (tuned for 1)"."""
    text = f"{spec.name} {spec.dtype} {spec.shape}"
    if spec.profile is None:
        return text
    return f"{text}, batch {spec.profile.min[0]} to {spec.profile.max[0]} (tuned for {spec.profile.opt[0]})"


def inspect_bundle(
    path: str | Path, verify: bool = False, component: str | None = None, size: str | None = None
) -> BundleReport:
    """Reads a bundle, whatever machine it was built for.

    Args:
        path: The folder.
        verify: Hash the files; their sizes are checked in any case.
        component: Component of the engine to show in detail; see `Bundle.select`.
        size: Video size of that engine; see `Bundle.select`.

    Raises:
        BundleError: It is damaged.
        SelectionError: It has no such engine.
    """
    bundle = Bundle.open(path, verify=verify, runtime=False)
    if component is not None or size is not None:
        bundle = bundle.select(component, size)
    calibration = bundle.route_override()
    problems = list(dict.fromkeys(problem for view in bundle.views() for problem in view.check_runtime()))
    engine: EngineReport | None = None
    missing: str | None = "; ".join(problems)
    if not problems:
        ability = bundle.flavour.can_run()
        missing = ability.reason
        if ability:
            engine, missing = read_engine(bundle), None
    return BundleReport(
        path=str(path),
        component=bundle.key.component,
        size=bundle.key.size,
        engines=[
            EngineLine(
                component=view.key.component,
                size=view.key.size,
                plan=view.plan_path.name,
                bytes_on_disk=view.plan_path.stat().st_size,
                plan_bytes=view.plan_bytes,
                shared_with=view.names.shared_with,
                build_seconds=view.manifest.engine.build_seconds,
            )
            for view in bundle.views()
        ],
        parts=parts_of_bundle(bundle),
        manifest=bundle.manifest,
        problems=problems,
        route_override=None if calibration is None else calibration.describe(),
        network=None if bundle.layers_path is None else report_network(read_layers(bundle.layers_path)),
        engine=engine,
        engine_missing=missing,
    )


def inspect_onnx(path: str | Path) -> OnnxReport:
    """Reads an ONNX file without its weights. Raises FileNotFoundError or OnnxFileError."""
    onnx = read_onnx(Path(path))
    metadata = onnx.metadata
    graph = from_onnx(onnx.model)
    tensors = {name: f"{tensor.dtype} {tensor.shape}" for name, tensor in graph.tensors.items()}
    operators = Counter(node.operator for node in onnx.operator_nodes)
    return OnnxReport(
        path=str(path),
        total_bytes=onnx.total_bytes,
        parts=parts_of_onnx(onnx),
        opsets={opset.domain: opset.version for opset in onnx.model.opset_import},
        metadata={entry.key: entry.value for entry in onnx.model.metadata_props},
        operators=dict(operators.most_common()),
        without_function_body=[name for name in operators if name not in onnx.function_bodies],
        nodes_without_plugin_attributes=[node.name for node in onnx.operator_nodes if not node.has_plugin_attributes],
        attention_precision=onnx.attention_precision,
        linears=[] if metadata is None else [*metadata.linear_lines(), *metadata.gpu_lines()],
        inputs={value.name: tensors.get(value.name, "unknown") for value in onnx.model.graph.input},
        outputs={value.name: tensors.get(value.name, "unknown") for value in onnx.model.graph.output},
        network=report_network(graph),
    )


def report_network(graph: LayerGraph) -> NetworkReport:
    """Counts of a layer graph, and its modules."""
    kinds = graph.kinds()
    modules: dict[str, ModuleLine] = {}
    for module in collapse(graph).modules:  # all visits to a module share one line
        line = modules.setdefault(
            module.name, ModuleLine(name=module.name, repeats=1, layers=0, dtypes={}, weight_bytes=0)
        )
        line.repeats = max(line.repeats, module.repeats)
        line.layers += module.layers
        line.weight_bytes += module.weight_bytes
        for dtype, count in module.dtypes.items():
            line.dtypes[dtype] = line.dtypes.get(dtype, 0) + count
    return NetworkReport(
        layers=len(graph.layers),
        plugin_layers=sum(kinds[name] for name in ROUTED_ATTENTIONS),
        kinds=dict(kinds.most_common()),
        dtypes=dict(graph.dtypes().most_common()),
        weight_bytes=graph.weight_bytes(),
        modules=list(modules.values()),
    )


def read_engine(bundle: Bundle) -> EngineReport:
    """Deserializes the plan on the present GPU and asks TensorRT's engine inspector. BundleError if it refuses."""
    flavour = bundle.flavour
    trt = flavour.module
    library = bundle.plugin_library()
    if library is not None:
        load_plugin(flavour, library.path)
    with flavour.hub.collect() as collected, bundle.open_plan() as plan:
        engine = make_runtime(flavour, bundle.manifest.has_plugin_in_plan).deserialize_cuda_engine(plan)
    if engine is None:
        raise BundleError(bundle.path, [f"{flavour.title} cannot load the plan: {'; '.join(collected.errors)}"])
    return EngineReport(
        layers=engine.num_layers,
        layer_information=engine_information(trt, engine),
        device_memory_bytes=engine.device_memory_size_v2
        if hasattr(engine, "device_memory_size_v2")
        else engine.device_memory_size,  # TensorRT 8.6
        streamable_weight_bytes=getattr(engine, "streamable_weights_size", None),
        auxiliary_streams=engine.num_aux_streams,
    )
