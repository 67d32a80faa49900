# SPDX-License-Identifier: Apache-2.0
"""Names of precisions and of data types, and the same types as torch, NumPy and TensorRT have them.

A data type is named as torch and NumPy spell it ("bfloat16"); a precision is what the options call the type of a
model's weights and activations ("bf16"). torch and ml_dtypes are imported on first use.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    import numpy as np
    import torch

PrecisionName = Literal["fp32", "fp16", "bf16"]
HalfPrecision = Literal["bf16", "fp16"]  # what the kernels compute in
TrainingPrecision = Literal["bf16", "fp32"]  # gradients underflow in fp16
DataType = Literal[
    "float32", "float16", "bfloat16", "float8", "float4", "int64", "int32", "int8", "int4", "uint8", "bool"
]

PRECISIONS: MappingProxyType[str, DataType] = MappingProxyType(
    {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
)
"""The data type of each precision."""


class Facts(NamedTuple):
    """The facts of a data type beyond its name.

    Attributes:
        tensorrt: The member of TensorRT's enum `DataType`.
        bits: Size of one element.
    """

    tensorrt: str
    bits: int


DATA_TYPES: MappingProxyType[str, Facts] = MappingProxyType(
    {
        "float32": Facts("FLOAT", 32),
        "float16": Facts("HALF", 16),
        "bfloat16": Facts("BF16", 16),
        "float8": Facts("FP8", 8),
        "float4": Facts("FP4", 4),
        "int64": Facts("INT64", 64),
        "int32": Facts("INT32", 32),
        "int8": Facts("INT8", 8),
        "int4": Facts("INT4", 4),
        "uint8": Facts("UINT8", 8),
        "bool": Facts("BOOL", 8),
    }
)
TENSORRT_TYPES: MappingProxyType[str, DataType] = MappingProxyType(
    {DATA_TYPES[name].tensorrt: name for name in get_args(DataType)}
)
BITS: MappingProxyType[str, int] = MappingProxyType({name: facts.bits for name, facts in DATA_TYPES.items()})


def torch_dtype(name: str) -> torch.dtype:
    """The torch type of a precision or a data type.

    Args:
        name: A key of `PRECISIONS`, or a data type that torch spells the same ("int32").

    Raises:
        ValueError: torch has no such type.
    """
    import torch

    dtype = getattr(torch, PRECISIONS.get(name, name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"precision {name!r}: must be one of {', '.join(PRECISIONS)}")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a torch type, as NumPy spells it."""
    return str(dtype).removeprefix("torch.")


def precision_name(dtype: torch.dtype) -> str | None:
    """The precision whose data type `dtype` is, or None if it is no precision's."""
    name = dtype_name(dtype)
    return next((precision for precision, data_type in PRECISIONS.items() if data_type == name), None)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of a data type; bfloat16 comes from ml_dtypes."""
    import numpy as np

    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16
