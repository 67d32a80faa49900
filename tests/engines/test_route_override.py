# SPDX-License-Identifier: Apache-2.0
"""Calibrated routes in a bundle: checked before the build, hashed, described."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from vorta_trt.engines import Bundle, build_engine
from vorta_trt.engines.errors import BundleError
from vorta_trt.engines.inspect import inspect_bundle
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.route_calibration import RouteCalibration

from .conftest import GEOMETRY, HEADS


def write(path: Path, layers: int = 2, geometry: AttentionGeometry = GEOMETRY) -> Path:
    RouteCalibration(
        family="wan",
        geometry=geometry,
        buckets=((999.0, 500.0), (500.0, 0.0)),
        routes=torch.ones(2, layers, HEADS, dtype=torch.int8),
        errors=torch.zeros(2, layers, HEADS, 3),
        budget=0.2,
        checkpoint="small",
    ).save(path)
    return path


def test_it_is_part_of_the_bundle(make_model: Any, tmp_path: Path) -> None:
    routes = write(tmp_path / "calibration.json")
    bundle = build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", route_override=routes)
    assert bundle.route_override_path == bundle.path / "route_override.json"
    assert bundle.route_override_path.read_bytes() == routes.read_bytes()
    assert "route_override.json" in bundle.manifest.files
    report = inspect_bundle(bundle.path, verify=True)
    (line,) = (line for line in report.lines() if line.startswith("overrides "))
    assert "2 buckets, 2 layers, 2 heads: 0.0% full, 100.0% coreset, 0.0% sliding; error of a layer at most 0.2" in line
    assert report.route_override is not None and report.route_override in line

    content = bundle.route_override_path.read_text()
    bundle.route_override_path.write_text(content.replace('"budget": 0.2', '"budget": 0.3'))
    with pytest.raises(BundleError, match=re.escape("route_override.json was changed: its SHA-256 differs")):
        Bundle.open(bundle.path)
    bundle.route_override_path.write_text(content.replace('"family": "wan"', '"family": "van"'))
    with pytest.raises(BundleError, match="family 'van': must be one of"):
        inspect_bundle(bundle.path)


def test_a_bundle_without(built: Bundle) -> None:
    assert built.route_override_path is None
    report = inspect_bundle(built.path)
    assert report.route_override is None
    assert not [line for line in report.lines() if line.startswith("overrides")]


def test_what_does_not_fit_is_refused_before_the_build(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vorta_trt.engines import bundle_writer

    monkeypatch.setattr(bundle_writer, "build_plan", lambda *arguments: pytest.fail("it was built"))
    model, bundle = make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle"

    def refused(message: str, error: type[Exception], onnx: Path = model, **options: Any) -> None:
        with pytest.raises(error, match=message):
            build_engine(onnx, bundle, **options)
        assert not bundle.exists()

    refused("are for layers 3, the model has 2", ValueError, route_override=write(tmp_path / "3.json", layers=3))
    refused("absent.json: no such file", FileNotFoundError, route_override=tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"format": 1')
    refused("half.json: .*make it with", ValueError, route_override=tmp_path / "half.json")
    foreign = make_model(tmp_path / "foreign.onnx", metadata=False)
    routes = write(tmp_path / "2.json")
    refused("says neither family nor heads", ValueError, onnx=foreign, route_override=routes, strict=False)


def test_another_size_is_a_warning(make_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    routes = write(tmp_path / "c.json", geometry=AttentionGeometry.for_video(9, 64, 96))
    with caplog.at_level(logging.WARNING):
        bundle = build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", route_override=routes)
    assert "calibrated routes of small: were measured with grid 3x4x6" in caplog.text
    assert bundle.route_override_path is not None
