# SPDX-License-Identifier: Apache-2.0
"""Reading VORTA routers as published, and checking that they belong to a model.

Nothing here runs code from a file: `router.pt` is read with `weights_only=True`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vorta_trt.model.configs import check_no_pointer, read_json
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.experts import in_words
from vorta_trt.model.families import families, get_family
from vorta_trt.model.files import absence
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.torch_files import UnreadableTorchFile, load_torch_file

logger = logging.getLogger(__name__)

COMPONENT = "component"  # entry of config.json: which of two experts a router was trained for
_ROUTER_KEY = re.compile(r"(\w+)\.(\d+)\.router\.linear\.(weight|bias)")
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class RouterCheckpoint:
    """A router as it lies on disk.

    Attributes:
        state_dict: `<blocks>.{i}.router.linear.{weight,bias}` -> tensor.
        path: the router.pt.
        config: config.json of its training, None if there is none.
        family: name of the model family, by the keys.
        layers: number of routed blocks.
    """

    state_dict: dict[str, Tensor]
    path: Path
    config: dict[str, Any] | None
    family: str
    layers: int

    def check_component(self, component: str, experts: Sequence[str]) -> None:
        """Refuses the router of the other expert, where the router's config says which expert it was trained for.

        Args:
            component: component of the model.
            experts: components of all experts of the model's pipeline.

        Raises:
            CheckpointError: the router was trained for the other expert.
        """
        trained = (self.config or {}).get(COMPONENT)
        if len(experts) > 1 and isinstance(trained, str) and trained in experts and trained != component:
            raise CheckpointError(
                f"router {self.path}: was trained for {in_words([trained])}, and this is {in_words([component])}; give "
                f"each expert its own, e.g. --router high=ROUTER --router low=ROUTER"
            )

    def geometry(self, model_config: Mapping[str, Any] | None = None) -> AttentionGeometry | None:
        """The geometry that the router was trained with, None without a config.json.

        Args:
            model_config: Config of the diffusers transformer, which says how long its text is; None stands for a
                published model of the family.
        """
        if self.config is None:
            return None
        if "self_attention_kwargs" not in self.config:
            raise CheckpointError(
                f"router config beside {self.path}: has no 'self_attention_kwargs'; use the config.json of the "
                f"training run, or pass geometry="
            )
        try:
            text_tokens = None if model_config is None else get_family(self.family).text_tokens_of(model_config)
            return AttentionGeometry.from_router_config(self.config, self.family, text_tokens=text_tokens)
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
        CheckpointError: the file is damaged, holds no state dict, or has keys that are no router's.
    """
    file = _router_file(Path(path))
    state = _load_state(file)
    family, layers = _router_family(file, state)
    config_file = _router_config_file(file)
    config = read_json(config_file, "a router's training run") if config_file else None
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
        state: state dict of the router.
        family: name of the model's family, for errors.
        stacks: the model's lists of blocks and their lengths, e.g. {"blocks": 30}.
        heads: N.
        embedding_dim: E.
        source: where the router comes from, for errors.
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


def _router_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        there = absence(path, "does not exist")
        raise FileNotFoundError(f"router {path}: {there}; give a training folder or a router.pt")
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
    check_no_pointer(file)
    rule = "must be a state dict saved by torch.save: router parameter names -> tensors"
    try:
        content = load_torch_file(file)
    except UnreadableTorchFile as error:
        raise CheckpointError(
            f"router {file}: cannot be read with torch.load(weights_only=True) ({error}); {rule}; download it again"
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
