# SPDX-License-Identifier: Apache-2.0
"""Tensor specs, and the conversion of an engine's inputs and outputs between NumPy, torch and DLPack.

An input is converted to another type only where that changes no value. So bfloat16 to float32 is allowed; float32 to
bfloat16 is the caller's decision, and therefore an error here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from vorta_trt.model.precision import numpy_dtype, torch_dtype

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray[Any, Any] | torch.Tensor"
ArrayKind: TypeAlias = Literal["numpy", "torch"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    Attributes:
        name: Name of the tensor in the engine.
        dtype: Type in NumPy's spelling: "float32", "float16", "bfloat16", "int32", ...
        shape: Sizes of the axes; the name of the axis where the size is free, e.g. ("batch", 16, 20, 90, 160).
        minimum: Smallest sizes that a TensorRT optimization profile allows; None where there is no profile.
        maximum: Largest sizes that a TensorRT optimization profile allows; None where there is no profile.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    minimum: tuple[int, ...] | None = None
    maximum: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises ValueError unless a tensor of `shape` may be given for this spec."""
        shape = tuple(shape)
        if len(shape) != len(self.shape):
            raise ValueError(
                f"{self.name} of shape {shape}: has {len(shape)} axes, the engine takes {len(self.shape)}, "
                f"[{', '.join(map(str, self.shape))}]; reshape it"
            )
        for axis, (size, rule) in enumerate(zip(shape, self.shape, strict=True)):
            if isinstance(rule, int) and size != rule:
                of_video = ", or build an engine for this one (vorta-trt build --size)" if len(self.shape) > 2 else ""
                raise ValueError(
                    f"{self.name} of shape {shape}: axis {axis} must be {rule}, because the engine was built for "
                    f"[{', '.join(map(str, self.shape))}]; give that shape{of_video}"
                )
            if self.minimum is None or self.maximum is None:
                continue
            if not self.minimum[axis] <= size <= self.maximum[axis]:
                raise ValueError(
                    f"{self.name} of shape {shape}: axis {axis} ({rule}) must lie in "
                    f"{self.minimum[axis]}..{self.maximum[axis]}, the range of the engine's optimization profile; "
                    "split the batch, or build an engine with a wider range (vorta-trt build --batch min:opt:max)"
                )


def kind_of(name: str, value: object) -> ArrayKind | Literal["dlpack"] | None:
    """Finds out what kind of value an input is.

    Returns:
        "numpy", "torch" or, for arrays of other libraries, "dlpack"; None for numbers and lists.

    Raises:
        TypeError: The value is none of these.
    """
    if isinstance(value, np.ndarray):
        return "numpy"
    torch = sys.modules.get("torch")  # a torch tensor exists only if torch is imported
    if torch is not None and isinstance(value, torch.Tensor):
        return "torch"
    if isinstance(value, bool | int | float | list | tuple | np.generic):
        return None
    if hasattr(value, "__dlpack__"):
        return "dlpack"
    raise TypeError(
        f"{name} of type {type(value).__name__}: inputs are NumPy arrays or torch tensors, or "
        "anything with __dlpack__; convert it first"
    )


def as_array(name: str, value: Any) -> Array:
    """Converts an input of any kind to an array; arrays are not copied.

    Arrays of other libraries become torch tensors. Torch tensors are detached from their autograd graph, which an
    engine's buffers would otherwise keep alive from call to call.

    Raises:
        TypeError: A list holds something other than numbers, or torch cannot take an array over.
        ValueError: The rows of a list differ in length.
    """
    kind = kind_of(name, value)
    if kind is None:
        return _of_numbers(name, value)
    if kind != "dlpack":
        array: Array = value.detach() if getattr(value, "requires_grad", False) else value
        return array
    import torch

    try:
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name} of type {type(value).__name__}: torch {torch.__version__} cannot take it over through DLPack "
            f"({error}); give a torch tensor or a NumPy array"
        ) from error
    return tensor


def as_input(spec: TensorSpec, value: Any) -> Array:
    """Converts an input of any kind to an array of the spec's type and shape.

    Where the spec has one axis, a number or an array without axes becomes its only element. Numbers and lists of
    numbers have no type, so they are rounded to the spec's type; arrays are never rounded.

    Raises:
        TypeError: The value is neither an array nor numbers, or its type cannot be converted without changing values.
        ValueError: The spec does not take the shape.
    """
    array = as_array(spec.name, value)
    untyped = kind_of(spec.name, value) is None
    if array.ndim == 0 and len(spec.shape) == 1:
        array, untyped = array.reshape(1), True
    if untyped and dtype_name(array) != spec.dtype and "float" in dtype_name(array) and "float" in spec.dtype:
        array = _rounded(spec.name, array, spec.dtype)
    spec.check_shape(array.shape)
    return cast_exactly(spec.name, array, spec.dtype)


