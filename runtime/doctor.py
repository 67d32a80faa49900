# SPDX-License-Identifier: Apache-2.0
"""Finds out what works on this machine, what does not, and why: the facts behind `vorta-trt doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, computed_field

from vorta_trt.engines.flavours import FLAVOURS, Flavour, available_flavours
from vorta_trt.engines.plugin import load_plugin
from vorta_trt.model.families import families
from vorta_trt.model.write_errors import free_bytes
from vorta_trt.plugins.errors import VortaError, first_cause
from vorta_trt.plugins.gpu import driver_report, driver_version
from vorta_trt.plugins.kernel_support import code_problem, driver_problem, slower_than_possible
from vorta_trt.plugins.library import PluginLibrary, load_library
from vorta_trt.plugins.linear import LINEAR_PRECISIONS, backend, cublaslt_path

PACKAGES = (
    "vorta-trt",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "ml-dtypes",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime",
    "polygraphy",
    "tensorrt-rtx",
    "tensorrt",
    "tensorrt-lean",
    "tensorrt-dispatch",
    "cuda-bindings",
)
EXPORTER_MODULES = (
    "torch.onnx",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "diffusers",
    "accelerate",
    "vorta_trt.export.onnx_export",
)

# Needs of a build in multiples of the weights' bytes: peak memory, and disk for the bundle and its temporary export.
MEMORY_PER_WEIGHTS = 3.0
DISK_PER_WEIGHTS = 2.5

State = Literal["ok", "note", "failed"]


class Finding(BaseModel):
    """One line of the report."""

    section: str
    name: str
    state: State
    detail: str


class DoctorReport(BaseModel):
    """All findings of an examination."""

    findings: list[Finding]
    packages: dict[str, str | None]
    builds_with: list[str]  # flavours that can export and build here
    runs_with: list[str]  # flavours that can run engines here

    @computed_field  # type: ignore[prop-decorator]
    @property
    def can_build(self) -> bool:
        """Whether any TensorRT flavour can build engines here."""
        return bool(self.builds_with)


def examine(folder: Path | None = None) -> DoctorReport:
    """Examines this machine; changes nothing. `folder` is where bundles will be written (default: current folder)."""
    findings = list(_machine(folder or Path.cwd()))
    gpus = list(_gpus())
    findings += gpus
    exporter = _exporter()
    library_findings, library = _library()
    findings += [exporter, *library_findings]
    usable = all(finding.state != "failed" for finding in (*gpus, *library_findings))
    builds, runs = [], []
    for report in available_flavours():
        flavour = FLAVOURS[report.name]
        known: State = "ok" if report.version is None or flavour.is_executed else "note"
        findings.append(
            Finding(section="TensorRT", name=f"{report.title} versions", state=known, detail=flavour.evidence)
        )
        absent = f"not installed; {flavour.install_hint}" if report.version is None else _of_another_flavour(flavour)
        if absent is not None:
            findings.append(Finding(section="TensorRT", name=report.title, state="note", detail=absent))
            continue
        registered = _plugin_in(flavour, library)
        findings.append(registered)
        works = registered.state == "ok"
        for verb, ability in (("builds here", report.build), ("runs here", report.run)):
            state: State = "ok" if ability else "note"
            answer = f"{'yes' if ability else 'no'}, {ability.reason.removeprefix(f'{report.title}: ')}"
            findings.append(Finding(section="TensorRT", name=f"{report.title} {verb}", state=state, detail=answer))
        builds += [report.name] if report.build and works and exporter.state == "ok" else []
        runs += [report.name] if report.run and works and usable else []
    return DoctorReport(findings=findings, packages=_packages(), builds_with=builds, runs_with=runs)


def report_lines(report: DoctorReport) -> Iterator[tuple[State, str]]:
    """The report as lines of text, each with its state."""
    installed = ", ".join(f"{name} {version}" for name, version in report.packages.items() if version)
    yield "ok", f"packages: {installed}"
    if missing := [name for name, version in report.packages.items() if version is None]:
        yield "note", f"not installed: {', '.join(missing)}"
    for finding in report.findings:
        yield finding.state, f"{finding.name}: {finding.detail}"
    if report.builds_with:
        yield "ok", f"vorta-trt can build engines here, with: {', '.join(report.builds_with)}"
    else:
        yield "failed", "vorta-trt cannot build engines here; see the lines above"
    if report.runs_with:
        yield "ok", f"vorta-trt can run engines here, with: {', '.join(report.runs_with)}"
    else:
        yield (
            "note",
            "no TensorRT runs engines here; ONNX Runtime runs exported fp32 and fp16 files on the CPU, by default",
        )


def _machine(folder: Path) -> Iterator[Finding]:
    system = f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPU cores"
    yield Finding(section="machine", name="system", state="ok", detail=system)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = free_bytes(folder)
    yield Finding(
        section="machine", name="memory", state="ok",
        detail=f"{_gib(memory)}; enough to build checkpoints of up to {_gib(memory / MEMORY_PER_WEIGHTS)} of weights",
    )  # fmt: skip
    yield Finding(
        section="machine", name="disk", state="ok",
        detail=f"{folder} does not say how much is free" if free is None else
        f"{_gib(free)} free in {folder}; enough for checkpoints of up to {_gib(free / DISK_PER_WEIGHTS)}",
    )  # fmt: skip


def _gpus() -> Iterator[Finding]:
    report = driver_report()
    version = driver_version() if report.devices else None
    for index, device in enumerate(report.devices):
        detail = f"{device}, CUDA {report.cuda_version} driver{f' {version}' if version else ''}"
        yield Finding(section="GPU", name=f"GPU {index}", state="ok", detail=detail)
    if report.devices:
        yield _attempt("GPU", "torch on the GPU", _torch_on_gpu)
    else:
        yield Finding(section="GPU", name="GPU", state="note", detail=str(report.reason))


def _torch_on_gpu() -> str:
    import torch

    from vorta_trt.runtime.device.device_memory import check_torch

    check_torch(0)
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}"


def _exporter() -> Finding:
    """Imports all modules that an export needs; any exception of a broken installation becomes the finding."""

    def work() -> str:
        for name in EXPORTER_MODULES:
            importlib.import_module(name)
        for family in families():  # diffusers imports a class and its dependencies only on first use
            family.diffusers_transformer()
        return "torch, onnx, onnxscript and diffusers import"

    return _attempt("exporter", "ONNX exporter", work)


def _library() -> tuple[list[Finding], PluginLibrary | None]:
    found: list[PluginLibrary] = []

    def work() -> str:
        library = load_library()
        found.append(library)
        architectures = ", ".join(library.cuda_architectures)
        return (
            f"{library.path}, version {library.version}, ABI {library.abi_hash}, CUDA {library.cuda_version}, kernels "
            f"for {architectures}"
        )

    finding = _attempt("plugin", "plugin library", work)
    if not found:
        return [finding], None
    return [finding, *_library_on_gpus(found[0]), *_products(found[0])], found[0]


def _library_on_gpus(library: PluginLibrary) -> Iterator[Finding]:
    """Findings about what the library cannot do on this machine's GPUs, or does slower than its sources could."""
    report = driver_report()
    if problem := driver_problem(library, report):
        yield Finding(section="plugin", name="driver", state="failed", detail=problem)
    for index, device in enumerate(report.devices):
        name = f"kernels for GPU {index}"
        if problem := code_problem(library, device):
            yield Finding(section="plugin", name=name, state="failed", detail=problem)
        elif slower := slower_than_possible(library, device):
            yield Finding(section="plugin", name=name, state="note", detail=slower)


