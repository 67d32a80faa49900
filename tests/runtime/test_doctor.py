# SPDX-License-Identifier: Apache-2.0
"""The doctor says what works, and names what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vorta_trt.engines import gpu
from vorta_trt.runtime import doctor


def test_this_machine_can_build(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path)
    assert report.can_build
    assert "rtx" in report.builds_with
    assert {finding.state for finding in report.findings if finding.section in ("exporter", "plugin")} == {"ok"}
    content = json.loads(report.model_dump_json())
    assert content["can_build"] is True
    assert content["packages"]["torch"]
    lines = [line for _, line in doctor.report_lines(report)]
    assert "vorta-trt can build engines here, with: rtx" in lines
    assert any("TensorRT-RTX plugin: registers RoutedAttention" in line for line in lines)


def test_a_missing_library_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VORTA_TRT_LIBRARY", str(tmp_path / "absent.so"))
    report = doctor.examine(tmp_path)
    assert not report.can_build
    lines = dict((line, state) for state, line in doctor.report_lines(report))
    (library,) = (line for line in lines if line.startswith("plugin library"))
    assert "absent.so: no such file" in library
    assert lines[library] == "failed"
    assert lines["vorta-trt cannot build engines here; see the lines above"] == "failed"


def test_a_broken_exporter_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "EXPORTER_MODULES", ("torch", "no_such_module"))
    report = doctor.examine(tmp_path)
    assert not report.can_build
    (finding,) = (finding for finding in report.findings if finding.section == "exporter")
    assert finding.state == "failed"
    assert "no_such_module" in finding.detail


def test_a_gpu_without_kernels_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = gpu.Device("NVIDIA TITAN V", gpu.ComputeCapability(7, 0), 12 << 30)
    monkeypatch.setattr(doctor, "driver_report", lambda: gpu.DriverReport((old,), "13.0", None))
    report = doctor.examine(tmp_path)
    (library,) = (finding for finding in report.findings if finding.section == "plugin")
    assert library.state == "failed"
    assert "none for NVIDIA TITAN V" in library.detail
    assert any("NVIDIA TITAN V" in finding.detail for finding in report.findings if finding.section == "GPU")
