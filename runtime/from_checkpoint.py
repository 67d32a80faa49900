# SPDX-License-Identifier: Apache-2.0
"""Makes an ONNX file or a bundle from a checkpoint in one call, without loading all weights into memory.

The model is loaded without its weights (`materialize=False`), the exporter copies them one by one from disk to disk,
and TensorRT streams the plan. So the peak memory is that of TensorRT itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.engines.bundle import Bundle, check_new_bundle
from vorta_trt.engines.description import check_kernel_limits
from vorta_trt.engines.engine_key import EngineKey, check_grid
from vorta_trt.engines.flavours import get_flavour
from vorta_trt.engines.fp8 import check_build as check_fp8_build
from vorta_trt.engines.fp8 import check_linears
from vorta_trt.engines.plan import BuildOptions
from vorta_trt.engines.plugin import load_plugin
from vorta_trt.export.names import OPSET, OPSET_17, check_name, component_file
from vorta_trt.export.onnx_file import data_file, part_files
from vorta_trt.model.constants import DEFAULT_TAU, TRANSFORMER
from vorta_trt.model.experts import steps_of_experts
from vorta_trt.model.files import check_output, check_space, new_file
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.linear_choice import DEFAULT
from vorta_trt.model.lora.spec import LoraSpec
from vorta_trt.model.pipeline_folder import pipeline_files
from vorta_trt.model.precision import PRECISIONS, torch_dtype
from vorta_trt.model.unfinished import temporary_folder
from vorta_trt.model.video_size import VideoSize

if TYPE_CHECKING:
    from vorta_trt.engines.progress import BuildProgress, ProgressCallback
    from vorta_trt.export.pipeline_parts import PipelineParts
    from vorta_trt.model import RoutedTransformer
    from vorta_trt.model.calibration.linears import LinearCalibration
    from vorta_trt.model.route_calibration import RouteCalibration
    from vorta_trt.model.route_table import RouteTable

logger = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""


@dataclass(frozen=True)
class Source:
    """A transformer of a checkpoint, and how to export it.

    Args:
        checkpoint: A diffusers pipeline folder, its transformer/ folder, or weights in another layout; see
            `model.checkpoint_place`.
        component: "transformer", or "transformer_2" for the second of two experts.
        router: A router's training folder or router.pt; None leaves every head full.
        size: Size of the video. None takes the size that the router was trained for, or without a router that of
            `route_override`. A router depends on the timestep alone, so it works at any size. At another size than it
            was trained for, tiles and buckets are chosen anew, and a warning says so.
        precision: "fp32", "fp16" or "bf16".
        tau: Default routing threshold of the exported model.
        attention_precision: "same" or "fp8", see `RoutedTransformer`.
        opset: Opset of the exported ONNX file, see `export_onnx`; `build_checkpoint` takes the one that its TensorRT
            reads.
        route_override: A file of `vorta-trt calibrate`; its routes take precedence over the router's.
        linear_precision: "same" or "fp8", see `RoutedTransformer`.
        linear_keep: Patterns of the linear layers without fp8 products, see `RoutedTransformer`.
        linear_calibration: A file of `vorta-trt calibrate --linear-output`. Its sensitive layers get no fp8 products
            either, and its input scales are used.
        linear_error_limit: A layer of `linear_calibration` is sensitive if its error is above this limit; None takes
            `linears.ERROR_LIMIT`.
        variant: Variant in the names of the weight files, as in diffusers.
        lora: LoRA files that are fused into the weights.
        ulysses: Number of GPUs that share a pass of an exported file or an engine, see `export_onnx`.
    """

    checkpoint: Path
    router: Path | None = None
    size: VideoSize | None = None
    precision: str = "bf16"
    tau: float | None = None
    attention_precision: str = "same"
    opset: int = OPSET
    route_override: Path | None = None
    variant: str | None = None
    lora: tuple[LoraSpec, ...] = ()
    component: str = TRANSFORMER
    linear_precision: str = "same"
    linear_keep: tuple[str, ...] | None = None
    linear_calibration: Path | None = None
    linear_error_limit: float | None = None
    ulysses: int = 1

    def calibrated_routes(self) -> RouteCalibration | None:
        """The content of `route_override`; raises ValueError if it is damaged. `model` checks that it fits."""
        from vorta_trt.model.route_calibration import RouteCalibration

        return None if self.route_override is None else RouteCalibration.load(self.route_override)

    def model(self, *, materialize: bool = False) -> RoutedTransformer:
        """The routed transformer; unless `materialize`, its weights are left on disk."""
        from vorta_trt.model import CheckpointReader, RoutedTransformer, load_router
        from vorta_trt.model.calibration.linears import LinearCalibration

        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: must be one of {', '.join(PRECISIONS)}")
        with CheckpointReader(self.checkpoint, self.component, variant=self.variant) as reader:
            component = self.component if len(reader.experts) > 1 else None
            family, config = reader.family, reader.config
        router = None if self.router is None else load_router(self.router)
        # A router of another family cannot be read with this config; `from_pretrained` refuses it below.
        trained = None if router is None else router.geometry(config if router.family == family else None)
        calibrated = self.calibrated_routes()
        if router is None and self.size is None and calibrated is not None:
            trained = calibrated.geometry
        measured = None if self.linear_calibration is None else LinearCalibration.load(self.linear_calibration)
        if measured is not None:
            measured.check(family, component)
        model = RoutedTransformer.from_pretrained(
            self.checkpoint,
            router,
            self.geometry(family, config, trained),
            DEFAULT_TAU if self.tau is None else self.tau,
            torch_dtype(self.precision),
            lora=self.lora,
            component=self.component,
            materialize=materialize,
            attention_precision=self.attention_precision,
            linear_precision=self.linear_precision,
            linear_keep=self._kept_linears(measured),
            variant=self.variant,
        )
        if measured is not None:
            model.input_scales = {**model.input_scales, **measured.input_scales()}
        if calibrated is not None:
            name = model.checkpoint_name
            calibrated.check(family, model.num_layers, model.num_heads, model.geometry, component, name)
        return model

    def _kept_linears(self, measured: LinearCalibration | None) -> tuple[str, ...] | None:
        """Patterns of the linear layers that stay out of fp8, including those that a calibration found sensitive."""
        from vorta_trt.model.calibration.linears import ERROR_LIMIT

        if measured is None:
            if self.linear_error_limit is not None:
                raise ValueError(
                    f"linear_error_limit {self.linear_error_limit:g}: is for the errors of a linear_calibration; give "
                    f"one, or leave it out"
                )
            return self.linear_keep
        limit = ERROR_LIMIT if self.linear_error_limit is None else self.linear_error_limit
        return (*(self.linear_keep or (DEFAULT,)), *measured.sensitive(limit))

    def geometry(self, family: str, config: Mapping[str, Any], trained: AttentionGeometry | None) -> AttentionGeometry:
        """The geometry to export: the router's, or one for the size; raises ValueError if the size is unknown."""
        if self.size is None:
            if trained is None:
                what = "there is no router" if self.router is None else f"{self.router} has no config.json"
                raise ValueError(f"size: {what}, so the video size is unknown; give it, e.g. --size 77x720x1280")
            return trained
        size = self.size.frames, self.size.height, self.size.width
        wanted = AttentionGeometry.for_video(*size, family, config=config)
        if trained is None:
            return wanted
        if trained.grid == wanted.grid:
            return trained
        _warn_once(
            f"size {self.size}: has token grid {wanted.grid}, and router {self.router} was trained for {trained.grid}; "
            f"its choices are used with {wanted}"
        )
        return wanted


