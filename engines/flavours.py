# SPDX-License-Identifier: Apache-2.0
"""The TensorRT flavours behind one interface: their modules, their abilities on this machine, and how they differ.

| name | package | builds | runs |
| --- | --- | --- | --- |
| rtx | tensorrt_rtx | on any machine, no GPU needed | RTX GPUs: SM75, 80, 86, 89, 12x |
| tensorrt | tensorrt 10, 11 | for the GPU of this machine | the GPU it was built for |
| tensorrt8 | tensorrt 8.6 | for the GPU of this machine, up to SM90, fp16 | the GPU it was built for |
| lean, dispatch | tensorrt_lean, tensorrt_dispatch | no | version-compatible engines of `tensorrt` |
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from vorta_trt.engines.errors import FlavourError
from vorta_trt.engines.gpu import Target
from vorta_trt.engines.logs import LogHub, tensorrt_logger
from vorta_trt.export.names import OPSET_17
from vorta_trt.model.precision import PrecisionName
from vorta_trt.plugins.extras import extra_command
from vorta_trt.plugins.gpu import ComputeCapability, Device, driver_report
from vorta_trt.plugins.operator_schema import BlockOps

logger = logging.getLogger(__name__)

# NVIDIA publishes each package once per CUDA version, and one without a suffix that depends on one of these.
DISTRIBUTION_SUFFIXES = ("", "_cu13", "_cu12", "_cu13_bindings", "_cu12_bindings")


@dataclass(frozen=True)
class Ability:
    """Whether something works on this machine, and why (not)."""

    possible: bool
    reason: str

    def __bool__(self) -> bool:
        return self.possible


class Flavour:
    """Base class of all flavours. TensorRT's module is imported on first use, never at import time of this file."""

    name: str
    package: str
    title: str
    minimum_version: tuple[int, int] = (10, 0)  # the first with IPluginV3 and strongly typed networks
    needs_because = "IPluginV3 plugins"
    install_hint: str
    run_only = False
    builds_without_gpu = False
    has_timing_cache = False
    weakly_typed = False  # TensorRT chooses precisions where it is not told
    newest_opset: int | None = None  # newest ONNX opset that its parser reads; None: newer than what we export
    precisions: tuple[PrecisionName, ...] = ("bf16", "fp16")  # model precisions that it builds, the usual one first
    optimization_level: int | None = None  # default level of a build; None: TensorRT's own default
    # The default form of block operators in a build. TensorRT may fuse native ones with the layers around them. Whether
    # these are then faster than the plugins was measured for TensorRT 8.6 alone.
    block_ops: BlockOps = "native"
    plugin_entry_point = "getCreators"  # function that a plugin library exports
    executed: Mapping[str, str] = {}  # version -> what this project has run with it
    checked: Mapping[str, str] = {}  # version -> what this project compared without running it, and with what

    @property
    def title_and_version(self) -> str:
        """Title and installed version, such as "TensorRT 8.6.0"."""
        return self.title_with(self.version or "")

    def title_with(self, version: str) -> str:
        """Title with a version, such as "TensorRT 8.6.0"; the title alone if `version` is empty."""
        name, _, release = self.title.rpartition(" ")
        return f"{name if name and version.startswith(release) else self.title} {version}".rstrip()

    @cached_property
    def module(self) -> ModuleType:
        """The imported package. Raises FlavourError with the remedy if that fails or the version is too old."""
        if self.version is None:
            raise FlavourError(f'{self.title}: package "{self.package}" is not installed; {self.install_hint}')
        if (wrong := self.wrong_version) is not None:
            raise FlavourError(f"{self.title}: {wrong}; {self.install_hint}")
        try:
            return self._import()
        except (ImportError, OSError, RuntimeError) as error:
            raise FlavourError(
                f"{self.title}: {self.package} {self.version} is installed but cannot be imported ({error}); "
                f"{self.install_hint}"
            ) from error

    def _import(self) -> ModuleType:
        return importlib.import_module(self.package)

    @property
    def wrong_version(self) -> str | None:
        """Why the installed version does not belong to this flavour; None if it does, or if nothing is installed."""
        if self.version is None or self._release >= self.minimum_version:
            return None
        needed = ".".join(map(str, self.minimum_version))
        return (
            f"{self.package} {self.version} is installed, but vorta-trt needs {needed} or newer ({self.needs_because})"
        )

    @property
    def version(self) -> str | None:
        """The installed version, without importing it; None if the package is absent."""
        loaded = sys.modules.get(self.package)
        spec = importlib.util.find_spec(self.package) if loaded is None else None
        if loaded is None and spec is None:
            return None
        for suffix in DISTRIBUTION_SUFFIXES:
            try:
                return importlib.metadata.version(self.package + suffix)
            except importlib.metadata.PackageNotFoundError:
                continue
        if spec is None:
            return getattr(loaded, "__version__", None)
        return None if spec.origin is None else _stated_version(Path(spec.origin))

    @property
    def _release(self) -> tuple[int, int]:
        major, minor = (self.version or "0.0").split(".")[:2]
        return int(major), int(minor)

    @cached_property
    def hub(self) -> LogHub:
        """Receiver of this flavour's log messages."""
        return LogHub(f"vorta_trt.tensorrt.{self.name}")

    @cached_property
    def logger(self) -> Any:
        """This process's one `ILogger` for the flavour, bridged to Python's logging."""
        return tensorrt_logger(self.module, self.hub)

    @property
    def evidence(self) -> str:
        """Which versions this project has executed, and which it only checked."""

        def told(found: Mapping[str, str]) -> str:
            return "; ".join(f"{version} ({what})" for version, what in found.items()) or "nothing"

        return f"executed by this project: {told(self.executed)}; only checked: {told(self.checked)}"

    @property
    def is_executed(self) -> bool:
        """Whether this project has run anything with the installed version."""
        return any(f"{self.version}.".startswith(f"{version}.") for version in self.executed)

    def check_precision(self, precision: str, remedy: str = "use") -> None:
        """Refuses a precision that engines cannot have.

        Args:
            precision: Precision of the model.
            remedy: Words of the error message that precede the right option.

        Raises:
            ValueError: The flavour does not compute in this precision, or the plugin does not in any flavour.
        """
        if precision not in self.precisions:
            fp32 = precision == "fp32"
            why = "the plugin computes in fp16 and bf16" if fp32 else f"{self.title} has none such"
            known = self.precisions[0] if fp32 else " or ".join(self.precisions)
            raise ValueError(f"precision {precision!r}: {why}; {remedy} --precision {known}")

    def can_build(self) -> Ability:
        """Says whether engines can be built here, and why not."""
        if self.run_only:
            return Ability(False, f"{self.title} has no builder; build with rtx or tensorrt")
        try:
            self.module  # noqa: B018  (the import is the check)
        except FlavourError as error:
            return Ability(False, str(error))
        report = driver_report()
        if report.devices and self.builds_without_gpu:
            return Ability(True, f"on {report.devices[0]}")
        if report.devices:  # the engine will run on it
            return self._ability_on(report.devices[0])
        if self.builds_without_gpu:
            return Ability(True, "ahead of time; needs no GPU")
        return Ability(False, f"{self.title} builds for the GPU of the machine, and there is none: {report.reason}")

    def can_run(self, device: int = 0) -> Ability:
        """Says whether engines can run on GPU number `device`, and why not. The number must exist if there are GPUs."""
        try:
            self.module  # noqa: B018
        except FlavourError as error:
            return Ability(False, str(error))
        report = driver_report()
        if not report.devices:
            return Ability(False, str(report.reason))
        return self._ability_on(report.devices[device])

    def _ability_on(self, gpu: Device) -> Ability:
        if not self.supports(gpu.capability):
            return Ability(False, f"{self.title} does not support {gpu}")
        return Ability(True, f"on {gpu}")

    def supports(self, capability: ComputeCapability) -> bool:
        """Whether this flavour runs at all on GPUs of this compute capability."""
        return capability >= ComputeCapability(7, 5)

    def network_flags(self) -> int:
        """Flags for `create_network`: strongly typed, explicit batch."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        # TensorRT 11 and RTX know strongly typed networks only, and keep the flag as a deprecated no-op.
        return 0 if flag is None or self._always_strongly_typed else 1 << int(flag)

    @property
    def _always_strongly_typed(self) -> bool:
        return self._release >= (11, 0)

    def configure(self, config: Any) -> None:
        """Makes the builder settings that every build of this flavour has."""

    def set_target(self, config: Any, capabilities: Sequence[str] | None, compatibility: str | None) -> Target:
        """Tells the builder which GPUs to build for and returns what the engine will run on."""
        raise FlavourError(f"{self.title} has no builder; build with rtx or tensorrt")

    def target(self, capabilities: Sequence[str] | None, compatibility: str | None) -> Target:
        """Returns what `set_target` returns, before there is a build."""
        return self.set_target(self.module.Builder(self.logger).create_builder_config(), capabilities, compatibility)

    def version_problem(self, built_with: str, version_compatible: bool) -> str | None:
        """Why a plan built with `built_with` does not load in the installed version; None if it does."""
        if self.version is None:
            return f"built for {self.title_with(built_with)}, but {self.package} is not installed; {self.install_hint}"
        if self.version == built_with:
            return None
        if version_compatible and built_with.split(".")[0] == self.version.split(".")[0]:
            if self._release >= _release(built_with):
                return None
            return (
                f"built with {self.title_with(built_with)}, and a version-compatible engine loads in that version or a "
                f"newer one, but {self.version} is installed; update {self.package}"
            )
        return (
            f"built with {self.title_with(built_with)}, but {self.version} is installed, and plans load in the version "
            f'that built them only; install "{self.package}=={built_with}" or build the bundle again'
        )


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _stated_version(package: Path) -> str | None:
    """`__version__` in the source of a package that was unpacked without its metadata."""
    found = re.search(r'^__version__ = "([^"]+)"', package.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None


class TensorRTRTX(Flavour):
    """TensorRT for RTX: compiles ahead of time without a GPU, and finishes the kernels on the user's GPU (JIT)."""

    name = "rtx"
    package = "tensorrt_rtx"
    title = "TensorRT-RTX"
    minimum_version = (1, 3)
    install_hint = f"install it with: {extra_command('rtx')}"
    builds_without_gpu = True
    _always_strongly_typed = True
    executed = {"1.7.1": "builds without a GPU; no engine was run"}

    # NVIDIA's "CPU-Only AOT" page: an engine built without a stated target runs on these and on newer GPUs.
    DEFAULT_TARGETS = tuple(map(ComputeCapability.parse, ("8.0", "8.6", "8.9", "12.0")))
    NEWER_THAN = ComputeCapability(12, 0)

    @cached_property
    def targets(self) -> tuple[ComputeCapability, ...]:
        """Compute capabilities that the installed version can build for, read from its `ComputeCapability` enum."""
        names = self.module.ComputeCapability.__members__
        return tuple(sorted(ComputeCapability.parse(name) for name in names if name.startswith("SM")))

    def supports(self, capability: ComputeCapability) -> bool:
        """Whether this flavour runs on GPUs of this compute capability: its targets, or GPUs from `NEWER_THAN` on."""
        return capability in self.targets or capability >= self.NEWER_THAN

    def set_target(self, config: Any, capabilities: Sequence[str] | None, compatibility: str | None) -> Target:
        """Sets where the engine shall run; see the base class."""
        if compatibility is not None:
            raise FlavourError(
                f"hardware_compatibility={compatibility!r}: {self.title} has no such option, its engines are portable "
                "by default; leave it out, or name GPUs with compute_capabilities"
            )
        if not capabilities:
            return Target(self.DEFAULT_TARGETS, and_newer=True)
        if [text.lower() for text in capabilities] == ["current"]:
            return self._target_current(config)
        wanted = sorted({ComputeCapability.parse(text) for text in capabilities})
        if unknown := [str(capability) for capability in wanted if capability not in self.targets]:
            known = ", ".join(map(str, self.targets))
            raise FlavourError(
                f"compute_capabilities: {self.title_and_version} cannot build for {', '.join(unknown)}; "
                f"it knows {known}"
            )
        config.num_compute_capabilities = len(wanted)
        for index, capability in enumerate(wanted):
            if not config.set_compute_capability(getattr(self.module.ComputeCapability, capability.sm), index):
                raise FlavourError(f"compute_capabilities: {self.title_and_version} refused {capability}")
        return Target(tuple(wanted), and_newer=False)

    def _target_current(self, config: Any) -> Target:
        report = driver_report()
        if not report.devices:
            raise FlavourError(
                f'compute_capabilities=["current"] needs a GPU ({report.reason}); name the capabilities instead, '
                "or leave them out for an engine that runs on every RTX GPU since Ampere"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(self.module.ComputeCapability.CURRENT, 0)
        return Target((report.devices[0].capability,), and_newer=False)


class TensorRT(Flavour):
    """TensorRT 10 and 11: tunes for, and builds on, the GPU that will run the engine."""

    name = "tensorrt"
    package = "tensorrt"
    title = "TensorRT"
    install_hint = f"on a machine with an NVIDIA GPU, install it with: {extra_command('tensorrt')}"
    has_timing_cache = True
    checked = {
        "10.0 to 11.1": "the plugin's interface, with the headers",
        "10.13": "names and calls of builder and executor, with its Python stub",
    }

    COMPATIBILITY = {"ampere_plus": "AMPERE_PLUS", "same_compute_capability": "SAME_COMPUTE_CAPABILITY"}

    @property
    def wrong_version(self) -> str | None:
        """Why the installed version does not belong to this flavour; points to `tensorrt8` if it is TensorRT 8.6."""
        wrong = super().wrong_version
        if wrong is None or self._release < TensorRT8.minimum_version or self._release >= TensorRT8.BELOW:
            return wrong
        return f"{wrong}; {TensorRT8.title} is the flavour {TensorRT8.name} (--tensorrt {TensorRT8.name})"

    def set_target(self, config: Any, capabilities: Sequence[str] | None, compatibility: str | None) -> Target:
        """Sets where the engine shall run; see the base class."""
        report = driver_report()
        if not report.devices:
            raise FlavourError(f"{self.title} builds for the GPU of the machine, and there is none: {report.reason}")
        present = report.devices[0].capability
        if capabilities and [ComputeCapability.parse(text) for text in capabilities] != [present]:
            raise FlavourError(
                f"compute_capabilities={list(capabilities)}: {self.title} builds for the GPU it finds "
                f'({report.devices[0]}); leave it out, or use hardware_compatibility="ampere_plus"'
            )
        if compatibility is None:
            return Target((present,), and_newer=False)
        if compatibility not in self.COMPATIBILITY:
            raise FlavourError(f"hardware_compatibility={compatibility!r}: one of {', '.join(self.COMPATIBILITY)}")
        level = getattr(self.module.HardwareCompatibilityLevel, self.COMPATIBILITY[compatibility])
        config.hardware_compatibility_level = level
        if compatibility == "ampere_plus":
            return Target((ComputeCapability(8, 0),), and_newer=True)
        return Target((present,), and_newer=False)


class TensorRT8(TensorRT):
    """TensorRT 8.6, the newest that is complete on PyPI: V2 plugins, weakly typed networks, opset 17, fp16.

    Networks get the types of the ONNX file all the same: see `layer_types`. Builds use optimization level 0 unless told
    otherwise. At this level the builder chooses the kernel of a matrix product in 5 seconds, and the product reaches
    over 800 TFLOP/s on a Hopper GPU. At the default level the choice takes minutes for each product.
    """

    name = "tensorrt8"
    title = "TensorRT 8.6"
    minimum_version = (8, 6)
    BELOW = (9, 0)  # TensorRT 9 was not looked at
    install_hint = "with Python 3.10, on a machine with an NVIDIA GPU, install it with: pip install tensorrt==8.6.0"
    weakly_typed = True
    newest_opset = OPSET_17
    precisions = ("fp16",)
    optimization_level = 0
    # TensorRT 8.6 makes float32 copies for native operators, and its products reach some 210 of an H100's 735 TFLOP/s.
    block_ops: BlockOps = "plugin"
    plugin_entry_point = "getPluginCreators"
    executed = {"8.6.0": "builds, and engines on an H100 and an H200"}
    checked = {"8.6.1": "the plugin's interface, with the headers"}

    COMPATIBILITY = {"ampere_plus": "AMPERE_PLUS"}
    NEWEST_GPU = ComputeCapability(9, 0)

    @property
    def wrong_version(self) -> str | None:
        """Why the installed version does not belong to this flavour; None if it does, or if nothing is installed."""
        if self.version is None or self.minimum_version <= self._release < self.BELOW:
            return None
        return (
            f"{self.package} {self.version} is installed, and this flavour is for 8.6; TensorRT 10 and newer are the "
            f"flavour {TensorRT.name} (--tensorrt {TensorRT.name})"
        )

    def _import(self) -> ModuleType:
        # libnvinfer_plugin needs cuBLAS 12 and cuDNN 8, over 1 GB, and our networks call neither. With lazy binding of
        # symbols, empty libraries of those names are enough (see plugins/README.md).
        flags = sys.getdlopenflags()
        sys.setdlopenflags(os.RTLD_LAZY)
        try:
            return super()._import()
        finally:
            sys.setdlopenflags(flags)

    def supports(self, capability: ComputeCapability) -> bool:
        """Whether this flavour runs on GPUs of this compute capability, up to `NEWEST_GPU`."""
        return super().supports(capability) and capability <= self.NEWEST_GPU

    def network_flags(self) -> int:
        """Gives the flags of a new network."""
        return 1 << int(self.module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)

    def configure(self, config: Any) -> None:
        """Sets what every build of this flavour needs."""
        config.set_flag(self.module.BuilderFlag.FP16)
        config.set_flag(self.module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)  # those that `layer_types` sets
        config.set_tactic_sources(0)  # neither cuBLAS nor cuDNN, which need not be installed


class LeanRuntime(Flavour):
    """The small runtime of TensorRT: runs version-compatible engines, builds nothing."""

    name = "lean"
    package = "tensorrt_lean"
    title = "TensorRT lean runtime"
    install_hint = "install it with: pip install tensorrt-lean"
    run_only = True
    executed: Mapping[str, str] = {
        "10.16": "the plugin's registration, without a GPU",
        "11.4": "the plugin's registration, on an H200",
    }
    checked: Mapping[str, str] = {"11.4": "names and calls of the executor, with its Python bindings"}


class DispatchRuntime(LeanRuntime):
    """The smallest runtime: it loads the lean runtime that a version-compatible plan carries."""

    name = "dispatch"
    package = "tensorrt_dispatch"
    title = "TensorRT dispatch runtime"
    install_hint = "install it with: pip install tensorrt-dispatch"
    executed: Mapping[str, str] = {}
    checked: Mapping[str, str] = {}


FLAVOURS: dict[str, Flavour] = {
    flavour.name: flavour for flavour in (TensorRTRTX(), TensorRT(), TensorRT8(), LeanRuntime(), DispatchRuntime())
}


def get_flavour(name: str) -> Flavour:
    """The flavour called `name`; FlavourError lists the known ones."""
    if name not in FLAVOURS:
        raise FlavourError(f"TensorRT flavour {name!r}: unknown; use one of {', '.join(FLAVOURS)}")
    return FLAVOURS[name]


@dataclass(frozen=True)
class FlavourReport:
    """One line of `vorta-trt doctor`."""

    name: str
    title: str
    package: str
    version: str | None
    build: Ability
    run: Ability


def available_flavours() -> list[FlavourReport]:
    """What every known flavour can do on this machine, and why not."""
    return [FlavourReport(f.name, f.title, f.package, f.version, f.can_build(), f.can_run()) for f in FLAVOURS.values()]
