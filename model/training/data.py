# SPDX-License-Identifier: Apache-2.0
"""Training data on disk, every sample of it checked before a run starts. Two layouts are read.

Prepared, by `vorta-trt train-router prepare`; a folder with

    dataset.json                      {"version": 1, "family": NAME, "video_size": [frames, height, width],
                                       "samples": [{"name": "cat", "caption": "A cat ..."}, ...]}
    latents/<name>.safetensors        latents [C, F, H, W]; of a model that takes images also what VAE and image encoder
                                      make of the video's own first (and last) frame: the family's `image_names`
    prompts/<name>.safetensors        what the model sees of the caption: the tensors of the family's `condition_names`

Reference, of the VORTA authors' code; a JSON list beside the folders latent/, prompt_embed/ and, where the family needs
it, prompt_attention_mask/, each entry {"latent_path": ..., "prompt_embed_path": ..., "caption": ...}, tensors by
torch.save. Their latents may have more frames than are trained on: the last ones count. The data of a family without
text masks may name mask files all the same; nobody reads them, so they need not be there. It has no images.

Letters: B batch, C latent channels, F, H, W latent frames, height, width.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from vorta_trt.model.families.training import TrainingFamily
from vorta_trt.model.records import Record, read_json
from vorta_trt.model.torch_files import UnreadableTorchFile, load_torch_file
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.host_memory import mapping

logger = logging.getLogger(__name__)

DATASET_FILE = "dataset.json"
REFERENCE_FILES = ("videos2caption.json", "video2caption.json")
VERSION: Final = 1
MASK = "prompt_attention_mask"  # the condition, and the key of the reference layout that names its file
_SHOWN = 5  # bad samples in one message
Progress = Callable[[str, int, int], object]
Shape = tuple[int, int, int, int]
_Side = Annotated[int, Field(ge=1)]


class DataError(ValueError):
    """Training data is not what it should be; the message names the sample, the rule and the remedy."""


class PreparedSample(Record):
    """A video in dataset.json.

    Attributes:
        name: Name of its files, without the suffix.
        caption: Caption from which its text embedding was made.
    """

    name: Annotated[str, Field(min_length=1)]
    caption: str


class PreparedFile(Record):
    """The content of dataset.json."""

    version: Literal[1]
    family: str
    video_size: tuple[_Side, _Side, _Side]
    samples: tuple[PreparedSample, ...]


class _ReferenceEntry(Record):
    latent_path: Annotated[str, Field(min_length=1)]
    prompt_embed_path: str | None = None
    prompt_attention_mask: str | None = None
    caption: JsonValue = ""


@dataclass(frozen=True)
class Sample:
    """The files of one video.

    Attributes:
        name: Name for messages.
        latents: File of the latents.
        prompt: File of the text embedding; None where the data names none.
        mask: File of the text mask, in the reference layout.
    """

    name: str
    latents: Path
    prompt: Path | None
    mask: Path | None = None


class LatentDataset:
    """Latents and text embeddings, read on demand.

    Args:
        path: A folder with dataset.json or videos2caption.json, or such a file of another name.
        family: Family of the model, which says what the tensors must be.
        shape: C, F, H, W of the latents that are trained on; may be set later, before anything is read.

    Attributes:
        samples: The samples, in the order of the file.
        video_size: Frames, height, width in pixels, where the layout says them.

    Raises:
        FileNotFoundError: There is no data at `path`.
        DataError: The data is of another family, or breaks a rule of its layout.
    """

    def __init__(self, path: str | Path, family: TrainingFamily, shape: Shape | None = None) -> None:
        self.path, self.family, self.shape = Path(path), family, shape
        self.video_size: tuple[int, int, int] | None = None
        file = _data_file(self.path)
        self.is_reference = file.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        self.samples: list[Sample] = self._reference(file) if self.is_reference else self._prepared(file)

    def __len__(self) -> int:
        return len(self.samples)

    def size(self, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Returns the size that is asked for, or the data's own.

        Raises:
            VortaError: Neither is known.
        """
        size = given or self.video_size
        if size is None:
            raise VortaError(
                f"data {self.path}: the reference code's layout does not say the size of its videos; give it with "
                f"--size, e.g. --size 77x720x1280"
            )
        return size

    def find_bad(self, progress: Progress) -> dict[int, str]:
        """Reads everything: index of a sample that cannot be trained on -> why."""
        bad = {}
        for index, sample in enumerate(self.samples):
            progress("checking the data", index, len(self.samples))
            try:
                self._read(sample)
            except DataError as error:
                bad[index] = str(error)
        return bad

    def leave_out(self, bad: dict[int, str], skip_bad: bool, quiet: bool = False) -> None:
        """Leaves out bad samples with `skip_bad`, counted in the log unless `quiet`.

        Raises:
            DataError: There are bad samples that may not be skipped, or none are good; it names them.
        """
        shown = "".join(f"\n  {reason}" for reason in list(bad.values())[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        count = f"{len(bad)} of {len(self.samples)} samples cannot be used"
        if bad and not skip_bad:
            raise DataError(
                f"data {self.path}: {count}:{shown}{more}\nmend or remove them, or skip them with --skip-bad"
            )
        if len(bad) == len(self.samples):
            raise DataError(f"data {self.path}: has no usable sample{':' if bad else ''}{shown}{more}")
        if bad and not quiet:
            logger.warning("data %s: %s and are skipped:%s%s", self.path, count, shown, more)
        self.samples = [sample for index, sample in enumerate(self.samples) if index not in bad]

    def fingerprint(self) -> str:
        """Returns a text that changes with the samples, their order and the latents' shape."""
        text = "\n".join([repr(self.shape), *(sample.name for sample in self.samples)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns latents float32 [B, C, F, H, W] and the family's conditions [B, ...], on the CPU.

        Raises:
            DataError: A sample is not what it was when it was checked.
        """
        latents, conditions = zip(*(self._read(self.samples[index]) for index in indices), strict=True)
        names = conditions[0].keys()
        return torch.stack(latents), {name: torch.stack([tensors[name] for tensors in conditions]) for name in names}

    # -- the files -----------------------------------------------------------------------------------------------------

    def _prepared(self, file: Path) -> list[Sample]:
        content = read_json(
            file, PreparedFile, lambda wrong: DataError(f"data {file}: {wrong}; prepare the data again")
        )
        if content.family != self.family.facts.name:
            raise DataError(
                f"data {file}: was prepared for family {content.family!r}, the checkpoint is "
                f"{self.family.facts.name!r}; prepare it with the checkpoint that is trained"
            )
        names = [sample.name for sample in content.samples]
        name, count = max(Counter(names).items(), key=lambda entry: entry[1], default=("", 0))
        if count > 1:
            raise DataError(f"data {file}: sample {name!r} stands there {count} times; prepare the data again")
        self.video_size = content.video_size
        return [Sample(name, latent_file(file.parent, name), prompt_file(file.parent, name)) for name in names]

    def _reference(self, file: Path) -> list[Sample]:
        if names := self.family.image_names:
            raise DataError(
                f"data {file}: the reference code's layout has no {names[0]}, which this model takes; prepare the "
                f"videos with `vorta-trt train-router prepare`"
            )

        def refuse(wrong: str) -> DataError:
            return DataError(f"data {file}: {wrong}; restore the file of the reference code")

        def sample(entry: _ReferenceEntry) -> Sample:
            prompt, mask = entry.prompt_embed_path, entry.prompt_attention_mask
            return Sample(
                Path(entry.latent_path).stem,
                file.parent / "latent" / entry.latent_path,
                file.parent / "prompt_embed" / prompt if prompt else None,
                file.parent / MASK / mask if mask and MASK in self.family.condition_names else None,
            )

        return [sample(entry) for entry in read_json(file, list[_ReferenceEntry], refuse)]

    def _read(self, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """Reads a sample's tensors; DataError naming it if they are not what they should be."""
        name = f"sample {sample.name!r}"
        if not sample.latents.is_file():
            raise DataError(f"{name}: its latents {sample.latents} do not exist")
        if sample.prompt is None or not sample.prompt.is_file():
            why = "none is named" if sample.prompt is None else f"{sample.prompt} does not exist"
            raise DataError(f"{name}: has a caption but no text embedding, {why}")
        if sample.mask is not None and not sample.mask.is_file():
            raise DataError(f"{name}: its text mask {sample.mask} does not exist")
        stored: Mapping[str, Tensor]
        try:
            if self.is_reference:
                latents = _read_pt(sample.latents)
                latents = latents.squeeze(0) if latents.ndim == 5 else latents
                mask = None if sample.mask is None else _read_pt(sample.mask)
                stored = self.family.reference_conditions(_read_pt(sample.prompt), mask)
            else:
                of_video = _read_safetensors(sample.latents, ("latents", *self.family.image_names))
                latents = of_video.pop("latents")
                stored = {**_read_safetensors(sample.prompt, self.family.condition_names), **of_video}
            latents = self._fit(latents)  # [C, F, H, W]
            conditions = self.family.conditions(stored)
            check_finite({"latents": latents, **conditions})
        except ValueError as error:  # DataError, too
            raise DataError(f"{name}: {error}") from error
        return latents.float(), conditions

    def _fit(self, latents: Tensor) -> Tensor:
        """Gives latents of the trained shape: as they are, or their last frames in the reference layout."""
        found = tuple(latents.shape)
        if self.shape is not None and self.is_reference and len(found) == 4 and found[1] > self.shape[1]:
            latents = latents[:, -self.shape[1] :]
        if tuple(latents.shape) != self.shape:
            raise DataError(
                f"latents have shape {found}, must be {self.shape} [channels, frames, height, width]; prepare the data "
                f"for the size that is trained, or train with the data's --size"
            )
        if not latents.is_floating_point():
            raise DataError(f"latents are {latents.dtype}, must be floating-point numbers; encode the video again")
        return latents


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises DataError naming a tensor with values that are NaN or infinite."""
    for what, tensor in tensors.items():
        if tensor.is_floating_point() and (wrong := int((~tensor.isfinite()).sum())):
            raise DataError(f"{what} has {wrong} values that are NaN or infinite; encode it again, or leave it out")


def latent_file(folder: Path, name: str) -> Path:
    """Returns where a prepared sample's latents are."""
    return folder / "latents" / f"{name}.safetensors"


def prompt_file(folder: Path, name: str) -> Path:
    """Returns where a prepared sample's text embeddings are."""
    return folder / "prompts" / f"{name}.safetensors"


def _data_file(path: Path) -> Path:
    remedy = (
        "make it with `vorta-trt train-router prepare`, or give the JSON file of the reference code's layout"  # --data
    )
    if not path.exists():
        raise FileNotFoundError(f"data {path}: does not exist; {remedy}")
    if not path.is_dir():
        return path
    found = [path / name for name in (DATASET_FILE, *REFERENCE_FILES) if (path / name).is_file()]
    if not found:
        raise FileNotFoundError(f"data {path}: has neither {DATASET_FILE} nor {REFERENCE_FILES[0]}; {remedy}")
    return found[0]


def _read_safetensors(file: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with mapping(file):
            tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is not readable as safetensors ({error})") from error
    for name in names:
        if name not in tensors:
            raise DataError(f"{file} has no tensor {name!r} (it has {', '.join(sorted(tensors)) or 'none'})")
    return tensors


def _read_pt(file: Path) -> Tensor:
    try:
        content = load_torch_file(file)
    except UnreadableTorchFile as error:
        raise DataError(f"{file} cannot be read with torch.load(weights_only=True) ({error})") from error
    if not isinstance(content, Tensor):
        raise DataError(f"{file} holds a {type(content).__name__}, must be one tensor")
    return content
