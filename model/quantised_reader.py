# SPDX-License-Identifier: Apache-2.0
"""`QuantisedReader`: the weights of a checkpoint, those of chosen linear layers rounded to e4m3, one at a time.

A weight that the checkpoint holds in e4m3 already, and that no LoRA changes, is taken as it is with its own scale;
every other is read, fused with its LoRAs, and rounded with a scale for each output feature. So no more than one weight
is in memory at a time; the scales, a number for every row, are kept.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from vorta_trt.model.block_operators import quantize_rows
from vorta_trt.model.fp8_linear import WEIGHT, WEIGHT_SCALE
from vorta_trt.model.lora.fused import FusedReader


class QuantisedReader(FusedReader):
    """A `FusedReader` that gives `X.weight` in e4m3 and `X.weight_scale` for the layers X of `quantise`."""

    _layers: frozenset[str] = frozenset()

    def quantise(self, layers: Collection[str]) -> None:
        """Says which layers have e4m3 weights from now on; they are names of linear layers of the checkpoint."""
        self._layers = frozenset(layers)
        self._row_scales: dict[str, Tensor] = {}  # layer -> float32 [O]

    def names(self) -> list[str]:
        """Names of all tensors, sorted; scales are among them."""
        return sorted([*super().names(), *(f"{layer}.{WEIGHT_SCALE}" for layer in self._layers)])

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self._layer(str(name), WEIGHT_SCALE) is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if (layer := self._layer(name, WEIGHT_SCALE)) is not None:
            return super().shape(f"{layer}.{WEIGHT}")[:1]
        return super().shape(name)

    def stored_type(self, name: str) -> str:
        """Data type of what `tensor` gives, as safetensors names it; a fused weight has that of the file."""
        if self._layer(name, WEIGHT_SCALE) is not None:
            return "F32"
        return "F8_E4M3" if self._layer(name, WEIGHT) is not None else super().stored_type(name)

    def tensor(self, name: str) -> Tensor:
        """The tensor: e4m3 [O, K] and float32 [O] for the layers of `quantise`, others as in `FusedReader`."""
        if (layer := self._layer(name, WEIGHT_SCALE)) is not None:
            if layer not in self._row_scales:
                self._quantised(layer)
            return self._row_scales[layer]
        if (layer := self._layer(name, WEIGHT)) is not None:
            return self._quantised(layer)
        return super().tensor(name)

    def exact_weight(self, layer: str) -> Tensor:
        """The weight [O, K] of a layer before it is rounded, fused with its LoRAs."""
        return super().tensor(f"{layer}.{WEIGHT}")

    def _quantised(self, layer: str) -> Tensor:
        stored = self.float8_weight(f"{layer}.{WEIGHT}")
        weight, scale = stored or quantize_rows(self.exact_weight(layer))  # [O, K], [O] or [O, 1]
        self._row_scales[layer] = scale.flatten()
        return weight

    def _layer(self, name: str, parameter: str) -> str | None:
        """The layer of `quantise` whose parameter has this name."""
        layer, _, leaf = name.rpartition(".")
        return layer if leaf == parameter and layer in self._layers else None