@cache
def _warn_once(message: str) -> None:
    """Logs a warning once in a process, since a source makes its model for the plan, and again to run it."""
    logger.warning("%s", message)


def at_sizes(source: Source, sizes: Sequence[VideoSize]) -> list[Source]:
    """Copies of a source for each size of a bundle of several sizes.

    Args:
        source: The source. Its calibrated routes go to the size that they were measured at.
        sizes: The sizes; if empty, the source stays as it is.

    Raises:
        ValueError: The calibrated routes were measured at another size.
    """
    from vorta_trt.model import CheckpointReader

    made = [replace(source, size=size) for size in sizes] or [source]
    calibrated = source.calibrated_routes()
    if len(made) == 1 or calibrated is None:
        return made
    with CheckpointReader(source.checkpoint, source.component, variant=source.variant) as reader:
        family, config = reader.family, reader.config
    fits = {each: each.geometry(family, config, None).grid == calibrated.geometry.grid for each in made}
    if not any(fits.values()):
        raise ValueError(
            f"route_override {source.route_override}: has routes of token grid {calibrated.geometry.grid}, which is "
            f"that of none of the sizes {', '.join(map(str, sizes))}; calibrate at one of them, or leave it out"
        )
    return [each if fit else replace(each, route_override=None) for each, fit in fits.items()]