def _products(library: PluginLibrary) -> Iterator[Finding]:
    """Findings about which library or kernel computes the products of linear layers."""
    try:
        path = cublaslt_path(library)
    except VortaError as error:  # a library of another version may lack the function
        yield Finding(section="products", name="cuBLASLt", state="failed", detail=str(error))
        return
    yield Finding(
        section="products", name="cuBLASLt", state="ok" if path else "note",
        detail=path or f"linear layers take a slower kernel: {backend(library)[1]}",
    )  # fmt: skip
    for precision in LINEAR_PRECISIONS if driver_report().devices else ():
        name, reason = backend(library, precision)
        yield Finding(
            section="products", name=f"linear layers with precision {precision}", state="note" if reason else "ok",
            detail=f"{name}, {reason}" if reason else name,
        )  # fmt: skip


def _plugin_in(flavour: Flavour, library: PluginLibrary | None) -> Finding:
    def work() -> str:
        if library is None:
            raise RuntimeError("there is no plugin library, see above")
        load_plugin(flavour, library.path)
        return "registers RoutedAttention"

    return _attempt("TensorRT", f"{flavour.title} plugin", work)


def _of_another_flavour(flavour: Flavour) -> str | None:
    """The text about a wrong version, if the installed package is the right version for another flavour; else None."""
    others = (other for other in FLAVOURS.values() if other.package == flavour.package)
    return flavour.wrong_version if any(other.wrong_version is None for other in others) else None


def _attempt(section: str, name: str, work: Callable[[], str]) -> Finding:
    """Runs `work` and turns its result, or any exception, into a finding."""
    try:
        return Finding(section=section, name=name, state="ok", detail=work())
    except Exception as error:
        said, cause = f"{error}" or type(error).__name__, first_cause(error)
        detail = said if cause is error else f"{said}; first of all {type(cause).__name__}: {cause}"
        return Finding(section=section, name=name, state="failed", detail=detail)


def _packages() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
