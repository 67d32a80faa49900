# SPDX-License-Identifier: Apache-2.0
"""`LoraFile`: a LoRA file checked against the model that it is for, every key of it accounted for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families.authors import Rows
from vorta_trt.model.lora.changes import Change, Difference, LowRank, Span
from vorta_trt.model.lora.keys import ModuleNames, Part, of_text_encoder, other_method, split_key
from vorta_trt.model.lora.peft_scales import PeftScales
from vorta_trt.model.lora.report import LoraReport, some
from vorta_trt.model.lora.spec import LoraSpec, sha256_of
from vorta_trt.model.lora.tensors import LoraTensors, Shape

_FLOATS = ("F64", "F32", "F16", "BF16")
_LOW_RANK = (Part.DOWN, Part.UP, Part.UP_BIAS, Part.ALPHA)
_MOST_SCALE = 1e6
_AGAIN = "download the file again"
_OF_THIS_MODEL = "use one that was made for this model"
_PLAIN = "use a LoRA of plain low rank"


class LoraFile:
    """A LoRA file of one model.

    Args:
        spec: The file, and its strength.
        names: Names of the model's modules.
        shapes: Gives the shape of a parameter.
        model: Name of the model, for errors.

    Attributes:
        changes: Parameter -> what is added to it.
        report: Which keys are used, and which are not.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is no LoRA, one of another model, damaged, or has values that are not finite.
    """

    def __init__(self, spec: LoraSpec, names: ModuleNames, shapes: Callable[[str], Shape], model: str) -> None:
        self.spec, self._names, self._shapes, self._model = spec, names, shapes, model
        self._tensors = LoraTensors(spec.path)
        self._scales = PeftScales.of(spec.path, self._tensors.metadata())
        self.changes: dict[str, list[Change]] = defaultdict(list)
        self._used: dict[str, list[str]] = defaultdict(list)  # key -> parameters
        self._unused: dict[str, str] = {}  # key -> reason
        self._take(self._modules())
        used = {key: tuple(dict.fromkeys(parameters)) for key, parameters in self._used.items()}
        self.report = LoraReport(spec.path.name, sha256_of(spec.path), spec.strength, used, self._unused)

    def close(self) -> None:
        """Lets go of the file; a tensor that is asked for later maps it again."""
        self._tensors.close()

    def _refuse(self, problem: str, remedy: str) -> CheckpointError:
        return CheckpointError(f"LoRA {self.spec.path}: {problem}; {remedy}")

    # -- every key -----------------------------------------------------------------------------------------------------

    def _modules(self) -> dict[str, dict[Part, str]]:
        """Name of a module in the file -> its tensors' keys; keys that cannot be used here are noted as unused."""
        modules: dict[str, dict[Part, str]] = defaultdict(dict)
        foreign = []
        keys = self._tensors.keys()
        for key in keys:
            if of_text_encoder(key):
                self._unused[key] = "for a text encoder, which runs as it is in the pipeline folder"
                continue
            if (method := other_method(key)) is not None:
                raise self._refuse(f"key {key!r} is of {method}, which is not fused", _PLAIN)
            if (split := split_key(key)) is None:
                foreign.append(key)
                continue
            module, part = split
            if (twin := modules[module].setdefault(part, key)) != key:
                raise self._twins(twin, key)
        if not modules:
            raise self._refuse(
                f"is no LoRA of a transformer: of its {len(keys)} keys ({some(keys) or 'none'}) none ends as those of "
                f"a LoRA, such as .lora_A.weight, .lora_down.weight or .diff",
                "give a LoRA file in safetensors format",
            )
        if foreign:
            raise self._refuse(
                f"{len(foreign)} of its {len(keys)} keys are of no known kind ({some(foreign)}), so it would be fused "
                f"in part",
                _PLAIN,
            )
        return modules

    def _take(self, modules: Mapping[str, Mapping[Part, str]]) -> None:
        found = {module: self._names.find(module) for module in modules}
        if foreign := [module for module, rows in found.items() if rows is None]:
            raise self._refuse(
                f"{len(foreign)} of the {len(modules)} modules that it changes are none of {self._model} "
                f"({some(foreign)}), so it is the LoRA of another model",
                _OF_THIS_MODEL,
            )
        taken: dict[tuple[Rows, Part], str] = {}
        for module, parts in modules.items():
            rows = found[module] or ()
            for part, key in parts.items():
                for each in rows:
                    if (twin := taken.setdefault((each, part), key)) != key:
                        raise self._twins(twin, key)
                self._check_values(key)
            scale = self._take_low_rank(rows, parts)
            for part, factor in ((Part.WEIGHT, 1.0), (Part.BIAS, 1.0), (Part.UP_BIAS, scale)):
                if part in parts:
                    self._take_difference(parts[part], rows, part is not Part.WEIGHT, factor)
        if not self._used:
            raise self._refuse(f"changes nothing of {self._model}, which has none of its modules", _OF_THIS_MODEL)

    def _twins(self, key: str, other: str) -> CheckpointError:
        return self._refuse(f"keys {key!r} and {other!r} are for the same", "use the file as it was published")

    def _check_values(self, key: str) -> None:
        kind = self._tensors.stored_type(key)
        if kind not in _FLOATS:
            raise self._refuse(
                f"{key} is stored as {kind}; must be one of {', '.join(_FLOATS)}", "use the LoRA in one of those types"
            )
        if not bool(torch.isfinite(self._tensors.read(key)).all()):
            raise self._refuse(f"{key} has values that are NaN or infinite", f"{_AGAIN}, or use another")

    # -- modules -------------------------------------------------------------------------------------------------------

    def _take_low_rank(self, rows: tuple[Rows, ...], parts: Mapping[Part, str]) -> float:
        """Takes up, down and alpha of a module, if it has them; returns alpha / rank."""
        given = [parts[part] for part in _LOW_RANK if part in parts]
        for part in (Part.DOWN, Part.UP):
            if given and part not in parts:
                raise self._refuse(f"{given[0]!r} has no {part.value!r} matrix beside it", _AGAIN)
        if not given:
            return 1.0
        down, up = parts[Part.DOWN], parts[Part.UP]
        down_shape, up_shape = self._tensors.shape(down), self._tensors.shape(up)
        rank = math.prod(up_shape[1:])
        if len(up_shape) < 2 or rank < 1 or down_shape[:1] != (rank,):
            raise self._refuse(f"{up} has shape {up_shape}, and {down} {down_shape}: their ranks must be equal", _AGAIN)
        keys = [parts[part] for part in _LOW_RANK if part in parts and part is not Part.UP_BIAS]
        scale = self._scale(parts.get(Part.ALPHA), rows[0].module, rank)
        for parameter, span in self._spans(up, keys, rows, bias=False):
            shape = self._shapes(parameter)
            if len(shape) < 2 or math.prod(down_shape[1:]) != math.prod(shape[1:]):
                raise self._misfit(down, f"{parameter} {shape}")
            change = LowRank(self._tensors.read, down, up, self.spec.strength * scale, span)
            self.changes[parameter].append(change)
        return scale

    def _take_difference(self, key: str, rows: tuple[Rows, ...], bias: bool, factor: float) -> None:
        for parameter, span in self._spans(key, [key], rows, bias=bias):
            shape = self._shapes(parameter)
            if self._tensors.shape(key)[1:] != shape[1:]:
                raise self._misfit(key, f"{parameter} {shape}")
            self.changes[parameter].append(Difference(self._tensors.read, key, self.spec.strength * factor, span))

    def _scale(self, alpha: str | None, module: str, rank: int) -> float:
        """Alpha / rank of a module."""
        if alpha is None:
            return self._scales.of_module(module, rank)
        shape = self._tensors.shape(alpha)
        if math.prod(shape) != 1:
            raise self._refuse(f"{alpha} has shape {shape}; must be one number", _AGAIN)
        scale = float(self._tensors.read(alpha)) / rank
        if abs(scale) > _MOST_SCALE:
            raise self._refuse(f"{alpha} is {scale * rank:g}, which is no alpha of rank {rank}", _AGAIN)
        return scale

    def _spans(self, key: str, keys: list[str], rows: tuple[Rows, ...], *, bias: bool) -> list[tuple[str, Span]]:
        """The parameters that a tensor changes, and which rows of the tensor are for them.

        Args:
            key: Key of the tensor.
            keys: Keys that are used, or not used, together with it.
            rows: Rows of the model that the tensor's module stands for.
            bias: Whether the tensor is for the bias.

        Returns:
            The parameters with their rows; empty if the model has no such parameter, and then `keys` are noted as
            unused.
        """
        spans: list[tuple[str, Span]] = []
        source = 0
        for each in rows:
            parameter = self._names.parameter(each.module, bias=bias)
            if parameter is None:
                what = "bias" if bias and self._names.parameter(each.module) is not None else "module"
                self._unused |= dict.fromkeys(keys, f"the model has no such {what}")
                return []
            count = self._shapes(parameter)[0] // each.parts
            spans.append((parameter, Span(each.part * count, count, source)))
            source += count
        if self._tensors.shape(key)[:1] != (source,):
            raise self._misfit(key, ", ".join(f"{parameter} {self._shapes(parameter)}" for parameter, _ in spans))
        for name in keys:
            self._used[name] += [parameter for parameter, _ in spans]
        return spans

    def _misfit(self, key: str, shapes: str) -> CheckpointError:
        return self._refuse(
            f"{key} has shape {self._tensors.shape(key)}, which does not fit {shapes} of {self._model}, so it is the "
            f"LoRA of a model of another size",
            _OF_THIS_MODEL,
        )
