# SPDX-License-Identifier: Apache-2.0
"""A small engine without a model behind it, built in seconds with whichever TensorRT builds and runs on this machine.

It serves the tests on a GPU and the leak check, which execute an engine, whatever it computes. It is in float32, which
every flavour takes, and has weights, activations, a free batch axis and any number of optimization profiles:

    sample = hidden_states after `LAYERS` times relu(x @ W), plus timestep
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vorta_trt.engines import manifest as names
from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.execution_flags import allow_execution, set_flags
from vorta_trt.engines.flavours import FLAVOURS, Flavour
from vorta_trt.engines.hashed_file import HashedFile
from vorta_trt.engines.manifest import EngineInfo, EngineMemory, Manifest, ShapeRange, TensorSpec
from vorta_trt.plugins.gpu import driver_report

LAYERS = 3
TOKENS = 64
Batch = tuple[int, int, int]


def runnable_flavour() -> Flavour | None:
    """The first flavour that builds and runs here; None where there is none."""
    usable = (flavour for flavour in FLAVOURS.values() if not flavour.run_only and flavour.can_run())
    return next((flavour for flavour in usable if flavour.can_build()), None)


def build_tiny_engine(
    path: Path,
    flavour: Flavour,
    *,
    width: int = 256,
    profiles: Sequence[Batch] = ((1, 1, 2),),
    weight_streaming: bool = False,
    version_compatible: bool = False,
    seed: int = 0,
) -> Bundle:
    """Writes a bundle; opened without a look at this machine.

    profiles: smallest, usual and largest batch of each optimization profile. version_compatible: without the lean
    runtime in the plan.
    """
    trt = flavour.module
    builder = trt.Builder(flavour.logger)
    network = builder.create_network(flavour.network_flags())
    weights = tiny_weights(width, seed)  # kept until the engine is built
    value = network.add_input("hidden_states", trt.float32, (-1, TOKENS, width))
    timestep = network.add_input("timestep", trt.float32, (-1,))
    for index, weight in enumerate(weights):
        constant = network.add_constant((1, width, width), trt.Weights(weight)).get_output(0)
        product = network.add_matrix_multiply(value, trt.MatrixOperation.NONE, constant, trt.MatrixOperation.NONE)
        product.name = f"blocks.{index}.ffn/MatMul"
        value = network.add_activation(product.get_output(0), trt.ActivationType.RELU).get_output(0)
    times = network.add_shuffle(timestep)
    times.reshape_dims = (0, 1, 1)
    total = network.add_elementwise(value, times.get_output(0), trt.ElementWiseOperation.SUM)
    total.get_output(0).name = "sample"
    network.mark_output(total.get_output(0))

    config = builder.create_builder_config()
    flavour.configure(config)
    if flavour.weakly_typed:
        config.clear_flag(trt.BuilderFlag.FP16)  # it would choose it for these layers
    target = flavour.set_target(config, None, None)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = 0
    allow_execution(flavour, config, weight_streaming)
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    for batch in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape("hidden_states", *((size, TOKENS, width) for size in batch))
        profile.set_shape("timestep", *((size,) for size in batch))
        config.add_optimization_profile(profile)
    with flavour.hub.collect() as collected:
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{path}: {flavour.title} {flavour.version} could not build the engine", collected.errors)
    path.mkdir(parents=True)
    with HashedFile(path / names.PLAN) as file:
        file.write(memoryview(plan))
    files = {names.PLAN: file.entry}
    engine = EngineInfo(
        flavour=flavour.name,
        version=str(flavour.version),
        compute_capabilities=[str(capability) for capability in target.capabilities],
        and_newer=target.and_newer,
        flags=set_flags(trt, config),
        hardware_compatibility=None,
        version_compatible=version_compatible,
        optimization_level=0,
        workspace_bytes=None,
        timing_cache=False,
        builder_gpu=str(driver_report().devices[0]) if driver_report().devices else None,
        build_seconds=0.0,
        memory=EngineMemory(weights=sum(weight.nbytes for weight in weights)),
    )
    _manifest(engine, files, width, profiles[0]).write(path / names.MANIFEST)
    return Bundle.open(path, runtime=False)


def tiny_weights(width: int, seed: int) -> list[Any]:
    """`LAYERS` matrices [width, width]."""
    random = np.random.default_rng(seed)
    return [(random.standard_normal((width, width)) / width**0.5).astype(np.float32) for _ in range(LAYERS)]


def tiny_inputs(batch: int, width: int, seed: int) -> dict[str, Any]:
    """hidden_states [batch, TOKENS, width] and timestep [batch], float32."""
    random = np.random.default_rng(seed)
    return {
        "hidden_states": random.standard_normal((batch, TOKENS, width), np.float32),
        "timestep": random.uniform(0, 1, batch).astype(np.float32),
    }


def tiny_sample(inputs: dict[str, Any], weights: Sequence[Any]) -> Any:
    """What the engine computes, in NumPy: [batch, TOKENS, width]."""
    value = inputs["hidden_states"]
    for weight in weights:
        value = np.maximum(value @ weight, 0)
    return value + inputs["timestep"][:, None, None]


def _manifest(engine: EngineInfo, files: dict[str, Any], width: int, batch: Batch) -> Manifest:
    def spec(name: str, *shape: int) -> TensorSpec:
        ranges = {kind: [size, *shape] for kind, size in zip(("min", "opt", "max"), batch, strict=True)}
        return TensorSpec(name=name, dtype="float32", shape=[-1, *shape], profile=ShapeRange(**ranges))

    return Manifest(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        created_by="vorta-trt, a tiny engine",
        family=None,
        config=None,
        geometry=None,
        precision="fp32",
        op_version=None,
        metadata=None,
        inputs=[spec("hidden_states", TOKENS, width), spec("timestep")],
        outputs=[TensorSpec(name="sample", dtype="float32", shape=[-1, TOKENS, width])],
        engine=engine,
        plugin=None,
        files=files,
    )
