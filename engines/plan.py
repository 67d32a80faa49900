# SPDX-License-Identifier: Apache-2.0
"""TensorRT's part of a build: ONNX file in, a plan and its layers in a folder out."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.execution_flags import (
    allow_execution,
    check_plugin_in_plan,
    check_refittable,
    check_streaming,
    put_into_plan,
    set_flags,
)
from vorta_trt.engines.flavours import Flavour
from vorta_trt.engines.fp8 import check_build as check_fp8_build
from vorta_trt.engines.fp8 import check_linears
from vorta_trt.engines.gpu import Target
from vorta_trt.engines.hashed_file import HashedFile, hash_file, stream_writer
from vorta_trt.engines.layer_types import impose_types
from vorta_trt.engines.layers import from_network, write_layers
from vorta_trt.engines.manifest import BlockOperators, EngineFiles, EngineMemory, FileEntry, TensorSpec
from vorta_trt.engines.network import ParsedNetwork, add_profile, parse_onnx, tensor_specs
from vorta_trt.engines.progress import Cancellation, ProgressCallback, progress_monitor
from vorta_trt.engines.timing_cache import TimingCache
from vorta_trt.export.names import OPSET_17
from vorta_trt.export.onnx_file import OnnxFile
from vorta_trt.model.files import check_output, make_way
from vorta_trt.plugins.host_memory import MOST_GIB
from vorta_trt.plugins.operator_schema import (
    AROUND_BLOCKS,
    ROUTED_ATTENTIONS,
    ULYSSES_ATTENTION,
    BlockOps,
)

logger = logging.getLogger(__name__)

DEFAULT_BATCH = (1, 1, 2)

# The builder logs the engine's memory at INFO level, on machines without a GPU, too.
_MEMORY_LINES = {
    "weights": re.compile(r"Total Weights Memory: (\d+)"),
    "activations": re.compile(r"Total Activation Memory: (\d+)"),
    "scratch": re.compile(r"(?:Max|Total) Scratch Memory: (\d+)"),  # "Total" in TensorRT 8.6
}


@dataclass(frozen=True)
class BuildOptions:
    """The user's options of an engine; they are checked before any slow work starts."""

    batch: tuple[int, int, int] = DEFAULT_BATCH
    compute_capabilities: Sequence[str] | None = None
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    timing_cache: Path | None = None
    workspace_gib: float | None = None
    optimization_level: int | None = None
    block_ops: BlockOps | None = None  # None: the flavour's default
    weight_streaming: bool = False
    refit: bool = False  # the engine takes other weights after it is built
    plugin_in_plan: bool = False  # the plan carries the plugin library
    strict: bool = True  # refuse what could be built, but not run

    def __post_init__(self) -> None:
        smallest, best, largest = self.batch
        if not 1 <= smallest <= best <= largest:
            raise ValueError(f"batch {self.batch}: must be 1 <= min <= opt <= max; use e.g. (1, 1, 2)")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ValueError(f"optimization_level {self.optimization_level}: must be 0 (fast build) to 5 (fast engine)")
        if self.block_ops is not None and self.block_ops not in get_args(BlockOps):
            raise ValueError(f"block_ops {self.block_ops!r}: must be one of {', '.join(get_args(BlockOps))}")
        if self.workspace_gib is not None and not 0 < self.workspace_gib < MOST_GIB:
            raise ValueError(
                f"workspace_gib {self.workspace_gib:g}: must be positive and below 2^33; leave it out for no limit"
            )

    def check(self, flavour: Flavour) -> None:
        """Checks the options that can be checked without a network, before any slow work.

        Raises:
            BuildError: The flavour cannot build here, or has no such option.
            FlavourError: The flavour does not know a compute capability or the hardware compatibility level.
            WriteError: The timing cache cannot be written.
        """
        if not (ability := flavour.can_build()):
            raise BuildError(f"tensorrt={flavour.name!r}: {ability.reason}")
        flavour.target(self.compute_capabilities, self.hardware_compatibility)
        if self.version_compatible and flavour.name != "tensorrt":
            raise BuildError(f"version_compatible: {flavour.title} has no such option; leave it out")
        if self.weight_streaming:
            check_streaming(flavour)
        if self.refit:
            check_refittable(flavour)
        if self.plugin_in_plan:
            check_plugin_in_plan(flavour)
        if self.timing_cache is not None and flavour.has_timing_cache:
            make_way(self.timing_cache)
            check_output(self.timing_cache)


@dataclass(frozen=True)
class BuiltPlan:
    """Result of a build: the files in the staging folder, and facts for the manifest."""

    files: dict[str, FileEntry]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    plugin_layers: int
    block_operators: BlockOperators | None
    target: Target
    flags: list[str]
    optimization_level: int
    memory: EngineMemory
    seconds: float