def export_checkpoint(
    source: Source | Sequence[Source], path: Path, report: Report, *, parts: Sequence[str] = ()
) -> Path:
    """Exports to an .onnx file.

    Args:
        source: The source to export, or the sources of two experts. The first expert is written to `path`, the second
            to a file beside it (`component_file`). Either both files are written or none.
        path: The output file, whose suffix must be .onnx. An existing file is replaced once the new one is complete.
        report: Progress callback.
        parts: VAE and text encoders to export beside it, see `PipelineParts`; all files are written or none.

    Raises:
        ValueError: The path, or the file that it links to, has another suffix, which is found before anything is
            loaded; or loading, `export_onnx` or `PipelineParts` raises it.
        WriteError: A file cannot be written.
    """
    sources = [source] if isinstance(source, Source) else list(source)
    for file in [path if len(sources) == 1 else component_file(path, each.component) for each in sources]:
        check_name(file)
        check_output(file)
    report("loading the checkpoint", 0, 0)
    models = [each.model() for each in sources]  # all models are checked before any file is written
    check_one_video(models)
    further_parts = _pipeline_parts(sources[:1], models, parts)
    stale = list(part_files(path).values()) if path.is_file() else []
    if len(sources) == 1 and not further_parts and not stale:
        show = _export_progress(report)
        return _export(models[0], path, sources[0], show)
    target = Path(os.path.realpath(path))
    graphs = [name for each in further_parts for name in each.graph_names()]
    further = [component_file(target, name) for name in (*(each.component for each in sources[1:]), *graphs)]
    further += [target.with_name(file.name) for file in stale if target.with_name(file.name) not in further]
    companions = [data_file(target).name, *(name for file in further for name in (file.name, data_file(file).name))]
    item = torch_dtype(sources[0].precision).itemsize
    size = sum(each.numel() * min(item, each.itemsize) for model in models for each in model.parameters())
    size += sum(each.weight_bytes() for each in further_parts)
    with new_file(path, *companions, size=size) as stage:
        for each, made in zip(sources, models, strict=True):
            file, show = component_file(stage, each.component), _export_progress(report, f"{each.component}, ")
            _export(made, file, each, show)
        for pipeline in further_parts:
            for graph, metadata in pipeline.graphs():
                show = _export_progress(report, f"{graph.name}, ")
                pipeline.export(component_file(stage, graph.name), graph, metadata, show)
    return path


def _export(model: RoutedTransformer, path: Path, source: Source, progress: Report) -> Path:
    """Exports the model of a source to a file."""
    from vorta_trt.export import export_onnx

    return export_onnx(model, path, source.precision, opset=source.opset, ulysses=source.ulysses, progress=progress)


