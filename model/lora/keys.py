# SPDX-License-Identifier: Apache-2.0
"""From the keys of a LoRA file to the modules of a model, in every layout that is in use.

    diffusion_model.blocks.0.self_attn.q.lora_down.weight     ComfyUI: the authors' names
    lora_unet_blocks_0_self_attn_q.lora_down.weight           kohya, musubi: the same with underscores
    transformer.blocks.0.attn1.to_q.lora_A.weight             PEFT by diffusers: diffusers' names
    base_model.model.blocks.0.attn1.to_q.lora_A.weight        PEFT itself
    blocks.0.attn1.to_q.lora_A.weight                         without a prefix

Prefixes, names and endings are looked up independently, since all combinations occur.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from vorta_trt.model.families import ModelFamily
from vorta_trt.model.families.authors import AuthorsNames, Rows

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
_UNDERSCORES = "lora_unet_"  # then all dots of the module's name are underscores
_TEXT_ENCODERS = ("lora_te", "text_encoder", "conditioner.")
_OTHER_METHODS = {
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "boft_": "BOFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "a Tucker decomposition",
    "glora_": "GLoRA",
    "ia3_": "IA3",
}
_MODULATION = ".modulation"  # the authors' name of the parameter that `.diff_m` is for


class Part(Enum):
    """The role of a tensor of the file in its module."""

    DOWN = "down"  # [rank, inputs]
    UP = "up"  # [outputs, rank]
    UP_BIAS = "bias of up"  # scaled as up is
    ALPHA = "alpha"
    WEIGHT = "difference of the weight"
    BIAS = "difference of the bias"


_ENDINGS = {
    **dict.fromkeys((".lora_A.weight", ".lora_down.weight", ".lora.down.weight", ".lora_A.default.weight"), Part.DOWN),
    **dict.fromkeys((".lora_B.weight", ".lora_up.weight", ".lora.up.weight", ".lora_B.default.weight"), Part.UP),
    **dict.fromkeys((".lora_B.bias", ".lora_B.default.bias"), Part.UP_BIAS),
    ".alpha": Part.ALPHA,
    ".diff": Part.WEIGHT,
    ".diff_b": Part.BIAS,
}


def split_key(key: str) -> tuple[str, Part] | None:
    """The name of the module with its prefix, and the tensor's role in it; None for a key that is no LoRA's."""
    if key.endswith(".diff_m"):
        return key.removesuffix(".diff_m") + _MODULATION, Part.WEIGHT
    for ending, part in _ENDINGS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return None


def of_text_encoder(key: str) -> bool:
    """Whether the key is for a text encoder, which is no part of an exported file."""
    return key.startswith(_TEXT_ENCODERS)


def other_method(key: str) -> str | None:
    """The name of the method whose key it is, if that is another method than LoRA; None otherwise."""
    return next((name for mark, name in _OTHER_METHODS.items() if mark in key), None)


class ModuleNames:
    """Finds modules of a model by any of their names.

    Args:
        family: Family of the model.
        authors: The authors' names of its modules, see `ModelFamily.authors_names`.
        parameters: Names of all parameters of the model, which are those of diffusers.
    """

    def __init__(self, family: ModelFamily, authors: AuthorsNames, parameters: Iterable[str]) -> None:
        self._family = family
        self.parameters = frozenset(parameters)
        modules = {name.rpartition(".")[0] if name.endswith((".weight", ".bias")) else name for name in self.parameters}
        elsewhere = {rows.module for several in authors.values() for rows in several}  # of other models of the family
        self._rows: dict[str, tuple[Rows, ...]] = {name: (Rows(name),) for name in modules | elsewhere}
        self._rows |= {name: rows for name, rows in authors.items() if name not in modules}
        self._with_underscores = {name.replace(".", "_"): rows for name, rows in self._rows.items()}

    def find(self, name: str) -> tuple[Rows, ...] | None:
        """The rows that a name of `split_key` stands for; None if no model of the family has such a module."""
        if name.startswith(_UNDERSCORES):
            return self._with_underscores.get(name.removeprefix(_UNDERSCORES).replace(".", "_"))
        if (rows := self._rows.get(name)) is not None:
            return rows
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        return None if prefix is None else self._rows.get(name.removeprefix(prefix))

    def parameter(self, module: str, *, bias: bool = False) -> str | None:
        """The name of a module's parameter that is changed; None if this model has no such parameter."""
        names = (f"{module}.bias",) if bias else (f"{module}.weight", module)
        return next((name for name in names if name in self.parameters), None)
