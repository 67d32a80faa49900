# SPDX-License-Identifier: Apache-2.0
"""`SafetensorsFiles`: the tensors of one safetensors file or of all shards of a checkpoint, one at a time.

Nothing here runs code from a file: safetensors hold none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from vorta_trt.model.configs import check_no_pointer, read_json
from vorta_trt.model.errors import CheckpointError
from vorta_trt.plugins.host_memory import mapping

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"
SUFFIX = ".safetensors"
INDEX_SUFFIX = SUFFIX + ".index.json"
WEIGHT_SUFFIXES = (SUFFIX, ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_VARIANT = re.compile(re.escape(WEIGHTS.removesuffix(SUFFIX)) + r"\.([^.]+?)(-\d{5}-of-\d{5})?\.safetensors")


class Weights(Protocol):
    """Tensors by name, read when they are asked for."""

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def stored_type(self, name: str) -> str:
        """Data type of what `tensor` gives, as safetensors names it, without reading it."""

    def tensor(self, name: str) -> Tensor:
        """The tensor; a view into the mapped file where nothing is computed."""

    def close(self) -> None:
        """Lets go of the files; a tensor that is asked for later maps them again."""


class SafetensorsFiles:
    """Tensors as they are stored, by the names that they are stored under.

    Args:
        origin: The file or folder that they come from, for errors.
        files: The file that holds each tensor, by the tensor's name.

    Attributes:
        origin: Origin as given.
    """

    def __init__(self, origin: Path, files: Mapping[str, Path]) -> None:
        self.origin = origin
        self._files = dict(files)
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._files)

    def tensor(self, name: str) -> Tensor:
        """The tensor as it is stored; a view into the mapped file."""
        tensor: Tensor = self._handle(name).get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._handle(name).get_slice(name).get_shape())

    def stored_type(self, name: str) -> str:
        """Data type of a tensor as safetensors names it, without reading it."""
        return str(self._handle(name).get_slice(name).get_dtype())

    def metadata(self) -> dict[str, str]:
        """The metadata of all files' headers, joined."""
        found: dict[str, str] = {}
        for name in {file: name for name, file in self._files.items()}.values():
            found.update(self._handle(name).metadata() or {})
        return found

    def close(self) -> None:
        """Lets go of the files; a tensor that is asked for later maps them again."""
        self._open.clear()
        self._stack.close()

    def _handle(self, name: str) -> Any:
        if name not in self._files:
            raise CheckpointError(
                f"tensor {name!r}: not in checkpoint {self.origin}, which has {len(self._files)} tensors; is it the "
                f"checkpoint of another model?"
            )
        file = self._files[name]
        if file not in self._open:
            self._open[file] = self._stack.enter_context(open_safetensors(file))
        return self._open[file]


def open_folder(folder: Path, variant: str | None = None) -> SafetensorsFiles:
    """The weights in a folder: under diffusers' names, or the only file or index that there is.

    Args:
        folder: Folder of the weights.
        variant: Variant in the file names, as in diffusers: "fp16" takes diffusion_pytorch_model.fp16.safetensors, or
            the index of such shards.

    Raises:
        FileNotFoundError: There are no weights, or some are missing.
        CheckpointError: There are several files, and none has diffusers' name; or a file is damaged.
    """
    for name, index in ((_with_variant(INDEX, variant), True), (_with_variant(WEIGHTS, variant), False)):
        if (folder / name).is_file():
            return open_index(folder / name) if index else open_file(folder / name)
    if variant is None:
        indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
        files = [
            file
            for file in sorted(folder.glob(f"*{SUFFIX}"))
            if not _SHARD.search(file.name) and not _VARIANT.fullmatch(file.name)
        ]
        if len(indices) == 1 and not files:
            return open_index(indices[0])
        if len(files) == 1 and not indices:
            return open_file(files[0])
        if found := [path.name for path in (*indices, *files)]:
            raise CheckpointError(
                f"checkpoint {folder}: holds {len(found)} checkpoints ({', '.join(found)}); give the path of one of "
                f"them"
            )
    raise _no_weights(folder, variant)


def open_file(file: Path) -> SafetensorsFiles:
    """The tensors of one file.

    Raises:
        CheckpointError: It is one shard of several, or cannot be read.
    """
    if _SHARD.search(file.name):
        raise CheckpointError(
            f"checkpoint {file}: is one of several shards; give the folder that holds all of them and their index"
        )
    with open_safetensors(file) as handle:
        return SafetensorsFiles(file, dict.fromkeys(handle.keys(), file))


def open_index(index: Path) -> SafetensorsFiles:
    """The tensors of a sharded checkpoint; every one is where the index says.

    Raises:
        FileNotFoundError: A shard is missing.
        CheckpointError: The index is damaged, or belongs to other shards.
    """
    folder = index.parent
    weight_map = read_json(index, "a sharded checkpoint").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"index {index}: has no weight_map; download the checkpoint again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(
                f"index {index}: sends tensor {name!r} to {file!r}; must be the name of a file beside it; download the "
                f"index again"
            )
    absent = sorted(file for file in set(weight_map.values()) if not (folder / file).is_file())
    if absent:
        raise FileNotFoundError(
            f"checkpoint {folder}: lacks {len(absent)} of its {len(set(weight_map.values()))} shards, first "
            f"{absent[0]}; download the checkpoint again"
        )
    held: dict[str, str] = {}
    for file in sorted(set(weight_map.values())):
        with open_safetensors(folder / file) as handle:
            held.update(dict.fromkeys(handle.keys(), file))
    for name, file in weight_map.items():
        if held.get(name) != file:
            where = f"it is in {held[name]}" if name in held else "no shard has it"
            raise CheckpointError(
                f"index {index}: sends tensor {name!r} to {file}, but {where}; index and shards must belong together; "
                f"download the checkpoint again"
            )
    return SafetensorsFiles(folder, {name: folder / file for name, file in weight_map.items()})


def open_safetensors(file: Path) -> Any:
    """A handle to a mapped safetensors file, which is a context manager.

    Raises:
        CheckpointError: It is no such file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    check_no_pointer(file)
    try:
        with mapping(file):
            return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"weights {file}: not readable as safetensors ({error}); download them again") from error


def _with_variant(name: str, variant: str | None) -> str:
    """The name of a variant's file, as diffusers has it: the variant goes before the last suffix."""
    if variant is None:
        return name
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}"


def _no_weights(folder: Path, variant: str | None) -> FileNotFoundError:
    """The error of a folder without the weights that were asked for, which says what there is."""
    others = sorted(entry.name for entry in folder.iterdir() if entry.suffix in WEIGHT_SUFFIXES)
    variants = sorted({found[1] for name in others if (found := _VARIANT.fullmatch(name))})
    there = f"weights there: {', '.join(others) or 'none'}"
    wanted = f"{_with_variant(WEIGHTS, variant)} nor {_with_variant(INDEX, variant)}"
    if variants:
        remedy = f"give the variant, {' or '.join(variants)}"
    elif variant is not None and (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        remedy = "leave the variant out"
    else:
        remedy = "save it with diffusers' save_pretrained(..., safe_serialization=True)"
    return FileNotFoundError(f"checkpoint {folder}: has neither {wanted} ({there}); {remedy}")
