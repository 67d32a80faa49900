# SPDX-License-Identifier: Apache-2.0
"""The timestep path of an exported file: the weights of its timestep embedder and routers, by their names in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.export.names import TRANSPOSED
from vorta_trt.export.onnx_file import OnnxFile

if TYPE_CHECKING:
    import onnx
    from torch import Tensor


@dataclass(frozen=True)
class TimestepWeights:
    """Copies of the initializers, by parameter name; external ones are read from `file` when they are asked for."""

    initializers: Mapping[str, onnx.TensorProto]
    file: OnnxFile

    def load(self, name: str) -> Tensor:
        """A weight in the shape and the type that it has in torch."""
        import ml_dtypes
        import numpy as np
        import torch

        tensor = self.initializers[name]
        array = np.array(self.file.read_weight(tensor))  # a copy: the array may be read-only
        if array.dtype == ml_dtypes.bfloat16:
            weight = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            weight = torch.from_numpy(array)
        return weight.t().contiguous() if tensor.name.endswith(TRANSPOSED) else weight

    def save(self, path: Path) -> None:
        """Writes the weights in the format that `TimestepPath.load` reads."""
        from vorta_trt.model.timestep_path import save_timestep_path

        save_timestep_path(path, {name: self.load(name) for name in self.initializers})


def timestep_weights(file: OnnxFile, family: str | None) -> TimestepWeights | None:
    """The weights of the timestep path in an exported graph; None for a file of another origin or without them.

    Args:
        file: The exported file.
        family: Model family, as the file's metadata states it.
    """
    from vorta_trt.model.timestep_path import timestep_parameters

    if family is None:
        return None
    by_name = {tensor.name.removesuffix(TRANSPOSED): tensor for tensor in file.model.graph.initializer}
    found: dict[str, onnx.TensorProto] = {}
    for name in timestep_parameters(family, by_name):
        found[name] = type(by_name[name])()
        found[name].CopyFrom(by_name[name])  # outlives the graph, whose initializers a builder drops
    return TimestepWeights(found, file) if found else None
