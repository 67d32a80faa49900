# SPDX-License-Identifier: Apache-2.0
"""ONNX files -> engine bundle.

    read every ONNX graph, and check that they belong together
    -> for each: load the plugin -> parse -> check the plugin layers -> build, streaming the plan to disk
    -> manifest -> rename into place

Polygraphy's loaders are not used here, for three reasons: they choose between TensorRT and TensorRT-RTX once per
process (an environment variable), they log to one global logger while our errors carry what this very build said, and
`EngineBytesFromNetwork` holds the whole plan in memory where we stream it. `polygraphy` and `trtexec` themselves work
on the ONNX files; docs/nvidia-tools.md shows how.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vorta_trt.engines.bundle import Bundle, check_new_bundle
from vorta_trt.engines.bundle_writer import ExportedModel, ExportedPart, new_engines, read_model, read_part
from vorta_trt.engines.engine_key import EngineKey, check_grid
from vorta_trt.engines.flavours import get_flavour
from vorta_trt.engines.plan import DEFAULT_BATCH, BuildOptions
from vorta_trt.engines.progress import ProgressCallback
from vorta_trt.export.names import check_second, component_file
from vorta_trt.export.onnx_file import part_files
from vorta_trt.model.constants import TRANSFORMER, TRANSFORMER_2
from vorta_trt.plugins.operator_schema import BlockOps


def build_engine(
    onnx_path: str | Path | Sequence[str | Path],
    bundle_path: str | Path,
    tensorrt: str = "rtx",
    *,
    batch: tuple[int, int, int] = DEFAULT_BATCH,
    compute_capabilities: Sequence[str] | None = None,
    hardware_compatibility: str | None = None,
    version_compatible: bool = False,
    timing_cache: str | Path | None = None,
    workspace_gib: float | None = None,
    optimization_level: int | None = None,
    block_ops: BlockOps | None = None,
    weight_streaming: bool = False,
    refit: bool = False,
    plugin_in_plan: bool = False,
    include_onnx: bool = False,
    include_plugin: bool = True,
    route_override: str | Path | Sequence[str | Path | None] | None = None,
    progress: ProgressCallback | bool = False,
    overwrite: bool = False,
    strict: bool = True,
) -> Bundle:
    """Builds the engines of exported models and writes their bundle.

    Ctrl-C, SIGTERM and SIGHUP stop the build. A build that is stopped or fails leaves no incomplete bundle.

    Args:
        onnx_path: The exported file, or several: one for each component and video size. The first file becomes the
            bundle's first engine. A second expert (NAME.transformer_2.onnx beside NAME.onnx) is found and built, too,
            and so are VAE and text encoders (NAME.vae_decoder_first.onnx and so on).
        bundle_path: The folder to write.
        tensorrt: The flavour: "rtx", "tensorrt" or "tensorrt8".
        batch: Smallest, usual and largest batch of the dynamic batch dimension.
        compute_capabilities: rtx only, e.g. ["8.9", "12.0"]; by default the engine runs on every RTX GPU since Ampere.
        hardware_compatibility: tensorrt only, "ampere_plus" or "same_compute_capability".
        version_compatible: tensorrt only; the plan then loads in newer versions and in the lean runtime.
        timing_cache: A file that makes later builds faster; tensorrt only, RTX has none and ignores it with a warning.
        workspace_gib: Limit on the scratch memory of a layer.
        optimization_level: From 0, which builds fast, to 5, which runs fast.
        block_ops: Whether the block operators (norms, products, cross-attention) become our "plugin" layers or
            "native" ones, which TensorRT fuses as it likes. The default depends on the flavour: see
            `Flavour.block_ops`.
        weight_streaming: The engine can then run with a part of its weights in host memory (`Engine`'s
            weight_streaming_budget); not with TensorRT 8.6.
        refit: The engine then takes other weights (`runtime.refit`), which may cost speed; TensorRT-RTX builds such
            engines on a machine with a GPU only.
        plugin_in_plan: Put libvorta_trt.so into the plan, so that one file is all that another program loads; it
            allows host code in its runtime (`engine_host_code_allowed`). Not with TensorRT 8.6.
        include_onnx: Copy the ONNX files with their weights into the bundle; several files share one data file.
        include_plugin: Copy libvorta_trt.so into the bundle.
        route_override: File of calibrated routes (from `vorta-trt calibrate`) that is checked and put into the bundle.
            Sampling uses these routes unless told otherwise. For several engines, a sequence with one entry for each
            file in `onnx_path`.
        progress: True for a progress bar on stderr, or a callback that takes `BuildProgress`.
        overwrite: Replace an existing bundle (the old one stays until the new one is complete).
        strict: Refuse ONNX files without vorta-trt's metadata or without RoutedAttention nodes, and engines with fp8
            attention for GPUs or head dimensions that have no fp8 kernels.

    Returns:
        The bundle, opened.

    Raises:
        BuildError: TensorRT refuses, with what it logged.
        FileNotFoundError: There is no such file.
        FlavourError: The flavour is not installed, or does not know an option.
        OnnxFileError: The file is damaged, or vorta-trt did not export it.
        ValueError: An option is out of range, the flavour does not compute in the files' precision, or the files do not
            belong into one bundle.
        WriteError: The bundle cannot be written, or would replace a file that it is built from.
    """
    options = BuildOptions(
        batch=batch,
        compute_capabilities=compute_capabilities,
        hardware_compatibility=hardware_compatibility,
        version_compatible=version_compatible,
        timing_cache=None if timing_cache is None else Path(timing_cache),
        workspace_gib=workspace_gib,
        optimization_level=optimization_level,
        block_ops=block_ops,
        weight_streaming=weight_streaming,
        refit=refit,
        plugin_in_plan=plugin_in_plan,
        strict=strict,
    )
    flavour = get_flavour(tensorrt)
    options.check(flavour)
    given = [onnx_path] if isinstance(onnx_path, str | Path) else list(onnx_path)
    overrides = [route_override] if route_override is None or isinstance(route_override, str | Path) else route_override
    check_new_bundle(Path(bundle_path), overwrite, [*given, *overrides, timing_cache])
    models = read_models(given, overrides, strict)
    for model in models:
        if model.onnx.metadata is not None:
            try:
                flavour.check_precision(model.onnx.metadata.precision, "export the model with")
            except ValueError as error:
                raise ValueError(f"{model.onnx.path}: {error}") from error
    parts = read_parts(models)
    with new_engines(
        Path(bundle_path),
        flavour,
        options,
        engines=len(models),
        include_onnx=include_onnx,
        include_plugin=include_plugin,
        progress=progress,
        overwrite=overwrite,
    ) as writer:
        for model in models:
            writer.add(model)
        for part in parts:
            writer.add_part(part)
    return Bundle.open(bundle_path, verify=False, runtime=False)


def read_models(
    paths: Sequence[str | Path], route_overrides: Sequence[str | Path | None], strict: bool
) -> list[ExportedModel]:
    """Reads exported files and checks that they are the engines of one bundle.

    Args:
        paths: Exported files; second experts beside them are added.
        route_overrides: File of calibrated routes for each path, or None; a single None stands for all paths.
        strict: Refuse files without vorta-trt's metadata or without RoutedAttention nodes, as in `build_engine`.

    Raises:
        ValueError: The files do not belong into one bundle, or the numbers of files and of routes differ.
    """
    if list(route_overrides) == [None]:
        route_overrides = [None] * len(paths)
    if len(route_overrides) != len(paths):
        raise ValueError(
            f"route_override: {len(route_overrides)} given for {len(paths)} ONNX files; calibrated routes are those of "
            "one component at one size: give one for each file, None where there are none"
        )
    given = [Path(path) for path in paths]
    models = []
    for path, override in zip(given, route_overrides, strict=True):
        models.append(read_model(path, override, strict))
        _check_new(models)
        second = component_file(path, TRANSFORMER_2)
        if models[-1].key.component == TRANSFORMER and models[-1].description.has_second:
            check_second(path, second)
            if second not in given:
                models.append(read_model(second, None, strict))
                _check_new(models)
    for model in models:
        if model.onnx.metadata is not None and TRANSFORMER not in {each.key.component for each in models}:
            model.onnx.metadata.check_first(model.onnx.path)
    check_grid([model.key for model in models])
    return models


def read_parts(models: Sequence[ExportedModel]) -> list[ExportedPart]:
    """Reads the exported VAE and text encoders beside exported transformers. A part for every size is returned once.

    Raises:
        OnnxFileError: A part's file is damaged or missing.
        ValueError: A part belongs to another pipeline than the transformer beside it.
    """
    parts: dict[EngineKey, ExportedPart] = {}
    for model in models:
        if model.onnx.metadata is None or model.key.component != models[0].key.component:
            continue
        for path in part_files(model.onnx.path).values():
            part = read_part(path)
            part.metadata.check_with(model.onnx.metadata, path, model.onnx.path)
            parts.setdefault(part.exported.key, part)
    return list(parts.values())


def _check_new(models: Sequence[ExportedModel]) -> None:
    """Raises ValueError unless the last model is another engine of the same bundle as those before it."""
    *others, model = models
    for other in others:
        if model.key == other.key:
            raise ValueError(
                f"{model.key}: is given twice, in {other.onnx.path} and {model.onnx.path}, and a bundle has one engine "
                f"of each; leave one of them out, or export the experts again, which writes both files"
            )
        if model.onnx.metadata is not None and other.onnx.metadata is not None:
            model.onnx.metadata.check_together(other.onnx.metadata, model.onnx.path, other.onnx.path)
