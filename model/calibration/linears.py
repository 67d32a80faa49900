# SPDX-License-Identifier: Apache-2.0
"""Linear layers during the dense passes of a calibration: what fp8 would do to each, and how large its inputs are.

Every layer gets the input of the dense pass itself, so each error is that of one layer alone. On some of the tokens,
the layer's product in fp8 is compared with the exact product with the same weight. The largest input is taken over all
tokens.

Letters: R rows (some of the tokens), K and O features before and after the product.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vorta_trt.model.block_operators import quantize_rows
from vorta_trt.model.block_operators.references import LARGEST_FLOAT8, fp8_linear, linear, quantize
from vorta_trt.model.files import json_kind, write_text
from vorta_trt.model.linear_choice import FEATURE_MULTIPLE
from vorta_trt.model.records import Record, load_record
from vorta_trt.model.transformer import RoutedTransformer

MOST_ROWS = 512  # rows of a layer's input, evenly spread, on which a pass measures the error
# A guess: twice what rounding both sides of a product of random unit-normal numbers to e4m3 makes, 0.037 (studies/
# linear_fp8.py). No layer of a published checkpoint was measured, nor what such a layer does to a video.
ERROR_LIMIT = 0.08
KIND = json_kind("linear calibration", "format", "family", "checkpoint", "layers")
_REMEDY = "make it with `vorta-trt calibrate --linear-output`"


class LinearMeasure(Record):
    """Measured values of one layer.

    Attributes:
        relative_l2: |fp8 - exact| / |exact| of the layer's product, in the worst pass.
        norm_ratio: |fp8| / |exact|, in that pass.
        input_largest: The largest magnitude in the layer's inputs, over all passes.
    """

    relative_l2: float = Field(ge=0)
    norm_ratio: float = Field(ge=0)
    input_largest: float = Field(ge=0)


class LinearCalibration(Record):
    """A JSON file: which linear layers fp8 harms, and static scales of their inputs.

    Attributes:
        family: Name of the model family.
        checkpoint: Name of the checkpoint.
        component: Which of two experts was measured; None for a model alone.
        layers: Measured values of the linear layers, by layer name.
    """

    format: Literal[1] = 1
    family: str
    checkpoint: str
    component: Literal["transformer", "transformer_2"] | None = None
    layers: dict[str, LinearMeasure]

    def sensitive(self, limit: float = ERROR_LIMIT) -> tuple[str, ...]:
        """Names of the layers with an error above the limit.

        Raises:
            ValueError: The limit is not above 0.
        """
        if not limit > 0:
            raise ValueError(f"linear_error_limit {limit:g}: must be above 0; rounding alone makes 0.037")
        return tuple(name for name, found in self.layers.items() if found.relative_l2 > limit)

    def input_scales(self) -> dict[str, float]:
        """Static scales of the layers' inputs, which map the largest input to the largest number of e4m3."""
        return {
            name: found.input_largest / LARGEST_FLOAT8 for name, found in self.layers.items() if found.input_largest
        }

    def check(self, family: str, component: str | None) -> None:
        """Raises ValueError unless the calibration is for this model family and this expert."""
        if (self.family, self.component) != (family, component):
            raise ValueError(
                f"linear calibration of {self.checkpoint}: is for family {self.family!r}, expert {self.component}, and "
                f"the model is of {family!r}, expert {component}; calibrate the model itself"
            )

    def save(self, path: str | Path) -> None:
        """Writes the file, or replaces it once the new one is complete."""
        write_text(path, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> LinearCalibration:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: There is no such file.
            JsonFileError: A file that `save` did not write, or that is damaged.
        """
        return load_record(cls, path, "linear calibration", _REMEDY)


class LinearProbe:
    """Measures the linear layers of a model while it runs."""

    def __init__(self) -> None:
        self._found: dict[str, LinearMeasure] = {}

    @contextmanager
    def watching(self, model: RoutedTransformer) -> Iterator[None]:
        """Measures the `nn.Linear` layers of `model` in every pass that it does within the block."""
        handles = [
            module.register_forward_hook(partial(self._measure, name))
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and module.in_features % FEATURE_MULTIPLE == 0
            and module.out_features % FEATURE_MULTIPLE == 0
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def result(self, model: RoutedTransformer, component: Any) -> LinearCalibration:
        """Everything that was found."""
        return LinearCalibration(
            family=model.family, checkpoint=str(model.checkpoint_name), component=component, layers=self._found
        )

    def _measure(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        tokens = inputs[0].detach().flatten(0, -2)  # [R, K]
        rows = tokens[:: -(-len(tokens) // MOST_ROWS)].unsqueeze(0).float()  # [1, R, K]
        bias = torch.zeros(layer.out_features, device=rows.device)  # no bias: the product alone is compared
        weight, scale = quantize_rows(layer.weight.detach())  # [O, K], [O, 1]
        exact = linear(rows, layer.weight.detach(), bias, "none").double()  # [1, R, O]
        in_fp8 = fp8_linear(*quantize(rows), weight, scale.flatten(), bias, "none").double()
        norm = float(exact.norm())
        found = LinearMeasure(
            relative_l2=float((in_fp8 - exact).norm()) / norm if norm else 0.0,
            norm_ratio=float(in_fp8.norm()) / norm if norm else 1.0,
            input_largest=float(tokens.abs().amax()),
        )
        before = self._found.get(name, found)
        worst = max(before, found, key=lambda each: each.relative_l2)
        largest = max(before.input_largest, found.input_largest)
        self._found[name] = worst.model_copy(update={"input_largest": largest})
