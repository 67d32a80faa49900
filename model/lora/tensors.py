# SPDX-License-Identifier: Apache-2.0
"""`LoraTensors`: an opened LoRA file, whose tensors are read one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.files import absence, refuse_pointer
from vorta_trt.plugins.host_memory import mapping

Shape = tuple[int, ...]


class LoraTensors:
    """The tensors of a file in safetensors format.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is not in safetensors format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: Any = _open(path)

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self._opened.keys())

    def metadata(self) -> dict[str, str]:
        """The metadata that the file holds beside its tensors."""
        return dict(self._opened.metadata() or {})

    def read(self, key: str) -> Tensor:
        """A tensor in float32."""
        tensor: Tensor = self._opened.get_tensor(key).to(torch.float32)
        return tensor

    def shape(self, key: str) -> Shape:
        """Shape of a tensor, without reading it."""
        return tuple(self._opened.get_slice(key).get_shape())

    def stored_type(self, key: str) -> str:
        """Type of a tensor as safetensors names it."""
        return str(self._opened.get_slice(key).get_dtype())

    def close(self) -> None:
        """Lets go of the file; whatever is asked for later maps it again."""
        self._handle = None

    @property
    def _opened(self) -> Any:
        if self._handle is None:
            self._handle = _open(self._path)
        return self._handle


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise CheckpointError(f"LoRA {path}: is a folder; give the .safetensors file in it")
    if not path.exists():
        there = absence(path, "does not exist")
        raise FileNotFoundError(f"LoRA {path}: {there}; give a LoRA file in safetensors format")
    refuse_pointer(path, "LoRA")
    try:
        with mapping(path):
            return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"LoRA {path}: not readable as safetensors ({error}); download it again, in safetensors format"
        ) from error
