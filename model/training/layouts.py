# SPDX-License-Identifier: Apache-2.0
"""Training data on disk: which samples there are and where their tensors lie. Two layouts are read.

Prepared, by `vorta-trt train-router prepare`; a folder with

    dataset.json                         {"version": 1, "family": "wan", "video_size": [frames, height, width],
                                          "samples": [{"name": "cat", "caption": "A cat ..."}, ...]}
    latents/<name>.safetensors           latents [C, F, H, W]
    prompts/<name>.safetensors           the text embeddings of the caption: prompt_embeds [X, text_dim]; HunyuanVideo:
                                         prompt_attention_mask [X] and pooled_prompt_embeds [pooled_dim], too

Reference, of the VORTA authors' code; a JSON list beside the folders latent/, prompt_embed/ and, where the family needs
it, prompt_attention_mask/, each entry {"latent_path": ..., "prompt_embed_path": ..., "caption": ...}, tensors by
torch.save. Their latents may have more frames than are trained on: the last ones count. The data of a family without
text masks may name mask files all the same; nobody reads them, so they need not be there.

Letters: C latent channels, F, H, W latent frames, height, width, X text tokens.
"""

from __future__ import annotations

import abc
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.families.training import TrainingFamily
from vorta_trt.plugins.errors import VortaError

DATASET_FILE = "dataset.json"
REFERENCE_FILES = ("videos2caption.json", "video2caption.json")
VERSION = 1
MASK = "prompt_attention_mask"  # the condition, and the key of the reference layout that names its file


class DataError(ValueError):
    """Training data is not what it should be; the message names the sample, the rule and the remedy."""


@dataclass(frozen=True)
class Sample:
    """Name, caption, and the files of one video; `prompt` is None where the data names no text embedding."""

    name: str
    caption: str
    latents: Path
    prompt: Path | None
    mask: Path | None = None


class Layout(abc.ABC):
    """The samples of a data folder, their tensors read on demand.

    Attributes:
        path: as given. samples: in the order of the file. video_size: frames, height, width in pixels, if it is known.
    """

    more_frames: bool = False  # whether latents may have more frames than are trained on

    def __init__(self, path: Path, samples: list[Sample], video_size: tuple[int, int, int] | None) -> None:
        self.path = path
        self.samples = samples
        self.video_size = video_size

    def size(self, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """The size that is asked for, or the data's own. Raises VortaError if neither is known."""
        size = given or self.video_size
        if size is None:
            raise VortaError(
                f"data {self.path}: the reference code's layout does not say the size of its videos; give it with "
                f"--size, e.g. --size 77x720x1280"
            )
        return size

    @abc.abstractmethod
    def latents(self, sample: Sample) -> Tensor:
        """[C, F, H, W] as stored. Raises DataError naming the file."""

    @abc.abstractmethod
    def prompt(self, sample: Sample, family: TrainingFamily) -> Mapping[str, Tensor]:
        """The family's conditions as stored. Raises DataError naming the file."""


class PreparedLayout(Layout):
    def latents(self, sample: Sample) -> Tensor:
        return _read_safetensors(sample.latents, ("latents",))["latents"]

    def prompt(self, sample: Sample, family: TrainingFamily) -> Mapping[str, Tensor]:
        return _read_safetensors(_named(sample), family.condition_names)


class ReferenceLayout(Layout):
    more_frames = True

    def latents(self, sample: Sample) -> Tensor:
        tensor = _read_pt(sample.latents)
        return tensor.squeeze(0) if tensor.ndim == 5 else tensor

    def prompt(self, sample: Sample, family: TrainingFamily) -> Mapping[str, Tensor]:
        mask = None
        if sample.mask is not None and MASK in family.condition_names:
            if not sample.mask.is_file():
                raise DataError(f"its text mask {sample.mask} does not exist; encode the captions again")
            mask = _read_pt(sample.mask)
        return family.reference_conditions(_read_pt(_named(sample)), mask)


def open_layout(path: Path, family: str) -> Layout:
    """The layout at `path`: a folder with dataset.json or videos2caption.json, or such a file of another name.

    Raises FileNotFoundError or DataError if there is none, or it is of another family.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"data {path}: does not exist; make it with `vorta-trt train-router prepare`, or give the JSON file of the "
            f"reference code's layout"
        )
    file = path
    if path.is_dir():
        found = [path / name for name in (DATASET_FILE, *REFERENCE_FILES) if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(
                f"data {path}: has neither {DATASET_FILE} nor {REFERENCE_FILES[0]}; make it with `vorta-trt "
                f"train-router prepare`, or give the JSON file of the reference code's layout"
            )
        file = found[0]
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"data {file}: is not valid JSON ({error}); prepare the data again") from error
    if isinstance(content, list):
        return ReferenceLayout(path, [_reference_sample(file, *item) for item in enumerate(content)], None)
    return _prepared(path, file, content, family)


def latent_file(folder: Path, name: str) -> Path:
    return folder / "latents" / f"{name}.safetensors"


def prompt_file(folder: Path, name: str) -> Path:
    return folder / "prompts" / f"{name}.safetensors"


def _prepared(path: Path, file: Path, content: Any, family: str) -> PreparedLayout:
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise DataError(
            f"data {file}: has version {version}, must be {VERSION}; prepare the data again with this vorta-trt"
        )
    if content.get("family") != family:
        raise DataError(
            f"data {file}: was prepared for family {content.get('family')!r}, the checkpoint is {family!r}; prepare it "
            f"with the checkpoint that is trained"
        )
    try:
        frames, height, width = (int(size) for size in content["video_size"])
        names = [(str(entry["name"]), str(entry["caption"])) for entry in content["samples"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"data {file}: needs video_size and samples with name and caption; prepare it again") from error
    folder = file.parent
    samples = [Sample(name, caption, latent_file(folder, name), prompt_file(folder, name)) for name, caption in names]
    return PreparedLayout(path, samples, (frames, height, width))


def _reference_sample(file: Path, index: int, entry: Any) -> Sample:
    if not isinstance(entry, dict) or "latent_path" not in entry:
        raise DataError(f"data {file}: entry {index} has no latent_path; restore the file of the reference code")
    name = Path(entry["latent_path"]).stem
    prompt, mask = entry.get("prompt_embed_path"), entry.get(MASK)
    return Sample(
        name,
        str(entry.get("caption", "")),
        file.parent / "latent" / entry["latent_path"],
        file.parent / "prompt_embed" / prompt if prompt else None,
        file.parent / "prompt_attention_mask" / mask if mask else None,
    )


def _named(sample: Sample) -> Path:
    if sample.prompt is None:
        raise DataError("the data names no text embedding for its caption")
    return sample.prompt


def _read_safetensors(file: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is not readable as safetensors ({error})") from error
    for name in names:
        if name not in tensors:
            raise DataError(f"{file} has no tensor {name!r} (it has {', '.join(sorted(tensors)) or 'none'})")
    return tensors


def _read_pt(file: Path) -> Tensor:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, LookupError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{file} cannot be read with torch.load(weights_only=True) ({reason})") from error
    if not isinstance(content, Tensor):
        raise DataError(f"{file} holds a {type(content).__name__}, must be one tensor")
    return content