def dtype_name(array: Array) -> str:
    """The type of any kind of array, in NumPy's spelling."""
    return array.dtype.name if isinstance(array, np.ndarray) else str(array.dtype).removeprefix("torch.")


def byte_size(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a contiguous array."""
    return math.prod(shape) * numpy_dtype(dtype).itemsize


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """A NumPy array of the same values and type; zero-copy for contiguous CPU tensors."""
    if isinstance(array, np.ndarray):
        return array
    import torch

    array = array.detach().cpu()
    if array.dtype == torch.bfloat16:  # NumPy has bfloat16 only through ml_dtypes, which torch does not know
        return array.contiguous().view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return np.asarray(array.numpy())


def to_torch(array: Array, device: torch.device | str | None = None) -> torch.Tensor:
    """A torch tensor of the same values and type on `device` (None: where it is, CPU for NumPy)."""
    import torch

    if isinstance(array, np.ndarray):
        host: np.ndarray[Any, Any] = np.ascontiguousarray(array).reshape(array.shape)  # or scalars become 1-D
        if not host.flags.writeable:  # torch.from_numpy warns about read-only memory
            host = host.copy()
        if host.dtype.name == "bfloat16":
            array = torch.from_numpy(host.view(np.int16)).view(torch.bfloat16)
        else:
            array = torch.from_numpy(host)
    return array if device is None else array.to(device)


def cast_exactly(name: str, array: Array, dtype: str) -> Array:
    """Converts `array` to `dtype` if that changes no value.

    Floats may become wider; integers and booleans may become any type that holds their values; float64 may become
    float32 where every value stays the same. Floats are never narrowed to 16 bits.

    Raises:
        TypeError: A value would change; the message says what to do.
    """
    given = dtype_name(array)
    if given == dtype:
        return array
    if _always_exact(given, dtype):
        return _cast(array, dtype)
    by_value = given.startswith(("int", "uint", "bool")) or (given == "float64" and dtype == "float32")
    if by_value and not dtype.startswith("bool"):
        converted = _cast(array, dtype)
        if _equal(_cast(converted, given), array):
            return converted
        raise TypeError(
            f"{name} of type {given}: the engine takes {dtype}, which cannot hold every given value exactly; "
            f"round or clip the values and pass {dtype}"
        )
    raise TypeError(
        f"{name} of type {given}: the engine takes {dtype}, and that conversion changes values; "
        f"convert it yourself, e.g. {_remedy(name, array, dtype)}"
    )


def check_names(given: Mapping[str, object], specs: Sequence[TensorSpec], optional: Sequence[str] = ()) -> None:
    """Raises TypeError unless `given` has every required name of `specs` and no other."""
    known = [spec.name for spec in specs]
    if unknown := [name for name in given if name not in known]:
        raise TypeError(f"input {unknown[0]!r}: the engine has no such input; it takes {', '.join(known)}")
    if missing := [name for name in known if name not in given and name not in optional]:
        rest = f" (optional: {', '.join(optional)})" if optional else ""
        raise TypeError(f"input {missing[0]!r} is missing: the engine takes {', '.join(known)}{rest}")


def _of_numbers(name: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: is no list of numbers with rows of one length ({error}); give it as an array"
        ) from error
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: holds something else than numbers that an engine takes; give numbers, or an array")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(f"{name} {value!r}: is no number, and every comparison with it is false; give a number")
    return array


def _rounded(name: str, array: Array, dtype: str) -> Array:
    rounded = _cast(array, dtype)
    wide, narrow = (to_numpy(each).astype(np.float64) for each in (array, rounded))
    if (np.isinf(narrow) & np.isfinite(wide)).any():
        raise TypeError(
            f"{name}: the engine takes {dtype}, which cannot hold {np.abs(wide).max():g}; give a smaller value"
        )
    return rounded


def _always_exact(source: str, target: str) -> bool:
    """Whether both are float types, and the target has at least as many bits of significand and exponent."""
    if "float" not in source or "float" not in target:
        return False
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    few, many = finfo(numpy_dtype(source)), finfo(numpy_dtype(target))
    return bool(few.nmant <= many.nmant and few.nexp <= many.nexp)


def _cast(array: Array, dtype: str) -> Array:
    if isinstance(array, np.ndarray):
        with np.errstate(over="ignore", invalid="ignore"):  # the caller compares the values afterwards
            return array.astype(numpy_dtype(dtype))

    return array.to(torch_dtype(dtype))


def _equal(left: Array, right: Array) -> bool:
    if isinstance(left, np.ndarray):
        return bool(np.array_equal(left, to_numpy(right), equal_nan=left.dtype.kind == "f"))
    return bool(((left == right) | ((left != left) & (right != right))).all())


def _remedy(name: str, array: Array, dtype: str) -> str:
    if not isinstance(array, np.ndarray):
        return f"{name}.to(torch.{dtype})"
    return f"{name}.astype({'ml_dtypes.bfloat16' if dtype == 'bfloat16' else f'numpy.{dtype}'})"
