# SPDX-License-Identifier: Apache-2.0
"""`FusedReader`: the weights of a checkpoint with LoRA files added, one tensor at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.checkpoint import CheckpointReader
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.lora.keys import ModuleNames
from vorta_trt.model.lora.lora_file import LoraFile
from vorta_trt.model.lora.report import LoraReport
from vorta_trt.model.lora.spec import LoraSpec

logger = logging.getLogger(__name__)


class FusedReader(CheckpointReader):
    """A `CheckpointReader` whose `tensor` gives the fused weight.

    A changed weight is added up in float32 (float64 stays) and rounded once, to the type that it is asked for in; all
    others are views into the mapped file, as in `CheckpointReader`.

    Args:
        path: Path of the checkpoint; see `CheckpointReader`.
        loras: The LoRA files, in the order in which they are added.
        options: Further arguments of `CheckpointReader`.

    Attributes:
        reports: Report of each LoRA file: which keys were used.

    Raises:
        FileNotFoundError: The checkpoint or a LoRA file does not exist.
        CheckpointError: The checkpoint cannot be read, see `CheckpointReader`; or a file is no LoRA of this model.
    """

    def __init__(self, path: str | Path, loras: Sequence[LoraSpec], **options: Any) -> None:
        super().__init__(path, **options)
        self._loras: list[LoraFile] = []
        try:
            family = get_family(self.family)
            names = ModuleNames(family, family.authors_names(self.config), self.names())
            for spec in loras:
                self._loras.append(LoraFile(spec, names, self.shape, f"{family} checkpoint {self.path.name}"))
        except BaseException:
            self.close()
            raise
        self.reports: tuple[LoraReport, ...] = tuple(lora.report for lora in self._loras)
        for report in self.reports:
            logger.log(logging.WARNING if report.unused else logging.INFO, "LoRA %s", report)

    def tensor(self, name: str) -> Tensor:
        """The tensor with all LoRAs added, in float32 if there are any; otherwise as it is stored."""
        stored = super().tensor(name)
        changes = [change for lora in self._loras for change in lora.changes.get(name, ())]
        if not changes:
            return stored
        weight = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True).contiguous()
        for change in changes:
            change.add_to(weight)
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(
                f"LoRA {', '.join(lora.spec.path.name for lora in self._loras)}: {name} is not finite with it; use "
                f"another strength"
            )
        return weight

    def float8_weight(self, name: str) -> tuple[Tensor, Tensor] | None:
        """See `CheckpointReader.float8_weight`; None for a weight that a LoRA changes, too."""
        return None if any(name in lora.changes for lora in self._loras) else super().float8_weight(name)

    def close(self) -> None:
        """Lets go of all files; a tensor that is asked for later maps them again."""
        super().close()
        for lora in getattr(self, "_loras", ()):
            lora.close()
