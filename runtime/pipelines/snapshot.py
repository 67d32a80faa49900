# SPDX-License-Identifier: Apache-2.0
"""`Snapshot`: are these the very same tensors as before? Told without looking at a value: no waiting for a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class Snapshot:
    """Which tensors were given, and how often each had been written to.

    It keeps them alive, so that no other tensor can be taken for one of them. Tensors made under
    `torch.inference_mode()` do not count their writes; they are never the same.
    """

    def __init__(self, tensors: Mapping[str, Tensor | None]) -> None:
        self._tensors = dict(tensors)
        self._writes = {name: _writes(tensor) for name, tensor in tensors.items()}

    def same(self, tensors: Mapping[str, Tensor | None]) -> bool:
        """Whether `tensors` are the same objects under the same names, and nothing has been written to them since."""
        return tensors.keys() == self._tensors.keys() and all(
            tensor is self._tensors[name] and (writes := _writes(tensor)) is not None and writes == self._writes[name]
            for name, tensor in tensors.items()
        )


def _writes(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return 0
    return None if tensor.is_inference() else tensor._version
