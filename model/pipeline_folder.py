# SPDX-License-Identifier: Apache-2.0
"""Loading what a diffusers pipeline folder holds beside its transformer: text encoders, tokenizers, VAE, scheduler."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vorta_trt.model.checkpoint_place import find_place
from vorta_trt.model.configs import MOST_LAYERS, check_no_pointer, read_json, typed_config
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.experts import BOUNDARY
from vorta_trt.model.families import ModelFamily, PipelineKind
from vorta_trt.model.hub_cache import snapshot_of
from vorta_trt.model.model_index import ALWAYS, MODEL_INDEX, ModelIndex, check_model_index, read_model_index
from vorta_trt.model.safetensors_files import INDEX, WEIGHT_SUFFIXES, WEIGHTS
from vorta_trt.plugins.host_memory import NotMappable, is_not_mappable, is_out_of_memory

# transformers and diffusers load models with torch's classes patched for the whole process, so that whatever makes a
# module meanwhile, in another thread, gets parameters without memory. Loading and making modules take turns.
LOADING = threading.RLock()

_PROBE = "a red wall, \u2047\U0001f9f1"  # words and signs that a vocabulary may lack
_LIBRARIES = ("diffusers", "transformers")
_MODEL_FILES = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# Beginning of a component's name -> groups of files; one file of each group must be there.
_FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "tokenizer": (("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt"),),
    "text_encoder": _MODEL_FILES,
    "image_encoder": _MODEL_FILES,
    "image_processor": (("preprocessor_config.json",),),
    "feature_extractor": (("preprocessor_config.json",),),
    "vae": (
        ("config.json",),
        (WEIGHTS, INDEX, "diffusion_pytorch_model.bin"),
    ),
    "scheduler": (("scheduler_config.json",),),
    "guider": (("guider_config.json",),),
}


def load_pipeline(
    checkpoint: Path,
    family: ModelFamily,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    purpose: str,
    kind: PipelineKind | None = None,
    transformer: Any = None,
    parts: Mapping[str, Any] = MappingProxyType({}),
    without: Collection[str] = (),
    variant: str | None = None,
    weightless: Collection[str] = (),
) -> Any:
    """The pipeline on the CPU, without the transformer of the checkpoint.

    Args:
        checkpoint: the pipeline folder.
        family: family of the model.
        config: config of the pipeline's transformer.
        dtype: data type of the text encoders; everything else is float32.
        purpose: what needs it, for errors.
        kind: which pipeline of the transformer; None is the first, see `ModelFamily.pipeline_kinds`.
        transformer: what takes the place of the transformer.
        parts: components that are loaded already, or objects that stand in for components.
        without: names of further components that are not loaded; the pipeline has None in their place.
        variant: variant in the names of the weight files, as in diffusers, for the parts that have such files.
        weightless: components whose weights need not be in the folder; see `check_pipeline`.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        CheckpointError: it is not the whole folder of such a pipeline, or a part cannot be loaded.
    """
    import diffusers

    checkpoint = snapshot_of(checkpoint)
    index = check_pipeline(checkpoint, family, config, purpose=purpose, variant=variant, weightless=weightless)
    kind = kind or family.pipeline_kinds(config)[0]
    made: Any = getattr(diffusers, kind.pipeline)
    loaded: dict[str, Any] = {**dict.fromkeys(without), **parts}
    neutral = dict.fromkeys(name for name in family.neutral_settings if name in index.settings)
    boundary = {BOUNDARY: index.boundary_ratio} if kind.two_experts else {}
    settings = {**neutral, **boundary, **kind.settings}
    with LOADING, quiet_libraries():
        for name in (*kind.components, "scheduler"):
            if name not in loaded and name in index.components:
                part = component_class(index, name, checkpoint)
                options: dict[str, Any] = {"dtype": dtype} if name.startswith("text_encoder") else {}
                if has_variant(checkpoint / name, variant):
                    options["variant"] = variant
                loaded[name] = load_part(part, checkpoint / name, options)
                if isinstance(loaded[name], torch.nn.Module):
                    loaded[name].eval()
        return made(transformer=transformer, **loaded, **settings)


def check_pipeline(
    checkpoint: Path,
    family: ModelFamily,
    config: Mapping[str, Any],
    *,
    purpose: str,
    variant: str | None = None,
    weightless: Collection[str] = (),
) -> ModelIndex:
    """Reads a folder's model_index.json, and checks the files of its parts; raises what `load_pipeline` raises.

    Args:
        checkpoint: the pipeline folder.
        family: family of the model.
        config: config of the pipeline's transformer.
        purpose: what needs it, for errors.
        variant: variant in the names of the weight files.
        weightless: components of which the config is enough, since engines run them.
    """
    checkpoint = snapshot_of(checkpoint)
    kinds = family.pipeline_kinds(config)
    if not (checkpoint / MODEL_INDEX).is_file():
        raise FileNotFoundError(
            f"checkpoint {checkpoint}: has no {MODEL_INDEX}; {purpose} needs the whole pipeline folder, with "
            f"{', '.join(kinds[0].components)}"
        )
    index = read_model_index(checkpoint)
    kind = next((kind for kind in kinds if kind.pipeline == index.pipeline), None)
    if kind is None:
        raise CheckpointError(
            f"checkpoint {checkpoint}: is a {index.pipeline}; {purpose} needs the {kinds[0].pipeline} folder that "
            f"the transformer comes from"
        )
    check_model_index(index, family, kind, checkpoint)
    missing = [name for name in (*kind.components, "scheduler") if name not in index.components]
    if missing:
        raise CheckpointError(
            f"checkpoint {checkpoint}: has no {', '.join(missing)}; {purpose} needs the whole pipeline folder; "
            f"download all of it"
        )
    for name in (*kind.components, *(part for part in ALWAYS if part != "transformer")):
        if name in index.components:
            groups = _files_of(name, index, checkpoint)
            _check_files(checkpoint / name, groups[:1] if name in weightless else groups, variant)
    return index


def pipeline_files(checkpoint: Path) -> tuple[Path, tuple[str, ...]]:
    """The pipeline folder of a checkpoint, and the files in it that are read besides weights, relative to it.

    Those are model_index.json, and of every component all files but weights: configs, tokenizers, the scheduler.

    Raises:
        CheckpointError: the checkpoint is a transformer alone.
    """
    folder = find_place(checkpoint).pipeline
    if folder is None or not (folder / MODEL_INDEX).is_file():
        raise CheckpointError(
            f"checkpoint {checkpoint}: is a transformer alone, without tokenizers and scheduler; give the whole "
            f"pipeline folder"
        )
    files = [MODEL_INDEX]
    for name in read_model_index(folder).components:
        if not (folder / name).is_dir():
            continue
        for file in sorted((folder / name).iterdir()):
            is_weight = file.suffix in WEIGHT_SUFFIXES or ".index." in file.name
            if file.is_file() and not is_weight:
                files.append(f"{name}/{file.name}")
    return folder, tuple(files)


def has_variant(folder: Path, variant: str | None) -> bool:
    """Whether a component's folder has weights of a variant; False for None."""
    return variant is not None and folder.is_dir() and any(f".{variant}." in file.name for file in folder.iterdir())


