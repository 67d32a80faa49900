# SPDX-License-Identifier: Apache-2.0
"""What a library holds for a GPU, what it misses, and the one warning of it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from vorta_trt.plugins import VortaError, kernel_support, load_library
from vorta_trt.plugins.gpu import Code, ComputeCapability, Device, DriverReport, code_for, native_architecture
from vorta_trt.plugins.kernel_support import code_problem, driver_problem, prepare_gpu, slower_than_possible
from vorta_trt.plugins.library import KernelFamily

GENERIC = KernelFamily(
    "sm80", "same", ComputeCapability(8, 0), ComputeCapability(999, 9), (64, 128, 256), True, ("80",)
)  # fmt: skip
HOPPER = KernelFamily("sm90", "same", ComputeCapability(9, 0), ComputeCapability(9, 0), (64, 128), False, ())
HOPPER8 = KernelFamily("sm90_fp8", "fp8", ComputeCapability(9, 0), ComputeCapability(9, 0), (64, 128), False, ())


def library(*architectures: str, cuda_version: str = "13.0", hopper: bool = False) -> Any:
    special = ("90a-real",) if hopper else ()
    families = (
        KernelFamily(**{**vars(HOPPER), "architectures": special}),
        KernelFamily(**{**vars(HOPPER8), "architectures": special}),
        KernelFamily(**{**vars(GENERIC), "architectures": architectures}),
    )
    return _Library(path="/x/lib.so", cuda_architectures=architectures, cuda_version=cuda_version, families=families)


class _Library(SimpleNamespace):
    __hash__ = object.__hash__

    @property
    def kernel_families(self) -> Any:
        return self.families


def card(capability: str) -> Device:
    return Device("Some GPU", ComputeCapability.parse(capability), 80 << 30)


@pytest.mark.parametrize(
    ("architectures", "capability", "code"),
    [
        (("80",), "8.0", Code.MACHINE),
        (("80",), "8.9", Code.MACHINE),
        (("80",), "9.0", Code.PTX),
        (("80-real",), "9.0", Code.NONE),
        (("80", "90a-real"), "9.0", Code.MACHINE),
        (("90a-real",), "10.0", Code.NONE),
        (("90a-virtual",), "9.0", Code.PTX),
        (("89-real",), "8.6", Code.NONE),
        (("100-real",), "10.3", Code.MACHINE),
        (("100-real", "120-virtual"), "11.0", Code.NONE),
        (("120-real", "120-virtual"), "13.0", Code.PTX),
        ((), "8.0", Code.NONE),
    ],
)
def test_the_code_that_a_gpu_finds(architectures: tuple[str, ...], capability: str, code: Code) -> None:
    assert code_for(architectures, ComputeCapability.parse(capability)) is code


def test_only_hoppers_own_architecture_has_a_letter() -> None:
    names = {text: native_architecture(ComputeCapability.parse(text)) for text in ("8.0", "9.0", "12.0", "10.3")}
    assert names == {"8.0": "80", "9.0": "90a", "12.0": "120", "10.3": "103"}


@pytest.mark.parametrize(
    ("held", "capability", "words"),
    [
        (library("80"), "9.0", ["takes kernels sm80", "sm90)", "fp8 has no kernels", "PTX", '"80;90a-real"']),
        (library("80", "90-real"), "9.0", ["takes kernels sm80", '"80;90a-real"']),
        (library("80", "90a-real", hopper=True), "9.0", []),
        (library("80"), "8.9", []),
        (library("80"), "12.0", ["PTX", '"80;120-real"']),
        (library("80", "120-real"), "12.0", []),
    ],
)
def test_what_is_slower_than_it_could_be(held: Any, capability: str, words: list[str]) -> None:
    said = slower_than_possible(held, card(capability))
    assert (said is None) is (not words)
    assert all(word in str(said) for word in words)


def test_this_library_speaks_of_every_gpu() -> None:
    """The message is made from the real table, too."""
    for text in ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0"):
        slower = slower_than_possible(load_library(), card(text))
        native = code_for(load_library().cuda_architectures, ComputeCapability.parse(text)) is Code.MACHINE
        assert native or (slower is not None and "VORTA_CUDA_ARCHITECTURES" in slower)


def test_a_gpu_without_code() -> None:
    assert code_problem(library("80"), card("9.0")) is None
    assert 'VORTA_CUDA_ARCHITECTURES="80;120-real"' in str(code_problem(library("90a-real"), card("12.0")))
    old = str(code_problem(library("80"), card("7.5")))
    assert "none for this GPU (Some GPU (compute capability 7.5" in old and "8.0" in old


@pytest.mark.parametrize(
    ("built_with", "driver", "words"),
    [
        ("13.0", "13.0", []),
        ("13.0", "13.4", []),
        ("13.4", "13.0", []),  # any minor version of the major one
        ("12.9", "13.0", []),
        ("12.9", "12.4", []),
        ("13.0", "12.9", ["550.54.14 (CUDA 12.9)", "CUDA 13.0", "R580", "cuda-compat-13-0"]),
        ("12.9", "11.8", ["CUDA 12.9", "R525"]),
        ("13.0", None, []),  # no driver: engines are built without one
    ],
)
def test_the_oldest_driver(
    monkeypatch: pytest.MonkeyPatch, built_with: str, driver: str | None, words: list[str]
) -> None:
    monkeypatch.setattr(kernel_support, "driver_version", lambda: "550.54.14")
    said = driver_problem(library("80", cuda_version=built_with), DriverReport((card("8.9"),), driver, None))
    assert (said is None) is (not words)
    assert all(word in str(said) for word in words)


def test_the_first_launch_warns_once_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    report = DriverReport((card("9.0"), card("8.6"), card("12.0")), "13.0", None)
    monkeypatch.setattr(kernel_support, "driver_report", lambda: report)
    held = library("80")
    with caplog.at_level(logging.WARNING):
        for index in (0, 1, 0, 2, 2, 1):
            prepare_gpu(held, index)
    assert [next(c for c in ("9.0", "8.6", "12.0") if f"capability {c}" in text) for text in caplog.messages] == [
        "9.0", "12.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("held", "words"),
    [(library("90a-real"), "none for this GPU"), (library("80", cuda_version="14.0"), "a driver of CUDA 14 or newer")],
)
def test_the_first_launch_refuses_what_cannot_run(monkeypatch: pytest.MonkeyPatch, held: Any, words: str) -> None:
    monkeypatch.setattr(kernel_support, "driver_report", lambda: DriverReport((card("8.6"),), "13.0", None))
    for _ in range(2):  # every time
        with pytest.raises(VortaError, match=words):
            prepare_gpu(held, 0)


def test_without_a_driver_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_support, "driver_report", lambda: DriverReport((), None, "no NVIDIA driver"))
    prepare_gpu(library("80"), 0)
