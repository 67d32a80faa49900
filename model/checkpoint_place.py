# SPDX-License-Identifier: Apache-2.0
"""Where the transformer of a checkpoint lies, whatever form the user has it in.

- NAME-Diffusers/: a pipeline folder, with transformer/ and, for two experts, transformer_2/
- NAME-Diffusers/transformer/: a transformer's folder
- models--OWNER--NAME/: a folder of the Hugging Face cache
- NAME/: weights in the authors' layout, sharded or not; those of two experts in high_noise_model/ and low_noise_model/
- NAME.safetensors: one file, in diffusers' layout, the authors' or that of ComfyUI
- NAME.safetensors.index.json: the index of several
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vorta_trt.model.configs import check_no_pointer
from vorta_trt.model.constants import COMPONENTS, TRANSFORMER, TRANSFORMER_2
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.files import absence
from vorta_trt.model.hub_cache import repository_of, snapshot_of
from vorta_trt.model.model_index import MODEL_INDEX
from vorta_trt.model.safetensors_files import (
    SUFFIX,
    WEIGHT_SUFFIXES,
    SafetensorsFiles,
    open_file,
    open_folder,
    open_index,
)

CONFIG = "config.json"
_AUTHORS_FOLDERS = {TRANSFORMER: "high_noise_model", TRANSFORMER_2: "low_noise_model"}
_INDEX = r"\.safetensors\.index(\.\w+)?\.json$"  # with a variant, as diffusers names it
_FORMS = "a diffusers pipeline folder, its transformer/ folder, or a .safetensors file"


@dataclass(frozen=True)
class Place:
    """Where a transformer lies.

    Attributes:
        folder: Folder that holds its weights.
        file: File or index in the folder; None means the weights that the folder has.
    """

    folder: Path
    file: Path | None = None

    @property
    def origin(self) -> Path:
        """The path to name in errors."""
        return self.file or self.folder

    @property
    def config(self) -> Path | None:
        """The config.json beside the weights, None if there is none."""
        file = self.folder / CONFIG
        return file if file.is_file() else None

    @property
    def pipeline(self) -> Path | None:
        """The pipeline folder around the transformer's folder; None for a file that is in no transformer's folder."""
        return self.folder.parent if self.file is None or self.folder.name in _AUTHORS_FOLDERS else None

    @property
    def component(self) -> str | None:
        """The component that the folder's name says it is; None if it says nothing."""
        names = {name: component for component, name in _AUTHORS_FOLDERS.items()}
        return self.folder.name if self.folder.name in _AUTHORS_FOLDERS else names.get(self.folder.name)

    @property
    def has_authors_experts(self) -> bool:
        """Whether it is one of two experts in the authors' layout."""
        names = _AUTHORS_FOLDERS.values()
        return self.folder.name in names and all((self.folder.parent / name).is_dir() for name in names)

    def open(self, variant: str | None) -> SafetensorsFiles:
        """The weights as they are stored.

        Raises:
            FileNotFoundError: Some are missing.
            CheckpointError: They cannot be read.
        """
        if self.file is None:
            return open_folder(self.folder, variant)
        if variant is not None:
            raise CheckpointError(
                f"checkpoint {self.file}: is one file, and variant {variant!r} chooses among the files of a folder; "
                f"leave the variant out"
            )
        return open_index(self.file) if _is_index(self.file) else open_file(self.file)


def find_place(path: Path, component: str = TRANSFORMER) -> Place:
    """Finds a transformer.

    Args:
        path: Checkpoint in one of the forms above.
        component: "transformer", or "transformer_2" for the second of two experts.

    Raises:
        FileNotFoundError: Nothing is there.
        CheckpointError: The path is something else.
    """
    if not path.exists():
        there = absence(path, "does not exist")
        raise FileNotFoundError(f"checkpoint {path}: {there}; download it first, e.g. with `hf download`")
    path = snapshot_of(path)
    if path.is_file():
        if not path.name.endswith(SUFFIX) and not _is_index(path):
            raise CheckpointError(f"checkpoint {path}: is a file{_kind_of_file(path)}; give {_FORMS}")
        return Place(path.parent, path)
    names = component, _AUTHORS_FOLDERS.get(component, component)
    beside = path.name in (TRANSFORMER, _AUTHORS_FOLDERS[TRANSFORMER])
    folders = [base / name for base in ([path.parent, path] if beside else [path]) for name in names]
    for folder in (*folders, path) if component == TRANSFORMER else folders:
        if (folder / CONFIG).is_file() or _has_weights(folder):
            return Place(folder)
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    if component != TRANSFORMER:
        raise FileNotFoundError(
            f"checkpoint {path}: lacks {component}/, the second of two experts, in the authors' layout {names[1]}/; "
            f"download it, e.g. with `hf download REPOSITORY --include '{component}/*'`"
        )
    raise FileNotFoundError(
        f"checkpoint {path}: has neither {component}/{CONFIG} nor {CONFIG} nor weights (it holds: {inside}); give "
        f"{_FORMS}"
    )


def checkpoint_name(path: Path) -> str:
    """Name of the folder or file that weights come from; of a Hugging Face cache, the repository's."""
    path = path.absolute()
    if repository := repository_of(path) or repository_of(path.resolve()):
        return repository
    folder = path.parent if path.is_file() else path.resolve()
    if folder.name in COMPONENTS:
        return folder.parent.name
    return path.name if path.is_file() else folder.name


def is_weights(path: Path) -> bool:
    """Whether a path is a file of weights, of a kind that is read or not, or the index of several."""
    return path.is_file() and (path.suffix.lower() in WEIGHT_SUFFIXES or _is_index(path))


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint, in one of the forms above; it may be damaged."""
    folder = snapshot_of(path)
    if is_weights(path) or any((folder / name).is_file() for name in (MODEL_INDEX, CONFIG)):
        return True
    inside = (folder, *(folder / name for name in _AUTHORS_FOLDERS.values()))
    return any(file.suffix in WEIGHT_SUFFIXES for each in inside if each.is_dir() for file in each.iterdir())


def _is_index(path: Path) -> bool:
    return re.search(_INDEX, path.name) is not None


def _has_weights(folder: Path) -> bool:
    return folder.is_dir() and any(path.name.endswith(SUFFIX) or _is_index(path) for path in folder.iterdir())


def _kind_of_file(path: Path) -> str:
    """Describes, for an error, a file of a kind that is not read."""
    check_no_pointer(path)
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return " of quantised weights (GGUF), which are not routed"
    if suffix in WEIGHT_SUFFIXES:
        return f" ({suffix}) that may run code when it is read, which is not done; save its tensors as safetensors"
    return ""
