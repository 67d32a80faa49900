# SPDX-License-Identifier: Apache-2.0
"""The doctor says what works, and names what does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from vorta_trt.engines import plugin as plugin_module
from vorta_trt.engines.flavours import FLAVOURS, TensorRT
from vorta_trt.plugins import PluginLibrary, gpu
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import doctor

from ..engines import fake_tensorrt8


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


def test_every_flavour_says_which_versions_were_executed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {f.name.removesuffix(" versions"): f for f in doctor.examine(tmp_path).findings if "versions" in f.name}
    assert set(told) == {flavour.title for flavour in FLAVOURS.values()}
    assert told["TensorRT"].detail.startswith("executed by this project: nothing; only checked: 10.0 to 11.1 (")
    assert "8.6.0 (builds, and engines on an H100 and an H200)" in told["TensorRT 8.6"].detail
    assert {finding.state for finding in told.values()} == {"ok"}  # the version here of TensorRT-RTX was
    monkeypatch.setattr(type(FLAVOURS["rtx"]), "version", "1.7.12")
    (newer,) = (f for f in doctor.examine(tmp_path).findings if f.name == "TensorRT-RTX versions")
    assert newer.state == "note" and "1.7.1 (builds without a GPU; no engine was run)" in newer.detail


def test_a_missing_library_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VORTA_TRT_LIBRARY", str(tmp_path / "absent.so"))
    report = doctor.examine(tmp_path)
    assert not report.can_build
    lines = dict((line, state) for state, line in doctor.report_lines(report))
    (library,) = (line for line in lines if line.startswith("plugin library"))
    assert "absent.so: no such file" in library
    assert lines[library] == "failed"
    assert lines["vorta-trt cannot build engines here; see the lines above"] == "failed"


def test_a_library_of_another_version_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(library: PluginLibrary) -> str:
        raise VortaError(f"{library.path}: has no function vorta_cublaslt_path")

    monkeypatch.setattr(doctor, "cublaslt_path", lacks)
    findings, library = doctor._library()
    assert library is not None
    (finding,) = (finding for finding in findings if finding.section == "products")
    assert (finding.name, finding.state) == ("cuBLASLt", "failed")
    assert finding.detail.endswith("has no function vorta_cublaslt_path")


def test_a_broken_exporter_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "EXPORTER_MODULES", ("torch", "no_such_module"))
    report = doctor.examine(tmp_path)
    assert not report.can_build
    (finding,) = (finding for finding in report.findings if finding.section == "exporter")
    assert finding.state == "failed"
    assert "no_such_module" in finding.detail


def test_a_disk_that_does_not_say_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "free_bytes", lambda folder: None)
    (disk,) = (finding for finding in doctor.examine(tmp_path).findings if finding.name == "disk")
    assert (disk.state, disk.detail) == ("ok", f"{tmp_path} does not say how much is free")


def test_a_gpu_without_kernels_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = gpu.Device("NVIDIA TITAN V", gpu.ComputeCapability(7, 0), 12 << 30)
    monkeypatch.setattr(doctor, "driver_report", lambda: gpu.DriverReport((old,), "13.0", None))
    report = doctor.examine(tmp_path)
    library, kernels = (finding for finding in report.findings if finding.section == "plugin")
    assert (library.state, kernels.state, kernels.name) == ("ok", "failed", "kernels for GPU 0")
    assert re.search(r"none for this GPU \(NVIDIA TITAN V .*below 8\.0", kernels.detail)
    assert any("NVIDIA TITAN V" in finding.detail for finding in report.findings if finding.section == "GPU")
    assert not report.runs_with


def test_slower_kernels_and_an_old_driver_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GPUs of two kinds; the library has PTX of 80 for both."""
    monkeypatch.setattr(PluginLibrary, "cuda_architectures", ("80",))
    monkeypatch.setattr(PluginLibrary, "cuda_version", "13.0")
    cards = [gpu.Device(f"GPU of {text}", gpu.ComputeCapability.parse(text), 80 << 30) for text in ("12.0", "8.0")]
    monkeypatch.setattr(doctor, "driver_report", lambda: gpu.DriverReport(tuple(cards), "13.1", None))
    findings = {finding.name: finding for finding in doctor.examine(tmp_path).findings}
    slower = findings["kernels for GPU 0"]
    assert slower.state == "note" and "PTX" in slower.detail and "80;120-real" in slower.detail
    assert "kernels for GPU 1" not in findings and "driver" not in findings
    monkeypatch.setattr(doctor, "driver_report", lambda: gpu.DriverReport(tuple(cards), "12.8", None))
    report = doctor.examine(tmp_path)
    (driver,) = (finding for finding in report.findings if finding.name == "driver")
    assert driver.state == "failed" and "CUDA 12.8" in driver.detail and "R580" in driver.detail
    assert report.builds_with and not report.runs_with


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_a_torch_that_does_not_reach_the_gpu_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None
) -> None:
    card = gpu.Device("NVIDIA RTX 4090", gpu.ComputeCapability(8, 9), 24 << 30)
    monkeypatch.setattr(doctor, "driver_report", lambda: gpu.DriverReport((card,), "13.0", None))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = doctor.examine(tmp_path)
    (finding,) = (finding for finding in report.findings if finding.name == "torch on the GPU")
    assert finding.state == "failed" and torch.__version__ in finding.detail
    assert ("pip install" in finding.detail) is (cuda is None)
    assert report.builds_with and not report.runs_with


@pytest.mark.parametrize(
    ("version", "absent", "present", "detail"),
    [
        ("8.6.0", "tensorrt", "tensorrt8", "needs 10.0 or newer .*TensorRT 8.6 is the flavour tensorrt8"),
        ("10.14.1", "tensorrt8", "tensorrt", "for 8.6; TensorRT 10 and newer are the flavour tensorrt "),
    ],
)
def test_a_version_of_another_flavour_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, absent: str, present: str, detail: str
) -> None:
    monkeypatch.setattr(TensorRT, "version", version)  # of both flavours
    found = FLAVOURS[present]
    monkeypatch.setitem(found.__dict__, "module", fake_tensorrt8)
    report = doctor.examine(tmp_path)
    found.__dict__.pop("logger", None)
    plugin_module._loaded.pop(present, None)
    states = {finding.name: (finding.state, finding.detail) for finding in report.findings}
    state, said = states[FLAVOURS[absent].title]
    assert state == "note"
    assert re.search(detail, said)
    assert states[f"{found.title} plugin"] == ("ok", "registers RoutedAttention")
    assert f"{FLAVOURS[absent].title} plugin" not in states
    assert "failed" not in {finding.state for finding in report.findings}


def test_a_version_of_no_flavour_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TensorRT, "version", "9.3.0")
    report = doctor.examine(tmp_path)
    (finding,) = (finding for finding in report.findings if finding.name == "TensorRT plugin")
    assert finding.state == "failed"
    assert "tensorrt 9.3.0 is installed, but vorta-trt needs 10.0 or newer" in finding.detail
