# SPDX-License-Identifier: Apache-2.0
"""Reading what users have on disk: diffusers checkpoints, one tensor at a time, and VORTA routers as published.

Nothing here runs code from a file: safetensors hold none, and `router.pt` is read with `weights_only=True`.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.errors import CheckpointError as CheckpointError
from vorta_trt.model.families import families, family_of_config
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.plugins.host_memory import HostOutOfMemory, mapping

logger = logging.getLogger(__name__)

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"
_ROUTER_KEY = re.compile(r"(\w+)\.(\d+)\.router\.linear\.(weight|bias)")
_STEP = re.compile(r"step-(\d+)")


class CheckpointReader:
    """The weights of a diffusers transformer, read lazily from its (sharded) safetensors files.

    Args:
        path: a diffusers pipeline folder, or its `transformer/` folder.

    Attributes:
        folder: the transformer's folder. config: its config.json. family: name of the model family.

    A context manager; `close` drops the file mappings. Tensors are views into them, paged in on first use.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        CheckpointError: not a diffusers transformer that vorta-trt routes, or a corrupt file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = _transformer_folder(self.path)
        self.config: dict[str, Any] = _read_json(self.folder / "config.json", "a diffusers transformer")
        self.family = family_of_config(self.config, f"checkpoint {self.path}").name
        self._files = _weight_files(self.folder)  # tensor name -> file, or None -> the only file
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

    def close(self) -> None:
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


@dataclass(frozen=True)
class RouterCheckpoint:
    """A router as it lies on disk.

    Attributes:
        state_dict: `<blocks>.{i}.router.linear.{weight,bias}` -> tensor.
        path: the router.pt. config: its training config.json, None if it lies alone.
        family: name of the model family, by the keys. layers: number of routed blocks.
    """

    state_dict: dict[str, Tensor]
    path: Path
    config: dict[str, Any] | None
    family: str
    layers: int

    def geometry(self) -> AttentionGeometry | None:
        """The geometry that the router was trained with, None without a config.json."""
        if self.config is None:
            return None
        if "self_attention_kwargs" not in self.config:
            raise CheckpointError(
                f"router config beside {self.path}: has no 'self_attention_kwargs'; use the config.json of the "
                f"training run, or pass geometry="
            )
        try:
            return AttentionGeometry.from_router_config(self.config, self.family)
        except ValueError as error:
            raise CheckpointError(f"router config beside {self.path}: {error}") from error


def load_router(path: str | Path) -> RouterCheckpoint:
    """Loads a router.

    Args:
        path: a training folder (config.json and ckpt/step-*/router.pt, of which the latest step is taken), a folder
            that holds a router.pt, or a router.pt. The config.json is looked for beside the router.pt and, for
            <run>/ckpt/step-*/router.pt, in <run>.

    Raises:
        FileNotFoundError: there is no router.pt.
        CheckpointError: corrupt, not a state dict, or keys that are no router's.
    """
    file = _router_file(Path(path))
    state = _load_state(file)
    family, layers = _router_family(file, state)
    config_file = _router_config_file(file)
    config = _read_json(config_file, "a router's training run") if config_file else None
    logger.info("router %s: %s, %d layers, config %s", file, family, layers, config_file)
    return RouterCheckpoint(state, file, config, family, layers)


def check_router(
    state: Mapping[str, Tensor],
    *,
    family: str,
    stacks: Mapping[str, int],
    heads: int,
    embedding_dim: int,
    source: str = "router",
) -> None:
    """Raises CheckpointError unless `state` holds exactly a router per block of this model.

    Args:
        stacks: the model's lists of blocks and their lengths, e.g. {"blocks": 30}.
    """
    layers = " + ".join(map(str, stacks.values()))
    model = f"a {family} model with {layers} layers, {heads} heads and embedding size {embedding_dim}"
    remedy = "use the router that was trained for this checkpoint"
    shapes = {"weight": (3 * heads, embedding_dim), "bias": (3 * heads,)}
    expected = {
        f"{stack}.{block}.router.linear.{name}": shape
        for stack, length in stacks.items()
        for block in range(length)
        for name, shape in shapes.items()
    }
    foreign = sorted(key for key in state if key.partition(".")[0] not in stacks)
    if foreign:
        raise CheckpointError(f"{source}: key {foreign[0]!r} belongs to another model family than {model}; {remedy}")
    for stack, length in stacks.items():
        found = {int(match[2]) for match in map(_ROUTER_KEY.fullmatch, state) if match and match[1] == stack}
        if found and max(found) >= length:
            what = "layers" if len(stacks) == 1 else f"layers of {stack}"
            raise CheckpointError(f"{source}: routes {max(found) + 1} {what}, but belongs to {model}; {remedy}")
    unexpected = sorted(set(state) - set(expected))
    if unexpected:
        raise CheckpointError(f"{source}: unexpected key {unexpected[0]!r} for {model}; {remedy}")
    missing = [key for key in expected if key not in state]
    if missing:
        raise CheckpointError(
            f"{source}: lacks {len(missing)} of {len(expected)} tensors, first {missing[0]!r}; must have a router for "
            f"each block of {model}; {remedy}"
        )
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise CheckpointError(
                f"{source}: {key} has shape {tuple(state[key].shape)}, must be {shape} for {model}; {remedy}"
            )
        if not bool(state[key].isfinite().all()):
            raise CheckpointError(f"{source}: {key} has values that are not finite; retrain or download it again")