def component_class(index: ModelIndex, name: str, checkpoint: Path) -> Any:
    """The class of a component.

    Raises:
        CheckpointError: no such class, or one that comes with the checkpoint: no code of a checkpoint is run.
    """
    import importlib

    library, kind = index.components[name]
    found = getattr(importlib.import_module(library), kind, None) if library in _LIBRARIES else None
    if not isinstance(found, type):
        raise CheckpointError(
            f"{checkpoint / MODEL_INDEX}: {name} [{library!r}, {kind!r}]: is no class of {' or '.join(_LIBRARIES)} as "
            f"installed here; restore the original file, or update the library"
        )
    return found


def vae_config(
    index: ModelIndex, family: ModelFamily, transformer_config: Mapping[str, Any], checkpoint: Path
) -> dict[str, Any]:
    """The config of the pipeline's VAE, after a check that the VAE makes the transformer's latents.

    Raises:
        CheckpointError: the VAE does not, or its config is damaged.
    """
    file = checkpoint / "vae" / "config.json"
    kind = component_class(index, "vae", checkpoint)
    config = typed_config(kind, read_json(file, "a diffusers VAE"), file)
    family.check_vae(config, transformer_config, str(file))
    return config


def empty_part(index: ModelIndex, name: str, checkpoint: Path) -> Any:
    """The model of a component without its weights, made from its config on the meta device."""
    kind = component_class(index, name, checkpoint)
    config = read_json(checkpoint / name / "config.json", kind.__name__)
    with LOADING, torch.device("meta"):
        if hasattr(kind, "from_config"):
            return kind.from_config(config).eval()
        return kind(kind.config_class.from_dict(config)).eval()  # transformers'


