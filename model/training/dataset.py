# SPDX-License-Identifier: Apache-2.0
"""The samples that a training run reads, every one of them checked before it starts.

Letters: B batch, C latent channels, F, H, W latent frames, height, width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vorta_trt.model.families.training import TrainingFamily
from vorta_trt.model.training.layouts import DataError, Layout, Sample, open_layout

logger = logging.getLogger(__name__)

_SHOWN = 5  # bad samples in one message
Progress = Callable[[str, int, int], object]


class LatentDataset:
    """Latents and text embeddings for one geometry.

    Args:
        layout: where the tensors lie. family: what they must be. shape: C, F, H, W of the latents that are trained on.
    """

    def __init__(self, layout: Layout, family: TrainingFamily, shape: tuple[int, int, int, int]) -> None:
        self.layout = layout
        self.family = family
        self.shape = shape
        self.samples: list[Sample] = list(layout.samples)

    @classmethod
    def open(cls, path: str | Path, family: TrainingFamily, shape: tuple[int, int, int, int]) -> LatentDataset:
        """The data at `path`, not checked yet; see `open_layout`."""
        return cls(open_layout(Path(path), family.facts.name), family, shape)

    def __len__(self) -> int:
        return len(self.samples)

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

        Raises DataError naming the samples if there are bad ones that may not be skipped, or none are good.
        """
        shown = "".join(f"\n  {reason}" for reason in list(bad.values())[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        count = f"{len(bad)} of {len(self.samples)} samples cannot be used"
        if bad and not skip_bad:
            raise DataError(
                f"data {self.layout.path}: {count}:{shown}{more}\nmend or remove them, or skip them with --skip-bad"
            )
        if len(bad) == len(self.samples):
            raise DataError(f"data {self.layout.path}: has no usable sample{':' if bad else ''}{shown}{more}")
        if bad and not quiet:
            logger.warning("data %s: %s and are skipped:%s%s", self.layout.path, count, shown, more)
        self.samples = [sample for index, sample in enumerate(self.samples) if index not in bad]

    def fingerprint(self) -> str:
        """Changes with the samples, their order and the latents' shape."""
        text = "\n".join([repr(self.shape), *(sample.name for sample in self.samples)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents float32 [B, C, F, H, W], and the family's conditions [B, ...], on the CPU."""
        latents, conditions = zip(*(self._read(self.samples[index]) for index in indices), strict=True)
        names = conditions[0].keys()
        return torch.stack(latents), {name: torch.stack([tensors[name] for tensors in conditions]) for name in names}

    def _read(self, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """A sample's tensors; DataError naming it if they are not what they should be."""
        name = f"sample {sample.name!r}"
        if not sample.latents.is_file():
            raise DataError(f"{name}: its latents {sample.latents} do not exist")
        if sample.prompt is None or not sample.prompt.is_file():
            why = "none is named" if sample.prompt is None else f"{sample.prompt} does not exist"
            raise DataError(f"{name}: has a caption but no text embedding, {why}")
        try:
            latents = self._fit(self.layout.latents(sample))  # [C, F, H, W]
            conditions = self.family.conditions(self.layout.prompt(sample, self.family))
        except (DataError, ValueError) as error:
            raise DataError(f"{name}: {error}") from error
        for what, tensor in {"latents": latents, **conditions}.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                wrong = int((~tensor.isfinite()).sum())
                raise DataError(f"{name}: {what} has {wrong} values that are NaN or infinite; encode it again")
        return latents.float(), conditions

    def _fit(self, latents: Tensor) -> Tensor:
        """The latents of the trained shape: as they are, or their last frames where the layout allows for more."""
        found = tuple(latents.shape)
        if len(found) == 4 and self.layout.more_frames and found[1] > self.shape[1]:
            latents = latents[:, -self.shape[1] :]
        if tuple(latents.shape) != self.shape:
            raise DataError(
                f"latents have shape {found}, must be {self.shape} [channels, frames, height, width]; prepare the data "
                f"for the size that is trained, or train with the data's --size"
            )
        return latents
