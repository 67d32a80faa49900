# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints with weights of 8 bits, as ComfyUI and ModelOpt write them, as they are or multiplied out.

A layer X of such a file has `X.weight` in float8. Unless the weights were only rounded, it also has a factor, which is
one number or one for each output channel. Its name is `X.scale_weight`; `X.weight_scale` in newer files and in
ModelOpt's; `X.weight_quantizer._scale` in files that diffusers saves for ModelOpt. The static scale of a layer's input
is `X.scale_input`, `X.input_scale`, or `X.input_quantizer._amax` / 448. A tensor `scaled_fp8`, tensors `X.comfy_quant`
and an entry of the header say which format a file has. For ModelOpt's files config.json says it (see `model_opt`), and
no factor may be missing.

    W = float32(weight) * float32(scale)
"""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.block_operators.references import FLOAT8, LARGEST_FLOAT8
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.safetensors_files import SafetensorsFiles, Weights

logger = logging.getLogger(__name__)

STORED_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_WEIGHT = ".weight"
_SCALES = (".scale_weight", ".weight_scale", ".weight_quantizer._scale")
_INPUT_LARGEST = ".input_quantizer._amax"
_INPUT_SCALES = (".scale_input", ".input_scale", _INPUT_LARGEST)
_UNUSED = (".weight_quantizer._amax",)  # from which a scale was computed
_MARK = "scaled_fp8"
_FORMAT = ".comfy_quant"
_HEADER = "_quantization_metadata"
_OTHER_SCALES = (".weight_scale_2", ".weight_scale_inv", ".pre_quant_scale", ".weight_scalar")


class MultipliedOut:
    """The weights of a file with float8, in float32 where they are float8; factors and marks are left out.

    Args:
        weights: Weights as they are stored.
        complete: Whether every weight in float8 must have its factor, and either all layers or none a scale of their
            input.

    Raises:
        CheckpointError: The file has another format of few bits, or factors do not belong to the weights or are
            missing.
    """

    def __init__(self, weights: SafetensorsFiles, complete: bool = False) -> None:
        self._weights = weights
        stored = weights.names()
        _check_formats(weights, stored)
        self._scales: dict[str, str] = {}  # weight -> its factor
        for name in stored:
            if name.endswith(_SCALES):
                weight = _layer_of(name, _SCALES) + _WEIGHT
                _check_scale(weights, name, weight, weight in stored)
                self._scales[weight] = name
        self._names = [name for name in stored if not _is_helper(name)]
        self._float8 = frozenset(name for name in self._names if weights.stored_type(name) in STORED_FLOAT8)
        self._input_scales = {
            _layer_of(name, _INPUT_SCALES): name for name in stored if name.endswith(_INPUT_SCALES)
        }  # layer -> tensor
        if complete:
            self._check_complete()

    def names(self) -> list[str]:
        """Names of all tensors but factors and marks, sorted."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._weights.shape(name)

    def stored_type(self, name: str) -> str:
        """F32 for what is multiplied out, otherwise as it is stored."""
        return "F32" if name in self._float8 else self._weights.stored_type(name)

    def tensor(self, name: str) -> Tensor:
        """The tensor, in float32 where it is stored in float8.

        Raises:
            CheckpointError: Its factor is not a positive number.
        """
        stored = self._weights.tensor(name)
        if name not in self._float8:
            return stored
        value = stored.to(torch.float32)
        if name not in self._scales:
            return value
        return value * self._factor(self._scales[name]).view(-1, *[1] * (value.ndim - 1))

    def e4m3(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A weight [O, K] as it is stored and its factors, float32 [O]; None unless it is a matrix in e4m3."""
        if (
            name not in self._float8
            or self._weights.stored_type(name) != STORED_FLOAT8[0]
            or len(self.shape(name)) != 2
        ):
            return None
        rows = self.shape(name)[0]
        scale = self._factor(self._scales[name]) if name in self._scales else torch.ones(1)  # [1] or [O]
        return self._weights.tensor(name).view(FLOAT8), scale.expand(rows).contiguous()

    def input_scales(self) -> dict[str, float]:
        """Static scales of the inputs of layers with weights in float8, by layer.

        Raises:
            CheckpointError: One is not a positive number.
        """
        found = {}
        for layer, name in self._input_scales.items():
            if layer + _WEIGHT in self._float8:
                scale = float(self._factor(name).max())
                found[layer] = scale / LARGEST_FLOAT8 if name.endswith(_INPUT_LARGEST) else scale
        return found

    def unquantised(self) -> tuple[str, ...]:
        """Layers whose weight, a matrix, is not in float8."""
        matrices = (name for name in self._names if name.endswith(_WEIGHT) and len(self.shape(name)) == 2)
        return tuple(name.removesuffix(_WEIGHT) for name in matrices if name not in self._float8)

    def _factor(self, name: str) -> Tensor:
        factor = self._weights.tensor(name).to(torch.float32).flatten()  # [1] or [rows]
        if not bool((factor.isfinite() & (factor > 0)).all()):
            raise CheckpointError(
                f"checkpoint {self._weights.origin}: {name} holds a factor that is not a positive number; download "
                f"the checkpoint again"
            )
        return factor

    def _check_complete(self) -> None:
        origin = f"checkpoint {self._weights.origin}"
        if not self._float8:
            raise CheckpointError(
                f"{origin}: its config says that weights are in fp8, and none is; config.json and weights must belong "
                f"together; download it again"
            )
        if missing := sorted(self._float8.difference(self._scales)):
            raise CheckpointError(
                f"{origin}: {len(missing)} of its {len(self._float8)} weights in float8 have no factor, first "
                f"{missing[0]}, whose factor would be {missing[0].removesuffix(_WEIGHT)}.weight_scale; export it again "
                f"with ModelOpt's export_hf_checkpoint, or download it again"
            )
        layers = sorted(name.removesuffix(_WEIGHT) for name in self._float8)
        without = [layer for layer in layers if layer not in self._input_scales]
        if without and len(without) < len(layers):
            raise CheckpointError(
                f"{origin}: {len(without)} of its {len(layers)} layers in float8 have no scale of their input, first "
                f"{without[0]}.input_scale, and others have; calibrate and export it again with ModelOpt, or download "
                f"it again"
            )

    def close(self) -> None:
        """Lets go of the files."""
        self._weights.close()

    @property
    def float8_count(self) -> int:
        """How many tensors are stored in float8."""
        return len(self._float8)

    def say(self) -> None:
        """Says, once for a checkpoint, that its weights are of 8 bits."""
        scaled = len(self._float8.intersection(self._scales))
        _say(self._weights.origin, len(self._float8), len(self._names), scaled)


def multiplied_out(weights: SafetensorsFiles, complete: bool = False) -> Weights:
    """`weights`, with those in float8 multiplied out, if there are any; a warning says so once.

    Args:
        weights: Weights as they are stored.
        complete: See `MultipliedOut`; the weights are those of a checkpoint in fp8.

    Raises:
        CheckpointError: See `MultipliedOut`.
    """
    if not complete and not any(
        _is_helper(name) or weights.stored_type(name) in STORED_FLOAT8 for name in weights.names()
    ):
        return weights
    result = MultipliedOut(weights, complete)
    result.say()
    return result


@cache
def _say(origin: Path, float8: int, total: int, scaled: int) -> None:
    factors = f"{scaled} of them with factors" if scaled else "without factors"
    logger.warning(
        "checkpoint %s: %d of %d tensors are stored in float8, %s; the model is that of the file of 8 bits, not the "
        "one that it was made from. With linear precision fp8 they are used as they are where they can be, else they "
        "are multiplied out",
        origin,
        float8,
        total,
        factors,
    )


def _layer_of(name: str, endings: tuple[str, ...]) -> str:
    """The name of a layer: `name` without its ending."""
    return name.removesuffix(next(ending for ending in endings if name.endswith(ending)))


def _is_helper(name: str) -> bool:
    """Whether a tensor is no weight but says how weights are stored."""
    return name.endswith((*_SCALES, *_INPUT_SCALES, *_UNUSED, _FORMAT)) or name.rpartition(".")[2] == _MARK


def _check_formats(weights: SafetensorsFiles, stored: list[str]) -> None:
    formats: dict[str, Any] = {}
    for name in stored:
        if name.endswith(_OTHER_SCALES):
            raise _other_format(weights, name, "a second factor or one of blocks")
        if name.endswith(_FORMAT):
            formats[name] = _parsed(bytes(weights.tensor(name).to(torch.uint8).flatten().tolist()))
    header = _parsed(weights.metadata().get(_HEADER, "{}").encode())
    layers = header.get("layers") if isinstance(header, dict) else None
    formats.update(layers if isinstance(layers, dict) else {})
    for name, entry in formats.items():
        kind = entry.get("format") if isinstance(entry, dict) else entry
        if kind not in _FORMATS:
            raise _other_format(weights, name, f"format {kind!r}")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None


def _other_format(weights: SafetensorsFiles, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {weights.origin}: {name} says {what}; of the formats with few bits only {' and '.join(_FORMATS)} "
        f"with a factor by tensor or by output channel are read; use the checkpoint in bfloat16 or float16"
    )


def _check_scale(weights: SafetensorsFiles, name: str, weight: str, is_there: bool) -> None:
    origin = f"checkpoint {weights.origin}: {name} is a factor"
    if not is_there:
        raise CheckpointError(f"{origin} of {weight}, which is not there; download the checkpoint again")
    if weights.stored_type(weight) not in STORED_FLOAT8:
        raise CheckpointError(
            f"{origin} of {weight}, which is stored as {weights.stored_type(weight)}; factors are read beside "
            f"{' and '.join(STORED_FLOAT8)}; use the checkpoint in bfloat16 or float16"
        )
    rows, shape = weights.shape(weight)[0], weights.shape(name)
    numbers = 1
    for side in shape:
        numbers *= side
    if numbers != 1 and (numbers != rows or shape[0] != rows):
        raise CheckpointError(
            f"{origin} of shape {shape} for {weight} of shape {weights.shape(weight)}; must be one number, or one for "
            f"each of the {rows} output channels; use the checkpoint in bfloat16 or float16"
        )
