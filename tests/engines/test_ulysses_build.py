# SPDX-License-Identifier: Apache-2.0
"""Engines for several GPUs: built without any, with one plan for all ranks; they refuse to run in a process alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from vorta_trt.engines import build_engine
from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.inspect import inspect_bundle
from vorta_trt.export import export_onnx
from vorta_trt.plugins import VortaError
from vorta_trt.runtime import Engine

from ..tiny import Tiny

RANKS = 3  # as many as a tiny model has heads


def test_an_engine_for_several_gpus_is_built_and_does_not_run_alone(tiny_wan: Tiny, tmp_path: Path) -> None:
    onnx = export_onnx(tiny_wan.model(materialize=False), tmp_path / "model.onnx", "fp16", ulysses=RANKS)
    bundle = build_engine(onnx, tmp_path / "several.bundle")
    assert bundle.manifest.metadata is not None and bundle.manifest.metadata["ulysses"] == RANKS
    assert bundle.manifest.plugin.layers == 2
    assert bundle.manifest.plugin.name == "UlyssesAttention"
    assert "GPUs       3 share every pass; run it with --gpus" in [*inspect_bundle(bundle.path).lines()]
    inputs = {spec.name: (spec.dtype, spec.shape) for spec in bundle.manifest.inputs}
    assert inputs["rank"] == ("int32", [1])
    assert inputs["head_orders"] == ("int32", [2, 3])
    with pytest.raises(VortaError, match="is built for 3 GPUs that share every pass.*run it with --gpus 3"):
        Engine(bundle)
    with pytest.raises(BuildError, match="communicator is the installed library's.*leave out --plugin-in-plan"):
        build_engine(onnx, tmp_path / "with plugin.bundle", plugin_in_plan=True)
    with pytest.raises(VortaError, match="is exported for 3 GPUs, which exchange in the plugins of an engine alone"):
        Engine(onnx)