def _pipeline_parts(
    sources: Sequence[Source], models: Sequence[RoutedTransformer], parts: Sequence[str], opset: int | None = None
) -> list[PipelineParts]:
    """The VAE and text encoders to export, for each video size of the sources."""
    from vorta_trt.export.pipeline_parts import PipelineParts

    if not parts:
        return []
    made: dict[str, PipelineParts] = {}
    for source, model in zip(sources, models, strict=False):
        if (size := _key(source, model).size) not in made and size is not None:
            made[size] = PipelineParts(
                source.checkpoint,
                VideoSize.parse(size),
                parts,
                source.precision,
                opset=opset or source.opset,
                variant=source.variant,
            )
    return list(made.values())


def route_tables(sources: Sequence[Source], timesteps: Sequence[float]) -> dict[str, RouteTable]:
    """The route tables of a schedule by component; each of two experts has the routes of its own steps."""
    from vorta_trt.model.timestep_path import TimestepPath

    models = {source.component: (source, source.model()) for source in sources}
    check_one_video([model for _, model in models.values()])
    ratio = next(model.boundary_ratio for _, model in models.values())
    tables = {}
    for component, steps in steps_of_experts(timesteps, ratio).items():
        source, model = models[component]
        part, calibrated = timesteps[steps.start : steps.stop], source.calibrated_routes()
        override = None if calibrated is None else calibrated.overrides(part)  # [P, L, N]
        tables[component] = TimestepPath.from_model(model).route_table(part, route_override=override)
    return tables


def check_one_video(models: Sequence[RoutedTransformer]) -> None:
    """Raises ValueError unless all models have the same geometry, as both experts must."""
    geometries = list(dict.fromkeys(model.geometry for model in models))
    if len(geometries) > 1:
        raise ValueError(
            f"size: the experts would have the geometries {' and '.join(map(str, geometries))}, for which their "
            f"routers were trained; give a size for both, e.g. --size 81x720x1280, and routers that were trained alike"
        )


