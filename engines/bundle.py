# SPDX-License-Identifier: Apache-2.0
"""An engine bundle on disk: opening it, and every check that can be made before the GPU is touched."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.engines import fp8
from vorta_trt.engines.engine_key import EngineKey, choose
from vorta_trt.engines.errors import BundleError, FlavourError, SelectionError
from vorta_trt.engines.flavours import Flavour, TensorRTRTX, get_flavour
from vorta_trt.engines.gpu import Target
from vorta_trt.engines.hashed_file import hash_file
from vorta_trt.engines.manifest import MANIFEST, PIPELINE, EngineFiles, Manifest, read_manifest
from vorta_trt.engines.shared_plan import open_plan, plan_bytes
from vorta_trt.model.files import absence, check_sources, make_way, new_folder
from vorta_trt.model.model_index import MODEL_INDEX
from vorta_trt.model.video_size import VideoSize
from vorta_trt.model.write_errors import WriteError
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.gpu import ComputeCapability, Device, driver_report
from vorta_trt.plugins.kernel_support import code_problem, driver_problem
from vorta_trt.plugins.library import PluginLibrary, load_library

if TYPE_CHECKING:
    from vorta_trt.model.route_calibration import RouteCalibration

logger = logging.getLogger(__name__)


class Bundle:
    """A folder with a manifest. Nothing is loaded into TensorRT here; `runtime.Engine` does that.

    A bundle has one engine for every component and video size that it was built for. The properties of an opened bundle
    describe its first engine; `select` returns a view whose properties describe another one.

    Attributes:
        path: The folder.
        manifest: Manifest of the selected engine. An opened bundle has the whole manifest here, whose top-level fields
            describe the first engine.
        whole: Manifest of the whole bundle, with all engines.
    """

    def __init__(self, path: Path, manifest: Manifest, whole: Manifest | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.whole = manifest if whole is None else whole

    @property
    def engines(self) -> tuple[EngineKey, ...]:
        """Component and size of every engine, in the manifest's order. Every view of the bundle returns the same."""
        return self.whole.keys

    @property
    def key(self) -> EngineKey:
        """Component and size of the selected engine."""
        return self.manifest.key

    def select(self, component: str | None = None, size: str | VideoSize | None = None) -> Bundle:
        """Returns a view of one engine, whose `manifest` describes that engine alone.

        Args:
            component: "transformer", "transformer_2", or a graph of a part such as "vae_decoder_first". None takes the
                component of this view; an opened bundle is a view of its first engine.
            size: Video size, such as "81x480x832". None takes the size of this view.

        Raises:
            SelectionError: There is no such engine; the message says which there are.
            ValueError: `size` is no size.
        """
        component = self.key.component if component is None else component
        if any(record.component == component for record in self.whole.parts):
            wanted = self.key.size if size is None else str(VideoSize.parse(str(size)))
            return self._part(component, wanted)
        index = choose(self.path, self.engines, component, self.key.size if size is None else size)
        return Bundle(self.path, self.whole.of(index), self.whole)

    def _part(self, component: str, size: str | None) -> Bundle:
        for index, record in enumerate(self.whole.parts):
            if record.component == component and (record.size is None or size in (None, record.size)):
                return Bundle(self.path, self.whole.of_part(index), self.whole)
        raise SelectionError(
            f"size {size}: {self.path} holds no {component} of it; use one of its sizes, or build it again with "
            f"--size {size} as well"
        )

    @property
    def pipeline_path(self) -> Path | None:
        """The pipeline folder that the bundle carries, without weights; None if the bundle was built without it."""
        return self.path / PIPELINE if f"{PIPELINE}/{MODEL_INDEX}" in self.whole.files else None

    def views(self) -> list[Bundle]:
        """One view per engine, in the manifest's order."""
        return [Bundle(self.path, self.whole.of(index), self.whole) for index in range(len(self.engines))]

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True, runtime: bool = True) -> Bundle:
        """Opens a bundle and checks that it is whole and fits this machine.

        Args:
            path: The folder.
            verify: Hash every file (about a second per gigabyte); otherwise only their sizes are compared.
            runtime: Check flavour, version, GPU and plugin too; leave it out to look at a bundle made for another
                machine.

        Raises:
            FileNotFoundError: There is no such folder.
            BundleError: It is damaged or does not fit; the message names every mismatch.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: {absence(path, 'no such bundle')}; build it: vorta-trt build model.onnx -o {path.name}"
            )
        if not (path / MANIFEST).is_file():
            raise BundleError(
                path, [f"is not a bundle: it has no {MANIFEST}; give the folder that `vorta-trt build` wrote"]
            )
        manifest, problems = read_manifest(path / MANIFEST)
        if manifest is None:
            raise BundleError(path, problems)
        bundle = cls(path.resolve(), manifest)
        problems += bundle.check_files(hashes=verify)
        if runtime:
            problems += bundle.check_runtime()
        if problems:
            raise BundleError(path, problems)
        return bundle

    @property
    def names(self) -> EngineFiles:
        """File names of the selected engine."""
        return self.manifest.own_names

    @property
    def plan_path(self) -> Path:
        """File of the serialized engine, or only of the bytes that `plan_base` lacks; `open_plan` gives all bytes."""
        return self.path / self.names.plan

    @property
    def plan_base(self) -> Path | None:
        """Plan that holds the other bytes of this engine; None if `plan_path` holds all of them."""
        return None if self.names.shared_with is None else self.path / self.names.shared_with

    @property
    def plan_bytes(self) -> int:
        """Size of the serialized engine."""
        return plan_bytes(self.plan_path, self.plan_base)

    def open_plan(self) -> AbstractContextManager[mmap]:
        """Returns a context manager that gives the bytes of the serialized engine."""
        return open_plan(self.plan_path, self.plan_base)

    @property
    def onnx_path(self) -> Path | None:
        """The ONNX file, if the bundle was built with include_onnx."""
        return self._optional(self.names.onnx)

    @property
    def layers_path(self) -> Path | None:
        """The layer graph that `inspect` draws, if the bundle has one."""
        return self._optional(self.names.layers)

    @property
    def timestep_path(self) -> Path | None:
        """Weights of the timestep embedder and the routers (see `model.timestep_path`); older bundles have none."""
        return self._optional(self.names.timestep_path)

    @property
    def route_override_path(self) -> Path | None:
        """Calibrated routes (see `model.route_calibration`), if the bundle was built with some."""
        return self._optional(self.names.route_override)

    @property
    def refit_path(self) -> Path | None:
        """File of the weights that the engine gets after its plan is loaded (see `refit`); None if there is none."""
        return None if self.names.refit is None else self.path / self.names.refit

    def _optional(self, name: str) -> Path | None:
        return self.path / name if name in self.manifest.files else None

    def route_override(self) -> RouteCalibration | None:
        """The calibrated routes, None if there are none; BundleError if they are not readable."""
        from vorta_trt.model.route_calibration import RouteCalibration

        if self.route_override_path is None:
            return None
        try:
            return RouteCalibration.load(self.route_override_path)
        except (ValueError, OSError) as error:
            raise BundleError(self.path, [str(error)]) from error

    @property
    def flavour(self) -> Flavour:
        """The TensorRT that the engine was built with; FlavourError for an unknown one."""
        return get_flavour(self.manifest.engine.flavour)

    def plugin_library(self, device: int = 0) -> PluginLibrary | None:
        """Finds the library to load for this engine: the installed one if its ABI fits, else the bundle's own.

        Args:
            device: Number of the GPU.

        Returns:
            None if the engine has no plugin.

        Raises:
            BundleError: Neither fits.
        """
        library, problems = self._find_plugin(device)
        if problems:
            raise BundleError(self.path, problems)
        return library

    def check_files(self, hashes: bool = True) -> list[str]:
        """What is wrong with the files of all engines: missing, of another size, or (with `hashes`) other content."""
        problems = []
        for name, entry in self.whole.files.items():
            file = self.path / name
            if not file.is_file():
                problems.append(f"{name} is missing; copy the whole folder again, or build it again")
            elif (size := file.stat().st_size) != entry.bytes:
                how = "is cut short" if size < entry.bytes else "has grown"
                problems.append(f"{name} {how}: {size} bytes instead of {entry.bytes}; copy or build it again")
            elif hashes and hash_file(file).sha256 != entry.sha256:
                problems.append(f"{name} was changed: its SHA-256 differs from the manifest's; copy or build it again")
        return problems

    def check_runtime(self, device: int = 0) -> list[str]:
        """Says what keeps the engine from running here: flavour, version, GPU, plugin ABI and kernels.

        Args:
            device: Number of the GPU, if there is one.
        """
        engine = self.manifest.engine
        try:
            flavour = self.flavour
        except FlavourError as error:
            return [str(error)]
        problems = []
        if problem := flavour.version_problem(engine.version, engine.version_compatible):
            problems.append(problem)
        target = Target(tuple(map(ComputeCapability.parse, engine.compute_capabilities)), engine.and_newer)
        gpu = _gpu(device)
        if gpu is not None and not target.covers(gpu.capability):
            built_for = ", ".join(engine.compute_capabilities) + (" and newer" if engine.and_newer else "")
            which = f"cuda:{device}" if device else "this GPU"
            problems.append(
                f"built for compute capability {built_for}, but {which} is {gpu}; build for it with "
                f"{self._remedy_for(gpu.capability)}"
            )
        if gpu is not None:
            problems += fp8.run_problems(self.manifest.attention_precision, gpu)
        return problems + self._find_plugin(device)[1]

    def _remedy_for(self, capability: ComputeCapability) -> str:
        flavour = self.flavour
        if isinstance(flavour, TensorRTRTX) and flavour.version and flavour.supports(capability):
            if capability in flavour.targets:
                return f"--compute-capability {capability}"
            return "--tensorrt rtx and without --compute-capability, so that it runs on newer GPUs"
        return "--tensorrt tensorrt on a machine with that GPU"

    def _find_plugin(self, device: int) -> tuple[PluginLibrary | None, list[str]]:
        needed = self.manifest.plugin
        if needed is None:
            return None, []
        problems = []
        try:
            library = load_library()
            if library.abi_hash == needed.abi_hash:
                return library, _kernel_problems(library, device)
            problems.append(
                f"built with plugin ABI {needed.abi_hash} (libvorta_trt {needed.library_version}), but {library.path} "
                f"has {library.abi_hash} ({library.version}); build the bundle again, or install that version"
            )
        except VortaError as error:
            problems.append(str(error))
        own = self.path / needed.library
        if not needed.included or not own.is_file():
            return None, problems
        try:
            library = PluginLibrary(own)
        except VortaError as error:
            return None, [*problems, str(error)]
        if library.abi_hash != needed.abi_hash:
            return None, [*problems, f"{own} has plugin ABI {library.abi_hash}, too"]
        logger.info("%s: using the bundle's own plugin library; the installed one does not fit (%s)", own, problems[0])
        return library, _kernel_problems(library, device)


def check_new_bundle(path: Path, overwrite: bool, sources: Iterable[str | Path | None] = ()) -> None:
    """Raises WriteError unless `path` is free, or a bundle that may be replaced.

    Args:
        path: Folder of the bundle.
        overwrite: Whether an existing bundle may be replaced.
        sources: Files that the bundle is made from. Replacing the old bundle must not delete any of them; see
            `check_sources`.
    """
    make_way(path)
    if not path.exists():
        return
    if not (path / MANIFEST).is_file():
        raise WriteError(path, errno.EEXIST, f"exists and is not a bundle (no {MANIFEST}); give another path")
    if not overwrite:
        raise WriteError(
            path, errno.EEXIST, "this bundle exists; pass overwrite=True (--overwrite) or give another path"
        )
    check_sources(path, sources)


@contextmanager
def new_bundle(path: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder that becomes the bundle when the block ends without an error; see `new_folder`."""
    check_new_bundle(path, overwrite)
    with new_folder(path, replaces=MANIFEST if overwrite else None) as folder:
        yield folder


def _kernel_problems(library: PluginLibrary, device: int) -> list[str]:
    gpu = _gpu(device)
    if gpu is None:
        return []
    found = (driver_problem(library, driver_report()), code_problem(library, gpu))
    return [problem for problem in found if problem]


def _gpu(number: int) -> Device | None:
    devices = driver_report().devices
    return devices[number] if number < len(devices) else None
