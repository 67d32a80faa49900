# SPDX-License-Identifier: Apache-2.0
"""The factors alpha / rank that PEFT keeps outside of the tensors: in the file's metadata, or in a file beside it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vorta_trt.model.configs import read_json
from vorta_trt.model.errors import CheckpointError

_METADATA_KEY = "lora_adapter_metadata"  # of files that diffusers saves
_METADATA_PREFIX = "transformer."
_BESIDE = {"adapter_model.safetensors": "adapter_config.json"}  # of folders that PEFT saves


@dataclass(frozen=True)
class PeftScales:
    """The factor that a module's LoRA is multiplied with, where its tensors have no alpha.

    Attributes:
        alpha: Alpha of all other modules; None makes the factor 1 for all modules.
        alphas: Regular expression -> alpha of the modules whose names, or ends of names, match it.
        root: Whether alpha is divided by the square root of the rank, not by the rank.
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    root: bool = False

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, str]) -> PeftScales:
        """The scales of a LoRA file.

        Args:
            path: The file.
            metadata: The metadata that the safetensors file holds beside its tensors.

        Raises:
            CheckpointError: The record is damaged, or of a method that is not fused.
        """
        source, config = f"LoRA {path}: its metadata", _of_metadata(path, metadata)
        beside = path.with_name(_BESIDE[path.name]) if path.name in _BESIDE else None
        if config is None and beside is not None and beside.is_file():
            source, config = f"LoRA {path}: {beside.name} beside it", read_json(beside, "the LoRA")
        if config is None:
            return cls()
        for name in ("use_dora", "use_qalora"):
            if config.get(name):
                raise CheckpointError(f"{source} says {name}, which is not fused; use a LoRA of plain low rank")
        alphas = config.get("alpha_pattern") or {}
        given = [config.get("lora_alpha"), *(alphas.values() if isinstance(alphas, dict) else [None])]
        if not all(_is_number(value) for value in given):
            raise CheckpointError(
                f"{source} has lora_alpha and alpha_pattern {given}; must be numbers; download it again"
            )
        return cls(
            float(given[0]), {name: float(value) for name, value in alphas.items()}, bool(config.get("use_rslora"))
        )

    def of_module(self, module: str, rank: int) -> float:
        """The factor for a module, by its name in diffusers, whose LoRA has that rank."""
        if self.alpha is None:
            return 1.0
        pattern = next((name for name in self.alphas if re.match(rf"(.*\.)?({name})$", module)), None)
        alpha = self.alpha if pattern is None else self.alphas[pattern]
        return alpha / (math.sqrt(rank) if self.root else rank)


def _of_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    if _METADATA_KEY not in metadata:
        return None
    try:
        content = json.loads(metadata[_METADATA_KEY])
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"LoRA {path}: its {_METADATA_KEY} is no JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"LoRA {path}: its {_METADATA_KEY} is no JSON object; download it again")
    ours = {
        key.removeprefix(_METADATA_PREFIX): value for key, value in content.items() if key.startswith(_METADATA_PREFIX)
    }
    return ours or None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