def _files_of(name: str, index: ModelIndex, checkpoint: Path) -> tuple[tuple[str, ...], ...]:
    """Groups of files of a component; one file of each group must be there."""
    if name.startswith("tokenizer") and not component_class(index, name, checkpoint).vocab_files_names:
        return (("tokenizer_config.json",),)  # bytes need no vocabulary
    return next(files for kind, files in _FILES.items() if name.startswith(kind))


def _check_files(folder: Path, groups: tuple[tuple[str, ...], ...], variant: str | None) -> None:
    """Raises unless a component's folder has its files, themselves and not Git LFS pointers to them."""
    name = folder.name
    if has_variant(folder, variant):
        return  # the library's loader looks for them
    for group in groups:
        if not any((folder / file).is_file() for file in group):
            rest = f" (or {', '.join(group[1:])})" if len(group) > 1 else ""
            raise FileNotFoundError(
                f"checkpoint {folder.parent}: its {name} lacks {name}/{group[0]}{rest}; download the folder {name}/ of "
                f"the checkpoint, e.g. with `hf download REPOSITORY --include '{name}/*' --local-dir {folder.parent}`"
            )
    for file in sorted(folder.iterdir()):
        check_no_pointer(file)


def load_part(kind: Any, folder: Path, options: dict[str, Any]) -> Any:
    """Loads a component with the library's own loader, whose errors are turned into errors of the folder's files.

    Raises:
        CheckpointError: it cannot be loaded, or its config and weights are of different models; the libraries would
            fill in random weights.
    """
    import diffusers
    import transformers

    has_weights = issubclass(kind, torch.nn.Module)
    if has_weights:
        _check_config(kind, folder / "config.json")
        options = {**options, "output_loading_info": True}
    try:
        loaded = kind.from_pretrained(folder, **options)
        if isinstance(loaded, transformers.PreTrainedTokenizerBase):
            loaded(_PROBE)  # only its use shows that a vocabulary is damaged
    except Exception as error:  # of code that is not ours, on files that are not ours either
        if is_out_of_memory(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        if is_not_mappable(error):
            raise NotMappable(
                f"checkpoint {folder.parent}: the file system of {folder.name}/ does not map files into memory; copy "
                f"it to a local disk"
            ) from error
        reason = next(iter(str(error).strip().splitlines()), "")
        raise CheckpointError(
            f"checkpoint {folder.parent}: {kind.__name__} cannot be loaded from {folder.name}/ "
            f"({type(error).__name__}: {reason}); restore the files of the published checkpoint"
        ) from error
    if not has_weights:
        return loaded
    model, found = loaded
    wrong = [*found["missing_keys"], *found.get("mismatched_keys", ())]
    if issubclass(kind, diffusers.ModelMixin):  # transformers' checkpoints may hold heads that nobody uses
        wrong += found["unexpected_keys"]
    if wrong:
        raise CheckpointError(
            f"checkpoint {folder.parent}: the weights in {folder.name}/ are not those of its config.json: {len(wrong)} "
            f"differ, first {min(map(str, wrong))}; restore the files of the published checkpoint"
        )
    return model


def _check_config(kind: Any, file: Path) -> None:
    """Refuses a model's config that its class does not take, or that would keep the loader busy for ever."""
    from diffusers.configuration_utils import ConfigMixin

    config = read_json(file, kind.__name__)
    if issubclass(kind, ConfigMixin):
        typed_config(kind, config, file)
    for name, value in config.items():
        if ("layer" in name or "block" in name) and isinstance(value, int) and value > MOST_LAYERS:
            raise CheckpointError(
                f"{file}: {name} {value!r}: must be at most {MOST_LAYERS}; restore the original of the checkpoint"
            )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Switches off the progress bars of diffusers and transformers, which would mix with ours."""
    import diffusers
    import transformers

    libraries: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
