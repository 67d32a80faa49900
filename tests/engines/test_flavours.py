# SPDX-License-Identifier: Apache-2.0
"""The seam between TensorRT flavours; those that are not installed here are played by stand-ins."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vorta_trt.engines import FlavourError, available_flavours, flavours, get_flavour
from vorta_trt.engines.builder import build_engine
from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.flavours import Flavour, TensorRT, TensorRTRTX
from vorta_trt.engines.gpu import Target
from vorta_trt.engines.timing_cache import TimingCache
from vorta_trt.plugins.gpu import ComputeCapability, Device, DriverReport, architectures_cover

HOPPER = Device("H200", ComputeCapability(9, 0), 141 * 2**30)
NO_GPU = DriverReport((), None, "no NVIDIA driver")


def machine(monkeypatch: pytest.MonkeyPatch, *devices: Device) -> None:
    report = DriverReport(devices, "13.0", None) if devices else NO_GPU
    monkeypatch.setattr(flavours, "driver_report", lambda: report)


def installed(monkeypatch: pytest.MonkeyPatch, flavour: Flavour, version: str | None, module: Any = None) -> Any:
    monkeypatch.setattr(type(flavour), "version", version)
    if module is not None:
        monkeypatch.setitem(flavour.__dict__, "module", module)
    return flavour


def test_an_unknown_flavour_lists_the_known_ones(tmp_path: Path) -> None:
    words = "TensorRT flavour 'openvino': unknown; use one of rtx, tensorrt, tensorrt8, lean, dispatch"
    with pytest.raises(FlavourError, match=words):
        get_flavour("openvino")
    with pytest.raises(FlavourError, match=words):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.bundle", tensorrt="openvino")


def test_rtx_builds_here() -> None:
    reports = {report.name: report for report in available_flavours()}
    assert list(reports) == ["rtx", "tensorrt", "tensorrt8", "lean", "dispatch"]
    assert reports["rtx"].build and reports["rtx"].version
    for name in ("lean", "dispatch"):
        assert not reports[name].build and "has no builder" in reports[name].build.reason


def test_abilities_without_and_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = TensorRTRTX()
    machine(monkeypatch)
    assert rtx.can_build() and "needs no GPU" in rtx.can_build().reason
    assert not rtx.can_run() and rtx.can_run().reason == "no NVIDIA driver"
    machine(monkeypatch, HOPPER)
    assert not rtx.can_run() and "TensorRT-RTX does not support H200 (compute capability 9.0" in rtx.can_run().reason
    tensorrt = installed(monkeypatch, TensorRT(), "10.14.1", SimpleNamespace())
    assert tensorrt.can_build() and tensorrt.can_run()
    machine(monkeypatch)
    assert "builds for the GPU of the machine, and there is none" in tensorrt.can_build().reason


def test_a_missing_package_and_one_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = installed(monkeypatch, TensorRT(), None)
    assert '"tensorrt" is not installed; on a machine' in missing.can_build().reason
    old = installed(monkeypatch, TensorRT(), "8.6.0")
    assert "tensorrt 8.6.0 is installed, but vorta-trt needs 10.0 or newer" in old.can_build().reason
    stub = installed(monkeypatch, TensorRT(), "11.4.0")  # metadata without a module
    monkeypatch.setattr(stub, "package", "tensorrt_that_is_a_stub")
    assert "is installed but cannot be imported" in stub.can_build().reason


@pytest.mark.parametrize(
    ("name", "version", "title"),
    [("tensorrt8", "8.6.0", "TensorRT 8.6.0"), ("tensorrt", "11.4.1", "TensorRT 11.4.1"), ("rtx", "", "TensorRT-RTX")],
)
def test_titles_name_a_version_once(name: str, version: str, title: str) -> None:
    assert get_flavour(name).title_with(version) == title


def test_building_with_a_flavour_that_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="tensorrt='lean': TensorRT lean runtime has no builder"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.bundle", tensorrt="lean")


def test_network_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))
    assert installed(monkeypatch, TensorRT(), "10.8.0", flag).network_flags() == 1 << 1
    assert installed(monkeypatch, TensorRT(), "11.4.0", flag).network_flags() == 0
    assert TensorRTRTX().network_flags() == 0


@pytest.mark.parametrize(
    ("built_with", "here", "compatible", "words"),
    [
        ("10.8.0.43", "10.8.0.43", False, None),
        ("10.8.0.43", "10.9.0.34", False, "plans load in the version that built them only"),
        ("10.8.0.43", "10.9.0.34", True, None),
        ("10.9.0.34", "10.8.0.43", True, "loads in that version or a newer one"),
        ("10.9.0.34", "11.4.0.1", True, "plans load in the version that built them only"),
        ("10.9.0.34", None, False, "tensorrt is not installed"),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch, built_with: str, here: str | None, compatible: bool, words: str | None
) -> None:
    problem = installed(monkeypatch, TensorRT(), here).version_problem(built_with, compatible)
    assert (problem is None) == (words is None)
    assert words is None or words in str(problem)


# --- Targets -----------------------------------------------------------------


def test_tensorrt_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    level = Enum("level", ["AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"])
    module = SimpleNamespace(HardwareCompatibilityLevel=level)
    tensorrt = installed(monkeypatch, TensorRT(), "10.8.0", module)
    config = SimpleNamespace()
    machine(monkeypatch)
    with pytest.raises(FlavourError, match="there is none: no NVIDIA driver"):
        tensorrt.set_target(config, None, None)
    machine(monkeypatch, HOPPER)
    assert tensorrt.set_target(config, None, None) == Target((HOPPER.capability,), and_newer=False)
    assert tensorrt.set_target(config, ["sm_90"], None).covers(HOPPER.capability)
    with pytest.raises(FlavourError, match=r"\['8.9'\].*builds for the GPU it finds"):
        tensorrt.set_target(config, ["8.9"], None)
    with pytest.raises(FlavourError, match="hardware_compatibility='turing': one of ampere_plus"):
        tensorrt.set_target(config, None, "turing")
    target = tensorrt.set_target(config, None, "ampere_plus")
    assert config.hardware_compatibility_level is level["AMPERE_PLUS"]
    assert target.covers(ComputeCapability(8, 6)) and not target.covers(ComputeCapability(7, 5))


def test_rtx_current_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ada = Device("RTX 4090", ComputeCapability(8, 9), 24 * 2**30)
    machine(monkeypatch, ada)
    chosen: list[tuple[Any, int]] = []
    config = SimpleNamespace(
        num_compute_capabilities=0, set_compute_capability=lambda capability, index: chosen.append((capability, index))
    )
    rtx = TensorRTRTX()
    assert rtx.set_target(config, ["current"], None) == Target((ada.capability,), and_newer=False)
    assert chosen == [(rtx.module.ComputeCapability.CURRENT, 0)]


@pytest.mark.parametrize("text", ["8.9", "89", "sm_89", "SM89"])
def test_capabilities_are_read_in_every_spelling(text: str) -> None:
    capability = ComputeCapability.parse(text)
    assert capability == ComputeCapability(8, 9) and str(capability) == "8.9" and capability.sm == "SM89"
    assert ComputeCapability.parse("120") == ComputeCapability(12, 0)


@pytest.mark.parametrize("text", ["", "ada", "8.9.1", "9", "sm_"])
def test_other_capabilities_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="compute capability"):
        ComputeCapability.parse(text)


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        (["80"], "8.0", True),
        (["80"], "12.0", True),  # PTX
        (["80-real"], "8.9", True),
        (["80-real"], "9.0", False),
        (["89-real"], "8.6", False),
        (["90a-real"], "9.0", True),
        (["90a-real"], "10.0", False),
        (["90a"], "10.0", False),  # the PTX of an architecture-specific target runs nowhere else
        (["80-virtual"], "7.5", False),
        (["80-real", "120-virtual"], "12.1", True),
    ],
)
def test_kernels_for_a_gpu(architectures: list[str], capability: str, covered: bool) -> None:
    assert architectures_cover(architectures, ComputeCapability.parse(capability)) == covered


# --- Timing cache ------------------------------------------------------------


class FakeConfig:
    """A builder config whose cache is the bytes it was made of, and refuses foreign ones."""

    def create_timing_cache(self, data: bytes) -> SimpleNamespace:
        return SimpleNamespace(data=data, serialize=lambda: data + b"+timings")

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        return not cache.data.startswith(b"foreign")


def test_the_timing_cache_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "timing.cache"
    for expected in (b"+timings", b"+timings+timings"):
        cache = TimingCache.attach(TensorRT(), FakeConfig(), path)
        assert cache is not None
        cache.save()
        assert path.read_bytes() == expected
    assert [file.name for file in path.parent.iterdir()] == ["timing.cache"]


def test_a_foreign_timing_cache_is_started_afresh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"foreign")
    cache = TimingCache.attach(TensorRT(), FakeConfig(), path)
    assert cache is not None and "made by another TensorRT or GPU" in caplog.text
    cache.save()
    assert path.read_bytes() == b"+timings"
