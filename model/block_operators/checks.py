# SPDX-License-Identifier: Apache-2.0
"""Checks of a block operator's arguments against its entry in the table: shapes, types, devices, choices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vorta_trt.plugins.operator_schema import Element, Kind, Operator, OperatorTensor

_TYPES = {
    Element.FLOAT32: torch.float32,
    Element.INT32: torch.int32,
    **dict.fromkeys((Element.FLOAT8, Element.FLOAT8_TOKENS), torch.float8_e4m3fn),
}
_ROWS = (1, 2)  # M, the numbers of rows that a modulation may have


def check_arguments(operator: Operator, tensors: Sequence[Tensor], attributes: Mapping[str, Any]) -> None:
    """Checks the arguments of a call.

    Args:
        operator: The operator's entry in the table.
        tensors: The inputs, in the table's order.
        attributes: Values of the attributes, by their names in the table.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: A shape, a device or an attribute is wrong.
    """
    for attribute in operator.attributes:
        value = attributes[attribute.name]
        if attribute.kind is Kind.CHOICE and value not in attribute.choices:
            known = " or ".join(map(repr, attribute.choices))
            raise ValueError(f"{operator}: {attribute.name} {value!r}: must be {known}")
        if attribute.least is not None and value < attribute.least:
            raise ValueError(f"{operator}: {attribute.name} {value}: must be at least {attribute.least}")
    letters: dict[str, int] = {"N": attributes["heads"]} if "heads" in attributes else {}
    first, activation = tensors[0], tensors[operator.activation_input]
    if not activation.is_floating_point() or activation.dtype.itemsize < 2:
        raise TypeError(
            f"{operator}: {operator.inputs[operator.activation_input]} of dtype {activation.dtype}: must be float16, "
            f"bfloat16 or float32"
        )
    for given, tensor in zip(operator.input_tensors, tensors, strict=True):
        _check_dtype(operator, given, tensor, activation.dtype)
        if tensor.device != first.device:
            raise ValueError(
                f"{operator}: {given.name} on {tensor.device}: must be where {operator.inputs[0]} is, {first.device}"
            )
        if not any(_matches(form, tuple(tensor.shape), letters) for form in _forms(given.shape)):
            known = ", ".join(f"{letter}={extent}" for letter, extent in sorted(letters.items()))
            raise ValueError(
                f"{operator}: {given.name} of shape {tuple(tensor.shape)}: must be {given.shape} with {known or 'any'}"
            )


def _check_dtype(operator: Operator, given: OperatorTensor, tensor: Tensor, activation: torch.dtype) -> None:
    allowed = {Element.TOKENS: (activation,), Element.WEIGHT: (activation, torch.float32)}.get(given.element)
    allowed = allowed or (_TYPES[given.element],)
    if tensor.dtype not in allowed:
        rule = " or ".join(str(dtype) for dtype in dict.fromkeys(allowed))
        raise TypeError(f"{operator}: {given.name} of dtype {tensor.dtype}: must be {rule}")


@cache
def _forms(shape: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The shapes that a text of the table allows: "[B or 1, E]" -> ((("B", "1"), ("E",)),)."""
    forms = re.findall(r"\[([^\]]*)\]", shape)
    return tuple(tuple(tuple(extent.split(" or ")) for extent in form.split(", ")) for form in forms)


def _matches(form: tuple[tuple[str, ...], ...], shape: tuple[int, ...], letters: dict[str, int]) -> bool:
    """Whether a shape matches a form; if it does, the sizes of the form's letters are added to `letters`."""
    known = dict(letters)
    if len(form) != len(shape) or not all(
        any(_fits(term, extent, known) for term in terms) for terms, extent in zip(form, shape, strict=True)
    ):
        return False
    letters |= known
    return True


def _fits(term: str, extent: int, letters: dict[str, int]) -> bool:
    if term.isdigit():
        return extent == int(term)
    if term == "M":
        return extent in _ROWS
    if " + " in term:
        return extent == sum(letters[letter] for letter in term.split(" + "))
    letter, _, divisor = term.partition("/")
    if letter not in letters:
        letters |= _bound(letter, extent, letters)
    return letters[letter] == extent * int(divisor or 1)


def _bound(letter: str, extent: int, letters: Mapping[str, int]) -> dict[str, int]:
    """Sizes that follow from the extent of one letter: E and the number of heads N also give D."""
    if letter == "E" and "N" in letters:
        heads = letters["N"]
        return {"E": extent if extent % heads == 0 else -1, "D": extent // heads}
    return {letter: extent}
