# SPDX-License-Identifier: Apache-2.0
"""GPU arrays of other libraries, in and out through DLPack, for a process whose torch has no CUDA.

Where torch has CUDA, `torch.from_dlpack` and torch tensors do all of this. cuda.core's `StridedMemoryView` exports no
bfloat16, the type of most engines. Layout: DLPack 0.8, `DLManagedTensor` (https://dmlc.github.io/dlpack).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

CPU, CUDA = 1, 2  # DLDeviceType
LEGACY_STREAM = 1  # cudaStreamLegacy, the default stream; DLPack gives it the same number
_KINDS = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}  # DLDataTypeCode by the type's name
_CODES = {code: kind for kind, code in _KINDS.items()}


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [
    ("data", ctypes.c_void_p),
    ("device", _Device),
    ("ndim", ctypes.c_int32),
    ("dtype", _DataType),
    ("shape", ctypes.POINTER(ctypes.c_int64)),
    ("strides", ctypes.POINTER(ctypes.c_int64)),
    ("byte_offset", ctypes.c_uint64),
    ("manager_ctx", ctypes.c_void_p),
    ("deleter", _Deleter),
]


class DeviceArray:
    """A contiguous array somewhere, with `__dlpack__`.

    Args:
        pointer: its address. dtype: NumPy spelling. device: (DLDeviceType, number). owner: kept alive with the array.
    """

    def __init__(self, pointer: int, shape: Sequence[int], dtype: str, device: tuple[int, int], owner: Any) -> None:
        self.pointer, self.shape, self.dtype, self.device, self.owner = pointer, tuple(shape), dtype, device, owner

    @classmethod
    def from_dlpack(cls, name: str, array: Any) -> DeviceArray:
        """A view of `array`, an object with `__dlpack__`, without a copy.

        What the array's library still computes is ordered before what comes next on the default stream.

        Args:
            name: of the tensor, for messages.
        Raises: TypeError (type), ValueError (not contiguous).
        """
        on_gpu = tuple(array.__dlpack_device__())[0] == CUDA
        capsule = array.__dlpack__(stream=LEGACY_STREAM) if on_gpu else array.__dlpack__()
        managed = _take(capsule)
        tensor = managed.contents
        owner = _Taken(managed)
        kind, bits = _CODES.get(tensor.dtype.code), tensor.dtype.bits
        if kind is None or tensor.dtype.lanes != 1:
            raise TypeError(f"{name}: DLPack type code {tensor.dtype.code} is none that engines take; convert it first")
        shape = tuple(tensor.shape[: tensor.ndim])
        if tensor.strides and not _contiguous(shape, tensor.strides[: tensor.ndim]):
            raise ValueError(f"{name} of shape {shape}: is not contiguous; make it so first")
        dtype = kind if kind == "bool" else f"{kind}{bits}"
        pointer = (tensor.data or 0) + tensor.byte_offset
        return cls(pointer, shape, dtype, (tensor.device.type, tensor.device.id), owner)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        """A capsule for `from_dlpack` of torch, CuPy, JAX, ... The values are there already: no stream has to wait."""
        kind = self.dtype.rstrip("0123456789")
        bits = 8 if kind == "bool" else int(self.dtype.removeprefix(kind))
        ndim = len(self.shape)
        managed = _Managed(
            data=self.pointer,
            device=_Device(*self.device),
            ndim=ndim,
            dtype=_DataType(_KINDS[kind], bits, 1),
            shape=(ctypes.c_int64 * max(ndim, 1))(*self.shape),
            strides=None,
            byte_offset=0,
            manager_ctx=None,
            deleter=_forget_callback,
        )
        address = ctypes.addressof(managed)
        _exported[address] = (managed, self)
        return _new_capsule(address, _NEW, _drop_unused_callback)


def _contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= max(size, 1)
    return True


# --- Capsules: one called "dltensor" owns its tensor, one called "used_dltensor" has handed it over ------------------

_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new_capsule: Any = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
_pointer_in: Any = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_rename: Any = ctypes.pythonapi.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
# For the destructor, which must not hold a new reference to the dying capsule.
_dying = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_NEW, _USED = b"dltensor", b"used_dltensor"  # capsules keep the address of their name, not the name

_exported: dict[int, tuple[_Managed, DeviceArray]] = {}  # what consumers hold, by address


def _forget(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


def _drop_unused(capsule: int) -> None:
    if _dying(capsule, _NEW):
        _exported.pop(_dying_pointer(capsule, _NEW), None)


_forget_callback, _drop_unused_callback = _Deleter(_forget), _Destructor(_drop_unused)


def _take(capsule: Any) -> Any:
    managed = ctypes.cast(_pointer_in(capsule, _NEW), ctypes.POINTER(_Managed))
    _rename(capsule, _USED)
    return managed


class _Taken:
    """A tensor taken out of its capsule; gives it back to its library when nobody uses it any more."""

    def __init__(self, managed: Any) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.contents.deleter:
            self._managed.contents.deleter(self._managed)