def build_checkpoint(
    sources: Source | Sequence[Source],
    bundle: Path,
    report: Report,
    *,
    tensorrt: str = "rtx",
    parts: Sequence[str] = (),
    keep_pipeline: bool = False,
    **options: Any,
) -> Bundle:
    """Exports into a temporary folder beside the bundle, and builds the engines from there, one after the other.

    An exported file is deleted as soon as its engine is built, so that the disk holds one such file at a time.

    Args:
        sources: The sources of the bundle, one for each engine.
        bundle: The bundle folder to write.
        report: Progress callback.
        tensorrt: The TensorRT flavour, as for `build_engine`.
        parts: VAE and text encoders to build as well, see `PipelineParts`.
        keep_pipeline: Whether to put tokenizers, scheduler and configs of the pipeline folder into the bundle.
        options: Further options of `build_engine`.

    Raises:
        ValueError: The flavour does not take a precision or an option, or the engines do not belong together. This is
            checked before the export.
        WriteError: The bundle cannot be written, or would replace a file that it is made from. This is checked before
            the export, too.
    """
    from vorta_trt.engines.bundle_writer import new_engines, read_model, read_part

    sources = [sources] if isinstance(sources, Source) else list(sources)
    flavour = get_flavour(tensorrt)
    for source in sources:
        flavour.check_precision(source.precision)
    opset = flavour.newest_opset or OPSET
    # Checks that can be made before the slow part.
    names = {field.name for field in fields(BuildOptions)}
    build = BuildOptions(**{name: value for name, value in options.items() if name in names})
    build.check(flavour)
    check_new_bundle(bundle, bool(options.get("overwrite")), [build.timing_cache, *_read_for(sources)])
    load_plugin(flavour)
    report("loading the checkpoint", 0, 0)
    models = [source.model() for source in sources]
    target = flavour.target(build.compute_capabilities, build.hardware_compatibility)
    weights = []
    for source, model in zip(sources, models, strict=True):
        assert model.geometry is not None  # `Source.geometry` made it
        check_kernel_limits(model.geometry, source.checkpoint)
        linears = source.linear_precision
        if build.strict or build.refit:
            check_linears(source.checkpoint, linears, opset > OPSET_17, target, refit=build.refit, strict=build.strict)
        if source.attention_precision == "fp8" and build.strict:
            check_fp8_build(source.checkpoint, "fp8", target, [model.head_dim], strict=True)
        item = torch_dtype(source.precision).itemsize
        weights.append(sum(parameter.numel() * min(item, parameter.itemsize) for parameter in model.parameters()))
    keys = [_key(source, model) for source, model in zip(sources, models, strict=True)]
    check_grid(keys)
    further_parts = _pipeline_parts(sources, models, parts, opset)
    weights += [each.weight_bytes() for each in further_parts]
    carried = pipeline_files(sources[0].checkpoint) if keep_pipeline else (Path(), ())
    check_space(bundle, sum(weights) + max(weights))  # space for all plans and one exported file
    further = {name: value for name, value in options.items() if name not in names}
    with (
        temporary_folder(bundle) as folder,
        new_engines(bundle, flavour, build, engines=len(sources), progress=_show(report), **further) as writer,
    ):
        for key, source in zip(keys, sources, strict=True):
            model, models = models[0], models[1:]
            which = "" if len(keys) == 1 else f"{key}, "
            path = folder / "model.onnx"
            with writer.exporting():
                _export(model, path, replace(source, opset=opset), _export_progress(report, which))
            model.unmap_checkpoint()  # torch.export keeps the model alive; TensorRT needs the memory
            del model
            writer.add(read_model(path, source.route_override, build.strict))
            for file in folder.iterdir():
                file.unlink()
        built: set[EngineKey] = set()
        for pipeline in further_parts:
            for graph, metadata in pipeline.graphs():
                if (key := EngineKey(graph.name, metadata.size)) in built:
                    continue
                built.add(key)
                path = folder / f"{key.component}{'' if key.size is None else f'.{key.size}'}.onnx"
                with writer.exporting():
                    pipeline.export(path, graph, metadata, _export_progress(report, f"{key}, "))
                writer.add_part(read_part(path))
                for file in folder.iterdir():
                    file.unlink()
        writer.add_pipeline(*carried)
    return Bundle.open(bundle, verify=False, runtime=False)


def _read_for(sources: Sequence[Source]) -> list[Path | None]:
    """The files and folders that the sources read."""
    return [
        path
        for each in sources
        for path in (
            each.checkpoint,
            each.router,
            each.route_override,
            each.linear_calibration,
            *(lora.path for lora in each.lora),
        )
    ]


def _key(source: Source, model: RoutedTransformer) -> EngineKey:
    """Key of the engine that a source becomes in the bundle."""
    assert model.geometry is not None
    _, *latent = model.facts().latent_shape(model.config, model.geometry.grid)
    return EngineKey(source.component, str(VideoSize(*model.facts().video_size(model.config, *latent))))


def build_onnx(
    onnx: Path | Sequence[Path], bundle: Path, report: Report, *, tensorrt: str = "rtx", **options: Any
) -> Bundle:
    """Calls `build_engine`, and passes its progress on to `report`."""
    from vorta_trt.engines import build_engine

    report("reading the ONNX file", 0, 0)
    return build_engine(onnx, bundle, tensorrt, progress=_show(report), **options)


def _show(report: Report) -> ProgressCallback:
    """A progress callback for TensorRT that calls `report`."""

    def show(event: BuildProgress) -> None:
        which = f"{event.engine}, " if event.engine else ""
        report(f"building: {which}{event.phase}", event.step, event.steps)

    return show


def _export_progress(report: Report, which: str = "") -> Report:
    names = {
        "trace": "tracing the model",
        "translate": "translating to ONNX",
        "optimize": "optimizing the graph",
        "check": "checking the graph",
        "write": "writing weights",
    }

    def show(stage: str, done: int, total: int) -> None:
        report(f"exporting: {which}{names.get(stage, stage)}", done, total if stage == "write" else 0)

    return show