def build_plan(
    flavour: Flavour,
    onnx: OnnxFile,
    options: BuildOptions,
    folder: Path,
    names: EngineFiles,
    callback: ProgressCallback | None,
    cancellation: Cancellation,
) -> BuiltPlan:
    """Parses the ONNX file and builds its engine; writes the plan and the layers under `names`.

    All TensorRT objects are freed on return.
    """
    trt = flavour.module
    start = time.perf_counter()
    builder = trt.Builder(flavour.logger)
    parsed = parse_onnx(flavour, builder, onnx, options.block_ops)
    if options.plugin_in_plan and ULYSSES_ATTENTION.name in parsed.plugin_layers:
        raise BuildError(
            f"{onnx.path}: is for several GPUs, whose communicator is the installed library's, not that of a copy in "
            f"the plan; leave out --plugin-in-plan"
        )
    attentions = [layer for name in ROUTED_ATTENTIONS for layer in parsed.plugin_layers.get(name, [])]
    cancellation.check()
    inputs, outputs = tensor_specs(parsed.network, options.batch)
    config = builder.create_builder_config()
    target = flavour.set_target(config, options.compute_capabilities, options.hardware_compatibility)
    head_dims = (layer.get_input(0).shape[3] for layer in attentions)
    float8 = onnx.opset > OPSET_17
    check_linears(onnx.path, onnx.linear_precision, float8, target, refit=options.refit, strict=options.strict)
    check_fp8_build(onnx.path, onnx.attention_precision, target, head_dims, options.strict)
    add_profile(builder, config, inputs)
    _configure(flavour, config, options)
    if options.plugin_in_plan and parsed.plugin_layers:
        put_into_plan(flavour, config)
    if flavour.weakly_typed:
        impose_types(trt, parsed.network, parsed.onnx)
    cache = TimingCache.attach(flavour, config, options.timing_cache)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = progress_monitor(trt, callback, cancellation)
    else:
        logger.info(
            "%s tells no progress and cannot be stopped; a build that is cancelled ends when TensorRT is through",
            flavour.title_and_version,
        )
    write_layers(from_network(trt, parsed.network), folder / names.layers)
    with flavour.hub.collect() as collected, HashedFile(folder / names.plan) as plan:
        built = _serialize(flavour, builder, parsed, config, plan, cancellation)
    cancellation.check()
    if not built or plan.entry.bytes == 0:
        raise BuildError(f"{onnx.path}: {flavour.title_and_version} could not build the engine", collected.errors)
    for message in collected.errors:
        logger.warning("%s logged during a successful build: %s", flavour.title, message)
    if cache is not None:
        cache.save()
    return BuiltPlan(
        files={names.plan: plan.entry, names.layers: hash_file(folder / names.layers)},
        inputs=inputs,
        outputs=outputs,
        plugin_layers=len(attentions),
        block_operators=_block_operators(parsed),
        target=target,
        flags=set_flags(trt, config),
        optimization_level=config.builder_optimization_level,
        memory=_memory(collected.infos),
        seconds=time.perf_counter() - start,
    )


def _block_operators(parsed: ParsedNetwork) -> BlockOperators | None:
    """Counts the block operators by the form in which they were built; None if the file has none."""
    plugins = {name: len(found) for name, found in parsed.plugin_layers.items() if name not in AROUND_BLOCKS}
    return BlockOperators(plugins=plugins, native=dict(parsed.native)) if plugins or parsed.native else None


def _configure(flavour: Flavour, config: Any, options: BuildOptions) -> None:
    trt = flavour.module
    flavour.configure(config)
    # Layer names, types and formats stay in the plan for `inspect`; costs nothing at run time.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # The model keeps some layers in fp32 (timestep path, router, norms) for the 23-bit mantissa, which TF32 would cut.
    # These layers are small.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
    level = flavour.optimization_level if options.optimization_level is None else options.optimization_level
    if level is not None:
        config.builder_optimization_level = level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    allow_execution(flavour, config, options.weight_streaming)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)


def _serialize(
    flavour: Flavour, builder: Any, parsed: ParsedNetwork, config: Any, plan: HashedFile, cancellation: Cancellation
) -> bool:
    """Builds and writes the plan: streamed where TensorRT can, so that it is never in memory a second time."""
    if hasattr(builder, "build_serialized_network_to_stream"):
        writer = stream_writer(flavour.module, plan, cancellation.check)
        built = bool(builder.build_serialized_network_to_stream(parsed.network, config, writer))
        if writer.error is not None:
            raise writer.error
        return built
    logger.info("%s cannot stream plans; this build holds the plan in memory", flavour.title_and_version)
    memory = builder.build_serialized_network(parsed.network, config)
    if memory is not None:
        plan.write(memoryview(memory))
    return memory is not None


def _memory(lines: Sequence[str]) -> EngineMemory:
    """Sums the builder's memory lines (one set per subgraph)."""
    found: dict[str, int] = {}
    for line in lines:
        for field, pattern in _MEMORY_LINES.items():
            if match := pattern.search(line):
                found[field] = found.get(field, 0) + int(match[1])
    return EngineMemory(**found)
