# SPDX-License-Identifier: Apache-2.0
"""LoRA files in a bundle that is built already. Engines of TensorRT are stand-ins; the ONNX copy runs on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vorta_trt.engines import BuildError, Bundle, BundleError, build_engine, get_flavour
from vorta_trt.engines.logs import LogHub
from vorta_trt.engines.manifest import RefitRecord
from vorta_trt.engines.refit import apply_refit
from vorta_trt.export import export_onnx
from vorta_trt.export.onnx_file import read_onnx
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.lora.spec import LoraSpec
from vorta_trt.model.timestep_path import TimestepPath
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import Engine
from vorta_trt.runtime.refit import refit
from vorta_trt.runtime.sampling.path_source import timestep_path_of

from ..tiny import Tiny
from .test_from_checkpoint import example_inputs
from .test_lora import FREQUENCIES, QUERY, TIME, as_stored, lora


@pytest.fixture
def bundle(tiny_wan: Tiny, tmp_path: Path) -> Path:
    """As if it had been built with `refit`, which needs a GPU."""
    folder = tmp_path / "model.bundle"
    shutil.copytree(tiny_wan.bundle, folder)
    opened = Bundle.open(folder, runtime=False)
    assert opened.onnx_path is not None
    names = [tensor.name for tensor in read_onnx(opened.onnx_path).model.graph.initializer]
    opened.whole.model_copy(update={"refit": RefitRecord(names=names)}).write(folder / "manifest.json")
    return folder


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_refit_is_what_an_export_with_lora_is(tiny_wan: Tiny, bundle: Path, tmp_path: Path) -> None:
    """Weights, outputs and timestep path; then another LoRA in its place, and then none."""
    attention = LoraSpec(lora(tmp_path / "attention.safetensors", module=QUERY), 0.5)
    time = LoraSpec(lora(tmp_path / "time.safetensors", module=TIME, inputs=FREQUENCIES), -1.5)
    plan = (bundle / "transformer.plan").read_bytes()
    model = tiny_wan.model(lora=(attention, time), materialize=False)
    expected = export_onnx(model, tmp_path / "fused.onnx", "fp16")
    opened = refit(bundle, tiny_wan.checkpoint, {"transformer": [attention, time]})
    assert opened.onnx_path is not None and opened.manifest.refit is not None
    assert same(as_stored(opened.onnx_path), as_stored(expected))
    with Engine(bundle, executor="onnxruntime") as ours, Engine(expected) as theirs:
        feeds = example_inputs(theirs, seed=3)
        assert same(ours(**feeds), theirs(**feeds))
    path, wanted = timestep_path_of(bundle), timestep_path_of(expected)
    assert path is not None and wanted is not None
    timesteps = torch.tensor([900.0, 500.0, 30.0])
    ours_path, theirs_path = (each.route_table(timesteps) for each in (path, wanted))
    assert isinstance(path, TimestepPath) and ours_path.to_json() == theirs_path.to_json()
    assert [record.name for record in opened.manifest.refit.lora] == ["attention.safetensors", "time.safetensors"]
    second = refit(bundle, tiny_wan.checkpoint, {"transformer": [attention]})
    base, fused = as_stored(tiny_wan.export("fp16")), as_stored(expected)
    alone = {name: (fused if "attn1.to_q" in name else base)[name] for name in base}
    assert second.onnx_path is not None and same(as_stored(second.onnx_path), alone)
    third = refit(bundle, tiny_wan.checkpoint, {})
    assert third.onnx_path is not None and same(as_stored(third.onnx_path), base)
    assert (bundle / "transformer.plan").read_bytes() == plan
    assert {file.name for file in bundle.iterdir()} == {*third.manifest.files, "manifest.json"}  # nothing old is left
    Bundle.open(bundle, runtime=False)


def test_what_cannot_be_refitted_stays_as_it_was(tiny_wan: Tiny, bundle: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    wrong = lora(tmp_path / "wrong.safetensors", inputs=5)
    with pytest.raises(CheckpointError, match=r"wrong\.safetensors"):
        refit(bundle, tiny_wan.checkpoint, {"transformer": [LoraSpec(wrong)]})
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before
    with pytest.raises(BundleError, match="transformer 9x64x96 was built without --refit"):
        refit(tiny_wan.bundle, tiny_wan.checkpoint, {})


def test_rtx_without_a_gpu_builds_no_such_engine(tiny_wan: Tiny, tmp_path: Path) -> None:
    if get_flavour("rtx").can_run():
        pytest.skip("there is a GPU")
    with pytest.raises(BuildError, match="builds refittable engines with a GPU only"):
        build_engine(tiny_wan.export("fp16"), tmp_path / "x.bundle", refit=True)


class Refitter:
    """As much of TensorRT's as is used; `unknown` is a weight that it does not have."""

    unknown: str | None = None

    def __init__(self, engine: dict[str, Any], logger: Any) -> None:
        self.engine = engine
        self.given: dict[str, Any] = {}

    def set_named_weights(self, name: str, weights: Any) -> bool:
        self.given[name] = weights
        return name != self.unknown

    def refit_cuda_engine(self) -> bool:
        self.engine.update(self.given)
        return True


def test_an_engine_gets_its_weights(tiny_wan: Tiny, bundle: Path, tmp_path: Path) -> None:
    opened = refit(bundle, tiny_wan.checkpoint, {"transformer": [LoraSpec(lora(tmp_path / "one.safetensors"))]})
    types = SimpleNamespace(HALF="half", FLOAT="float", BF16="bf16")
    module = SimpleNamespace(Refitter=Refitter, Weights=lambda *given: given, DataType=types)
    flavour: Any = SimpleNamespace(module=module, hub=LogHub("x"), logger=None, title_and_version="TensorRT 10.13")
    engine: dict[str, Any] = {}
    apply_refit(flavour, engine, opened)
    assert opened.refit_path is not None
    values = load_file(opened.refit_path)
    assert engine.keys() == values.keys() and len(engine) == 2  # weight and bias
    assert all(given[2] == values[name].numel() for name, given in engine.items())
    module.Refitter = type("Other", (Refitter,), {"unknown": next(iter(values))})
    with pytest.raises(VortaError, match=r"cannot set the weights of refit\.transformer.*no such weights"):
        apply_refit(flavour, {}, opened)