# -- diffusers folders -------------------------------------------------------------------------------------------------


def _transformer_folder(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path}: does not exist; download it first, e.g. with `hf download`")
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path}: is a file; give the pipeline folder or its transformer/ folder")
    for folder in (path / "transformer", path):
        if (folder / "config.json").is_file():
            return folder
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"checkpoint {path}: has neither transformer/config.json nor config.json (it holds: {inside}); give a "
        f"diffusers pipeline folder or its transformer/ folder"
    )


def _weight_files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index = folder / INDEX
    if index.is_file():
        weight_map = _read_json(index, "a sharded checkpoint").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"index {index}: has no weight_map; download the checkpoint again")
        absent = sorted(file for file in set(weight_map.values()) if not (folder / file).is_file())
        if absent:
            raise FileNotFoundError(
                f"checkpoint {folder}: lacks {len(absent)} of its {len(set(weight_map.values()))} shards, first "
                f"{absent[0]}; download the checkpoint again"
            )
        return {name: folder / file for name, file in weight_map.items()}
    file = folder / WEIGHTS
    if file.is_file():
        with _open_safetensors(file) as handle:
            return dict.fromkeys(handle.keys(), file)
    others = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".bin", ".safetensors", ".pt"))
    raise FileNotFoundError(
        f"checkpoint {folder}: has neither {WEIGHTS} nor {INDEX} (weights there: {', '.join(others) or 'none'}); save "
        f"it with diffusers' save_pretrained(..., safe_serialization=True) and without a variant"
    )


def _open_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with mapping(file):
            return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"weights {file}: not readable as safetensors ({error}); download them again") from error


def _read_json(file: Path, purpose: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: is not valid JSON ({error}); restore the original file of {purpose}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: must hold a JSON object, not {type(content).__name__}; restore the original")
    return content


# -- routers -----------------------------------------------------------------------------------------------------------


def _router_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"router {path}: does not exist; give a training folder or a router.pt")
    if (path / "router.pt").is_file():
        return path / "router.pt"
    steps = [
        (int(match[1]), folder / "router.pt")
        for folder in (path / "ckpt").glob("step-*")
        if (match := _STEP.fullmatch(folder.name)) and (folder / "router.pt").is_file()
    ]
    if steps:
        return max(steps)[1]
    hint = f"; did you mean {path / 'train'}?" if (path / "train" / "ckpt").is_dir() else ""
    raise FileNotFoundError(
        f"router {path}: has neither router.pt nor ckpt/step-*/router.pt; give a training folder or a router.pt{hint}"
    )


def _router_config_file(file: Path) -> Path | None:
    folders = [file.parent]
    if _STEP.fullmatch(file.parent.name) and file.parent.parent.name == "ckpt":
        folders.append(file.parent.parent.parent)
    return next((folder / "config.json" for folder in folders if (folder / "config.json").is_file()), None)


def _load_state(file: Path) -> dict[str, Tensor]:
    rule = "must be a state dict saved by torch.save: router parameter names -> tensors"
    try:
        with mapping(file):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except HostOutOfMemory:
        raise
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, LookupError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"router {file}: cannot be read with torch.load(weights_only=True) ({reason}); {rule}; download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"router {file}: holds a {type(content).__name__}; {rule}")
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"router {file}: entry {key!r} is a {type(tensor).__name__}; {rule}")
    return dict(content)


def _router_family(file: Path, state: dict[str, Tensor]) -> tuple[str, int]:
    known = {stack for family in families() for stack in family.router_stacks}
    found = {key: match for key in state if (match := _ROUTER_KEY.fullmatch(key)) and match[1] in known}
    unknown = sorted(set(state) - set(found))
    if unknown or not state:
        what = f"key {unknown[0]!r}" if unknown else "no tensor"
        keys = ", or ".join(
            f"{' and '.join(f'{stack}.{{i}}.router.linear.*' for stack in family.router_stacks)} ({family})"
            for family in families()
        )
        raise CheckpointError(f"router {file}: holds {what}; keys must be {keys}; use the router.pt of a training")
    stacks = {match[1] for match in found.values()}
    fitting = [family for family in families() if stacks <= set(family.router_stacks)]
    if not fitting:
        raise CheckpointError(
            f"router {file}: mixes keys of several model families ({', '.join(sorted(stacks))}); use the router.pt of "
            f"one model"
        )
    family = min(fitting, key=lambda family: len(family.router_stacks))  # the one that lacks the fewest stacks
    return family.name, len({(match[1], match[2]) for match in found.values()})
