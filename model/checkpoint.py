# SPDX-License-Identifier: Apache-2.0
"""`CheckpointReader`: the transformer of a diffusers checkpoint as users have it on disk, one tensor at a time.

Nothing here runs code from a file: safetensors hold none.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from vorta_trt.model.configs import check_no_pointer, read_json, typed_config
from vorta_trt.model.errors import CheckpointError as CheckpointError
from vorta_trt.model.families import family_of_config
from vorta_trt.model.model_index import MODEL_INDEX, check_model_index, read_model_index
from vorta_trt.plugins.host_memory import mapping

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"
_FOLDER = "a diffusers pipeline folder or its transformer/ folder"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
STORED_TYPES = ("F64", "F32", "F16", "BF16")  # of weights that can be rounded to what is asked for


class CheckpointReader:
    """The weights of a diffusers transformer, read lazily from its (sharded) safetensors files.

    Args:
        path: a diffusers pipeline folder, or its `transformer/` folder.

    Attributes:
        folder: the transformer's folder.
        config: its config.json, with diffusers' defaults for what that leaves out.
        family: name of the model family.

    A context manager; `close` drops the file mappings. Tensors are views into them, paged in on first use.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        CheckpointError: not a diffusers transformer that vorta-trt routes, or a corrupt file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = _transformer_folder(self.path)
        file = self.folder / "config.json"
        config = read_json(file, "a diffusers transformer")
        check_not_quantised(config, file)
        family = family_of_config(config, f"checkpoint {self.path}")
        self.family = family.name
        self.config: dict[str, Any] = typed_config(family.diffusers_transformer(), config, file)
        family.check_config(self.config, f"checkpoint {self.path}")
        pipeline = self.folder.parent  # what lies beside the transformer decides how it is sampled
        if (pipeline / MODEL_INDEX).is_file():
            index, kinds = read_model_index(pipeline), family.pipeline_kinds(self.config)
            kind = next((kind for kind in kinds if kind.pipeline == index.pipeline), kinds[0])
            check_model_index(index, family, kind, pipeline)
        self._files = _weight_files(self.folder)  # tensor name -> file
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

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

    def close(self) -> None:
        """Lets go of the files; a tensor that is asked for later maps them again."""
        self._open.clear()
        self._stack.close()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _handle(self, name: str) -> Any:
        if name not in self._files:
            raise CheckpointError(
                f"tensor {name!r}: not in checkpoint {self.folder}, which has {len(self._files)} tensors; is it the "
                f"checkpoint of another model?"
            )
        file = self._files[name]
        if file not in self._open:
            self._open[file] = self._stack.enter_context(_open_safetensors(file))
        return self._open[file]


# -- diffusers folders -------------------------------------------------------------------------------------------------


def _transformer_folder(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path}: does not exist; download it first, e.g. with `hf download`")
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path}: is a file{_kind_of_file(path)}; give {_FOLDER}")
    for folder in (path / "transformer", path):
        if (folder / "config.json").is_file():
            return folder
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"checkpoint {path}: has neither transformer/config.json nor config.json (it holds: {inside}); give {_FOLDER}"
    )


def _kind_of_file(path: Path) -> str:
    """What a file is that should have been a folder, in words."""
    check_no_pointer(path)
    if path.suffix.lower() == ".gguf":
        return " of quantised weights (GGUF), which are not routed"
    if path.suffix.lower() in _WEIGHT_SUFFIXES:
        return ", probably in the layout of the model's authors or of ComfyUI, which is not read"
    return ""


def check_not_quantised(config: dict[str, Any], file: Path) -> None:
    """Raises CheckpointError for a config of quantised weights."""
    quantisation = config.get("quantization_config")
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        raise CheckpointError(
            f"{file}: quantization_config {method!r} says that the weights are quantised, which are not routed; use "
            f"the checkpoint in bfloat16, float16 or float32"
        )


def _weight_files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index = folder / INDEX
    if index.is_file():
        return _shards(folder, index)
    file = folder / WEIGHTS
    if file.is_file():
        with _open_safetensors(file) as handle:
            return dict.fromkeys(handle.keys(), file)
    others = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _WEIGHT_SUFFIXES)
    raise FileNotFoundError(
        f"checkpoint {folder}: has neither {WEIGHTS} nor {INDEX} (weights there: {', '.join(others) or 'none'}); save "
        f"it with diffusers' save_pretrained(..., safe_serialization=True) and without a variant"
    )


def _shards(folder: Path, index: Path) -> dict[str, Path]:
    """The tensors of a sharded checkpoint; every one is where the index says."""
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
        with _open_safetensors(folder / file) as handle:
            held.update(dict.fromkeys(handle.keys(), file))
    for name, file in weight_map.items():
        if held.get(name) != file:
            where = f"it is in {held[name]}" if name in held else "no shard has it"
            raise CheckpointError(
                f"index {index}: sends tensor {name!r} to {file}, but {where}; index and shards must belong together; "
                f"download the checkpoint again"
            )
    return {name: folder / file for name, file in weight_map.items()}


def _open_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    check_no_pointer(file)
    try:
        with mapping(file):
            return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"weights {file}: not readable as safetensors ({error}); download them again") from error
