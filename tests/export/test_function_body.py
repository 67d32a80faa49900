# SPDX-License-Identifier: Apache-2.0
"""The portable ONNX function of the operator against the reference in torch."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file

from vorta_trt.export.function_body import routed_attention_function
from vorta_trt.export.names import OPSET
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.reference import routed_attention_reference
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

from ..mask_oracle import corner_problems, random_inputs, random_problem

FULL, CORESET, SLIDING = 0, 1, 2
CASES = load_file(Path(__file__).parents[1] / "data" / "attention.safetensors")
ONNX_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
}
PLUGIN = {"plugin_namespace": "vorta", "plugin_version": "1"}


def model_of(
    attributes: dict[str, Any], dtype: str, shape: tuple[Any, ...], routes: tuple[Any, Any]
) -> onnx.ModelProto:
    """One node and its function; `shape` of query, key, value and output; entries may be names."""
    text = attributes.get("text_tokens", 0) > 0
    names = ROUTED_ATTENTION.inputs if text else ROUTED_ATTENTION.inputs[:-1]
    info = onnx.helper.make_tensor_value_info
    inputs = [info(name, ONNX_TYPES[dtype], shape) for name in names[:3]]
    inputs.append(info("routes", onnx.TensorProto.INT32, routes))
    if text:
        inputs.append(info("text_length", onnx.TensorProto.INT32, routes[:1]))
    node = onnx.helper.make_node(
        ROUTED_ATTENTION.name, names, [*ROUTED_ATTENTION.outputs], domain=ROUTED_ATTENTION.namespace, **attributes
    )
    graph = onnx.helper.make_graph(
        [node], "one_node", inputs, [info(ROUTED_ATTENTION.outputs[0], ONNX_TYPES[dtype], shape)]
    )
    opsets = [
        onnx.helper.make_opsetid("", OPSET),
        onnx.helper.make_opsetid(ROUTED_ATTENTION.namespace, int(ROUTED_ATTENTION.version)),
    ]
    return onnx.helper.make_model(
        graph, functions=[routed_attention_function(text)], opset_imports=opsets, ir_version=11
    )


def run_onnxruntime(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def run_reference_evaluator(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    return ReferenceEvaluator(model).run(None, feed)[0]


RUNTIMES = {"onnxruntime": run_onnxruntime, "reference evaluator": run_reference_evaluator}


def attributes_of(geometry: AttentionGeometry, scale: float) -> dict[str, Any]:
    return {**geometry.to_dict(), "scale": scale, **PLUGIN}


def random_geometry(rng: np.random.Generator) -> AttentionGeometry:
    """Ragged and minimal ones on purpose: extents of 1, tiles and buckets as large as the grid, windows beyond it."""

    def size(extent: int) -> int:
        return int(rng.integers(1, extent + 1))

    grid = tuple(int(rng.choice([1, 2, 3, 4, 5, 6])) for _ in range(3))
    bucket = tuple(map(size, grid))
    return AttentionGeometry(
        grid=grid,
        tile=tuple(map(size, grid)),
        window=tuple(int(rng.choice([1, 3, 5])) for _ in range(3)),
        bucket=bucket,
        keep=int(rng.integers(1, math.prod(bucket) + 1)),
        coreset_keys=str(rng.choice(["query", "key"])),
        text_tokens=int(rng.choice([0, 1, 7])),
    )


def random_feed(
    rng: np.random.Generator, geometry: AttentionGeometry, batch: int, heads: int, head_dim: int, dtype: Any
) -> dict[str, np.ndarray]:
    shape = (batch, geometry.tokens, heads, head_dim)
    feed = {name: rng.standard_normal(shape).astype(np.float32).astype(dtype) for name in ROUTED_ATTENTION.inputs[:3]}
    feed["routes"] = rng.integers(0, 3, (batch, heads)).astype(np.int32)
    if geometry.text_tokens:
        feed["text_length"] = rng.integers(0, geometry.text_tokens + 1, batch).astype(np.int32)
        for sample, length in enumerate(feed["text_length"]):  # padded rows must not be read
            for name in ROUTED_ATTENTION.inputs[:3]:
                feed[name][sample, geometry.video_tokens + length :] = np.nan
    return feed


def reference(feed: dict[str, np.ndarray], geometry: AttentionGeometry, scale: float | None = None) -> np.ndarray:
    """In float32, from the values as they were rounded to the feed's type."""
    tensors = {
        name: torch.from_numpy(array.astype(np.float32) if array.dtype.kind not in "iu" else array)
        for name, array in feed.items()
    }
    return routed_attention_reference(
        *(tensors[name] for name in ROUTED_ATTENTION.inputs[:4]), geometry, tensors.get("text_length"), scale
    ).numpy()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("case", "route", "coreset_keys"),
    [
        ("full_video_only", FULL, "query"),
        ("full_with_text", FULL, "key"),
        ("coreset_video_only_keys_by_query", CORESET, "query"),
        ("coreset_with_text_keys_by_key", CORESET, "key"),
        ("sliding_video_only", SLIDING, "query"),
        ("sliding_with_text", SLIDING, "key"),
    ],
)
def test_reproduces_the_published_code(case: str, route: int, coreset_keys: str, runtime: str) -> None:
    text = "with_text" in case
    geometry = AttentionGeometry((10, 6, 6), (2, 3, 2), (3, 1, 3), (2, 3, 2), 6, coreset_keys, 8 if text else 0)
    feed = {name: CASES[name][:, : geometry.tokens] for name in ROUTED_ATTENTION.inputs[:3]}
    feed["routes"] = np.full((1, 2), route, np.int32)
    if text:
        feed["text_length"] = np.array([5], np.int32)
    model = model_of(attributes_of(geometry, 1 / math.sqrt(16)), "float32", (1, geometry.tokens, 2, 16), (1, 2))
    got = RUNTIMES[runtime](model, feed)
    np.testing.assert_allclose(got, CASES[case], rtol=0, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("repetition", range(12))
def test_random_geometries_and_mixed_routes(repetition: int, runtime: str) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    rng = np.random.default_rng(seed)
    geometry = random_geometry(rng)
    batch, heads, head_dim = int(rng.integers(1, 4)), int(rng.integers(1, 5)), int(rng.choice([1, 3, 8, 40]))
    scale = float(rng.uniform(0.05, 0.5))
    print(f"seed {seed}: {geometry}; batch {batch}, heads {heads}, head dim {head_dim}")
    feed = random_feed(rng, geometry, batch, heads, head_dim, np.float32)
    feed["routes"][0, 0] = int(rng.choice([0, 1, 2, 3, -1]))  # unknown ids take the full branch
    model = model_of(
        attributes_of(geometry, scale), "float32", ("batch", geometry.tokens, heads, head_dim), ("batch", heads)
    )
    got = RUNTIMES[runtime](model, feed)
    np.testing.assert_allclose(got, reference(feed, geometry, scale), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ragged_grids_against_a_dense_mask(dtype: str) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    rng = random.Random(seed)
    for problem in [*corner_problems(), *(random_problem(rng) for _ in range(25))]:
        print(problem)
        inputs = random_inputs(problem, rng.randrange(1 << 30), lambda n: n.astype(dtype).astype(np.float64))
        feed = {name: getattr(inputs, name).astype(dtype) for name in ROUTED_ATTENTION.inputs[:3]}
        feed["routes"] = inputs.routes
        if problem.text_tokens:
            feed["text_length"] = np.array(inputs.lengths, np.int32)
        attributes = attributes_of(AttentionGeometry(**asdict(problem)), inputs.scale)
        batch, _, heads, _ = inputs.query.shape
        got = run_onnxruntime(model_of(attributes, dtype, inputs.query.shape, (batch, heads)), feed)
        unit = 2.0**-11 if dtype == "float16" else 0
        np.testing.assert_allclose(got.astype(np.float64), inputs.expected, rtol=unit, atol=1e-5)


@pytest.mark.parametrize("coreset_keys", ["query", "key"])
@pytest.mark.parametrize("text_tokens", [0, 5])
def test_more_queries_than_a_block_and_a_ragged_last_block(text_tokens: int, coreset_keys: str) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    rng = np.random.default_rng(seed)
    geometry = AttentionGeometry((5, 9, 14), (5, 3, 2), (1, 3, 3), (1, 3, 2), 5, coreset_keys, text_tokens)
    print(f"seed {seed}")
    feed = random_feed(rng, geometry, 2, 3, 16, np.float32)
    feed["routes"][:] = [[FULL, CORESET, SLIDING], [SLIDING, FULL, CORESET]]
    model = model_of(attributes_of(geometry, 0.25), "float32", ("batch", geometry.tokens, 3, 16), ("batch", 3))
    np.testing.assert_allclose(run_onnxruntime(model, feed), reference(feed, geometry, 0.25), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("runtime", "dtype", "numpy_type", "unit"),
    [
        ("onnxruntime", "float16", np.float16, 2**-11),
        ("reference evaluator", "float16", np.float16, 2**-11),
        ("reference evaluator", "bfloat16", ml_dtypes.bfloat16, 2**-8),  # ONNX Runtime's CPU has no bfloat16
    ],
)
def test_half_types_are_computed_in_float32(runtime: str, dtype: str, numpy_type: Any, unit: float) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    rng = np.random.default_rng(seed)
    geometry = AttentionGeometry((4, 6, 6), (2, 3, 2), (3, 1, 3), (2, 3, 2), 6, "key", 8)
    print(f"seed {seed}")
    feed = random_feed(rng, geometry, 2, 3, 16, numpy_type)
    feed["routes"][:] = [[FULL, CORESET, SLIDING], [SLIDING, FULL, CORESET]]
    model = model_of(attributes_of(geometry, 0.25), dtype, ("batch", geometry.tokens, 3, 16), ("batch", 3))
    got = RUNTIMES[runtime](model, feed)
    assert got.dtype == numpy_type
    # No error but the rounding of the output: half a unit in the last place, and the float32 error on top.
    np.testing.assert_allclose(got.astype(np.float32), reference(feed, geometry, 0.25), rtol=unit, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_equally_similar_tokens_stay_in_raster_order(runtime: str) -> None:
    geometry = AttentionGeometry((4, 8, 8), (2, 4, 4), (3, 3, 3), (4, 4, 4), 20)
    rng = np.random.default_rng(0)
    feed = random_feed(rng, geometry, 1, 2, 4, np.float32)
    feed["query"][:] = feed["query"][:, :1]  # every token alike: all cosines tie
    feed["query"][:, ::7] = 0  # and tokens of length 0, whose cosine is 0
    feed["routes"][:] = CORESET
    model = model_of(attributes_of(geometry, 0.5), "float32", (1, geometry.tokens, 2, 4), (1, 2))
    got = RUNTIMES[runtime](model, feed)
    np.testing.assert_allclose(got, reference(feed, geometry, 0.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("coreset_keys", ["query", "key"])
def test_optional_attributes_default_as_designed(coreset_keys: str) -> None:
    rng = np.random.default_rng(1)
    geometry = AttentionGeometry((2, 4, 4), (2, 2, 2), (1, 1, 1), (2, 2, 2), 3, coreset_keys)
    feed = random_feed(rng, geometry, 1, 3, 8, np.float32)
    feed["routes"][:] = [[FULL, CORESET, SLIDING]]
    attributes = {name: list(getattr(geometry, name)) for name in ("grid", "tile", "window", "bucket")} | {"keep": 3}
    if coreset_keys != "query":
        attributes["coreset_keys"] = coreset_keys
    model = model_of(attributes, "float32", (1, geometry.tokens, 3, 8), (1, 3))
    # The reference evaluator knows no defaults of a function's attributes.
    np.testing.assert_allclose(run_onnxruntime(model, feed), reference(feed, geometry), rtol=0, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("text_tokens", [0, 4])
def test_every_attention_precision_gives_the_same_bits(runtime: str, text_tokens: int) -> None:
    """It is a permission to kernels; a node without the attribute is one with "same"."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    geometry = AttentionGeometry((2, 4, 6), (2, 2, 2), (1, 1, 3), (2, 2, 2), 3, "query", text_tokens)
    feed = random_feed(np.random.default_rng(seed), geometry, 1, 3, 8, np.float32)
    feed["routes"] = np.array([[FULL, CORESET, SLIDING]], np.int32)
    results = []
    for precision in ({}, {"attention_precision": "same"}, {"attention_precision": "fp8"}):
        attributes = attributes_of(geometry, 0.5) | precision
        model = model_of(attributes, "float32", (1, geometry.tokens, 3, 8), (1, 3))
        onnx.checker.check_model(model, full_check=True)
        results.append(RUNTIMES[runtime](model, feed))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("text_tokens", [0, 4])
@pytest.mark.parametrize("dtype", ONNX_TYPES)
def test_checkers_accept_it_and_see_the_output_shape(dtype: str, text_tokens: int) -> None:
    geometry = AttentionGeometry((2, 4, 6), (2, 2, 2), (1, 1, 3), (2, 2, 2), 3, "query", text_tokens)
    shape = ("batch", geometry.tokens, 3, 8)
    model = model_of(attributes_of(geometry, 0.5), dtype, shape, ("batch", 3))
    onnx.checker.check_model(model, full_check=True)
    model.graph.node[0].output[0] = "inner"  # what is declared must not be what we read back
    model.graph.node.append(onnx.helper.make_node("Identity", ["inner"], [*ROUTED_ATTENTION.outputs]))
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=False)
    (inner,) = (info for info in inferred.graph.value_info if info.name == "inner")
    assert [d.dim_param or d.dim_value for d in inner.type.tensor_type.shape.dim] == list(shape)
    assert inner.type.tensor_type.elem_type == ONNX_TYPES[dtype]


@pytest.mark.parametrize("text", [False, True])
def test_function_declares_every_attribute_and_stands_alone(text: bool) -> None:
    function = routed_attention_function(text)
    assert sorted([*function.attribute, *(a.name for a in function.attribute_proto)]) == sorted(
        ROUTED_ATTENTION.node_attributes
    )
    assert list(function.input) == list(ROUTED_ATTENTION.inputs if text else ROUTED_ATTENTION.inputs[:-1])
    assert {o.domain: o.version for o in function.opset_import} == {"": OPSET}
    assert (function.domain, function.name) == ROUTED_ATTENTION.node_type
    assert function is not routed_attention_function(text), "callers may change what they get"


def test_function_is_the_same_in_every_process() -> None:
    code = (
        "from hashlib import sha256; from vorta_trt.export.function_body import routed_attention_function as function;"
        "print(sha256(function(True).SerializeToString()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
