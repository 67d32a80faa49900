# SPDX-License-Identifier: Apache-2.0
"""`Engine` on the CPU: what it takes, what it gives, and how it refuses."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.engines import Bundle, build_engine
from vorta_trt.model import RoutedTransformer
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import DeviceScratch, Engine

NEEDED = ("hidden_states", "timestep", "encoder_hidden_states")


@pytest.fixture(scope="module")
def model(wan: Any) -> RoutedTransformer:
    return RoutedTransformer.from_pretrained(wan.checkpoint, wan.router)


def example(model: RoutedTransformer, batch: int, seed: int) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.inputs(batch, seed).items() if name in NEEDED}


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_torch_in_torch_out(model: RoutedTransformer, fp32: Path, batch: int, seed: int) -> None:
    inputs = example(model, batch, seed)
    with torch.no_grad():
        sample, routes = model(**inputs)
    with Engine(fp32) as engine:
        outputs = engine(**inputs)
    assert isinstance(outputs["sample"], torch.Tensor)
    assert torch.equal(outputs["routes"], routes)
    error = (outputs["sample"] - sample).norm() / sample.norm()
    assert error < 1e-5


def test_numpy_in_numpy_out(model: RoutedTransformer, fp32: Path, seed: int) -> None:
    inputs = example(model, 2, seed)
    with Engine(fp32) as engine:
        expected = engine(**inputs)
        outputs = engine(**{name: tensor.numpy() for name, tensor in inputs.items()})
    assert {name: type(array) for name, array in outputs.items()} == {"sample": np.ndarray, "routes": np.ndarray}
    np.testing.assert_array_equal(outputs["sample"], expected["sample"].numpy())


def test_optional_inputs_have_the_exported_defaults(model: RoutedTransformer, fp32: Path, seed: int) -> None:
    inputs = example(model, 1, seed)
    layers, heads = model.num_layers, model.num_heads
    with Engine(fp32) as engine:
        plain = engine(**inputs)
        given = engine(
            **inputs, tau=np.float32([0.3]), route_override=torch.full((layers, heads), -1, dtype=torch.int32)
        )
        dense = [engine(**inputs, tau=tau) for tau in (1.5, [1.5], np.float64(1.5), torch.tensor(1.5))]
        sliding = engine(**inputs, route_override=[[2] * heads] * layers, tau=0.3)
    assert torch.equal(plain["sample"], given["sample"])
    assert not any(outputs["routes"].any() for outputs in dense)
    assert (sliding["routes"] == 2).all()


def test_timesteps_may_be_integers(model: RoutedTransformer, fp32: Path, seed: int) -> None:
    inputs = example(model, 1, seed)
    with Engine(fp32) as engine:
        as_float = engine(**{**inputs, "timestep": torch.tensor([977.0])})
        as_integer = engine(**{**inputs, "timestep": torch.tensor([977])})
    assert torch.equal(as_float["sample"], as_integer["sample"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"timestep": None}, TypeError, "input 'timestep' is missing: the engine takes hidden_states, timestep"),
        ({"guidance": torch.ones(1)}, TypeError, "input 'guidance': the engine has no such input"),
        (
            {"timestep": torch.ones(2)},
            ValueError,
            "batch is 2, but hidden_states has 1; give all inputs .* the same batch",
        ),
        ({"timestep": torch.ones(1, 1)}, ValueError, "timestep of shape .*has 2 axes, the engine takes 1"),
        (
            {"hidden_states": torch.ones(1, 4, 3, 4, 12)},
            ValueError,
            r"axis 3 must be 8, .* \(vorta-trt build --size\)",
        ),
        ({"hidden_states": torch.ones(1, 4, 3, 8, 12).double() / 3}, TypeError, "hidden_states of type float64"),
        ({"timestep": "now"}, TypeError, "timestep of type str"),
    ],
)
def test_wrong_inputs(
    model: RoutedTransformer, fp32: Path, change: dict[str, Any], error: type[Exception], message: str, seed: int
) -> None:
    with Engine(fp32) as engine, pytest.raises(error, match=message):
        engine(**{**example(model, 1, seed), **change})


def test_narrowing_is_the_callers_decision(model: RoutedTransformer, fp16: Path, seed: int) -> None:
    with Engine(fp16) as engine, pytest.raises(TypeError, match=r"hidden_states\.to\(torch\.float16\)"):
        engine(**example(model, 1, seed))


def test_closing(model: RoutedTransformer, fp32: Path, seed: int) -> None:
    engine = Engine(fp32)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="this engine is closed; open a new one"):
        engine(**example(model, 1, seed))


def test_a_context_on_the_cpu_shares_the_session(model: RoutedTransformer, fp32: Path, seed: int) -> None:
    inputs = example(model, 1, seed)
    engine = Engine(fp32)
    expected = engine(**inputs)["sample"]
    other = engine.context()
    engine.close()
    with pytest.raises(RuntimeError, match="this engine is closed; open a new one"):
        engine.context()
    with other:
        assert torch.equal(other(**inputs)["sample"], expected)
        assert (other.device, other.device_use().weights) == ("cpu", 0)
        with pytest.raises(VortaError, match="executor 'onnxruntime' has no times per layer"):
            other.profile(**inputs)


def test_threads_on_the_cpu(model: RoutedTransformer, fp32: Path, seed: int) -> None:
    inputs = [example(model, 1, seed + number) for number in range(3)]
    with Engine(fp32) as engine, ThreadPoolExecutor(3) as pool:
        expected = [engine(**each)["sample"] for each in inputs]
        for result, wanted in zip(pool.map(lambda each: engine(**each)["sample"], inputs), expected, strict=True):
            assert torch.equal(result, wanted)


def test_bfloat16_needs_the_reference_evaluator(model: RoutedTransformer, bf16: Path, seed: int) -> None:
    with pytest.raises(ValueError, match='is in bfloat16: .* use executor="reference"'):
        Engine(bf16)
    inputs = {
        name: tensor if name == "timestep" else tensor.to(torch.bfloat16)
        for name, tensor in example(model, 1, seed).items()
    }
    with Engine(bf16, executor="reference") as engine:
        assert engine.executor == "reference"
        outputs = engine(**inputs)
    assert outputs["sample"].dtype == torch.bfloat16
    assert outputs["sample"].isfinite().all()


def test_a_bundle_does_not_fall_back_to_the_cpu(bundle: Path) -> None:
    with pytest.raises(VortaError, match='TensorRT-RTX cannot run here.*\n.*executor="onnxruntime"'):
        Engine(bundle)
    with pytest.raises(VortaError, match="cannot run here") as caught:
        Engine(bundle, executor="tensorrt")
    assert "onnxruntime" not in str(caught.value)
    manifest = Bundle.open(bundle, runtime=False).manifest
    for_8_6 = manifest.model_copy(update={"metadata": {**(manifest.metadata or {}), "opset": 17}})
    with pytest.raises(VortaError, match="cannot run here") as caught:
        Engine(Bundle(bundle, for_8_6))  # whose ONNX file nothing on the CPU runs
    assert "onnxruntime" not in str(caught.value)


def test_the_onnx_file_of_a_bundle(model: RoutedTransformer, bundle: Path, fp16: Path, seed: int) -> None:
    inputs = {name: tensor if name == "timestep" else tensor.half() for name, tensor in example(model, 2, seed).items()}
    with Engine(bundle, executor="onnxruntime") as engine, Engine(fp16) as expected:
        assert engine.metadata == expected.metadata
        assert torch.equal(engine(**inputs)["sample"], expected(**inputs)["sample"])
    with Engine(Bundle.open(bundle, runtime=False), executor="onnxruntime") as engine:
        assert engine.executor == "onnxruntime"


def test_a_bundle_without_onnx_file(fp16: Path, tmp_path: Path) -> None:
    made = build_engine(fp16, tmp_path / "plain.bundle").path
    with pytest.raises(VortaError, match="was built without it.*--keep-onnx"):
        Engine(made, executor="onnxruntime")
    with pytest.raises(VortaError) as caught:
        Engine(made)
    assert "onnxruntime" not in str(caught.value)


def test_a_damaged_bundle_is_noticed(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy.bundle")
    plan = copy / "transformer.plan"
    plan.write_bytes(plan.read_bytes()[:-100])
    with pytest.raises(VortaError, match="transformer.plan is cut short"):
        Engine(copy, executor="onnxruntime", verify=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: folder / "absent.onnx", FileNotFoundError, "no such bundle or ONNX file; make one with"),
        (lambda folder: folder, VortaError, "is not a bundle: .*give the folder that"),
        (lambda folder: _file(folder / "noise.onnx", b"\xff\xfe not a protobuf" * 9), ValueError, "export it again"),
        (lambda folder: _file(folder / "empty.onnx", b""), ValueError, "export it again"),
        (
            lambda folder: _file(folder / "manifest.json", b"{}"),
            ValueError,
            "is the manifest of a bundle; give its folder",
        ),
    ],
)
def test_paths_that_hold_no_engine(tmp_path: Path, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Engine(make(tmp_path))


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_onnx_file(fp32: Path, tmp_path: Path, keep: float) -> None:
    content = fp32.read_bytes()
    with pytest.raises(ValueError, match="export"):
        Engine(_file(tmp_path / "cut.onnx", content[: int(len(content) * keep)]))


def test_arguments(fp32: Path) -> None:
    with pytest.raises(ValueError, match="executor 'cuda': must be one of tensorrt, onnxruntime, reference"):
        Engine(fp32, executor="cuda")
    with pytest.raises(VortaError, match="executor 'tensorrt' runs bundles; build one with"):
        Engine(fp32, executor="tensorrt")
    with pytest.raises(ValueError, match="device 'cuda': executor 'onnxruntime' runs on the CPU"):
        Engine(fp32, device="cuda")
    with pytest.raises(ValueError, match="weight_streaming_budget: executor 'onnxruntime' runs on the CPU"):
        Engine(fp32, weight_streaming_budget=0)
    with DeviceScratch() as scratch, pytest.raises(ValueError, match="scratch: executor 'reference' runs on the CPU"):
        Engine(fp32, executor="reference", scratch=scratch)
    with Engine(fp32) as engine, DeviceScratch() as scratch:
        with pytest.raises(ValueError, match="scratch: executor 'onnxruntime' runs on the CPU"):
            engine.context(scratch=scratch)
    Engine(fp32, device="cpu", cuda_graph=False, outputs="reuse").close()


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
