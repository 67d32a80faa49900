# SPDX-License-Identifier: Apache-2.0
"""Finds, loads and calls libvorta_trt.so, the one binary behind eager torch and every TensorRT flavour.

The ctypes structures mirror `include/vorta_trt/routed_attention.h`; letters as there: B batch, S video tokens,
T text tokens, N heads, D head dimension.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from vorta_trt.plugins.errors import LibraryNotFoundError, VortaError
from vorta_trt.plugins.gpu import ComputeCapability
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION, Kind, choices

LIBRARY_NAME = "libvorta_trt.so"
LIBRARY_VARIABLE = "VORTA_TRT_LIBRARY"
RUNTIME_LIBRARIES = {
    "vorta_suggest_cublaslt": ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12"),
    "vorta_suggest_nccl": ("nccl/lib/libnccl.so.2",),
}
"""Libraries opened at run time: function of the C API that suggests a file -> its places in the package `nvidia`."""
KERNEL_DTYPES = ("float16", "bfloat16")
"""Types that the kernels compute in; the index is the C API's value."""


class Status(IntEnum):
    """Status that a function of the C API returns."""

    OK = 0
    INVALID_ARGUMENT = 1
    UNSUPPORTED = 2
    CUDA_ERROR = 3


class LibraryError(VortaError):
    """A call of the C API failed; the message is the library's own.

    Attributes:
        status: Status that the function returned.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class SizedStructure(ctypes.Structure):
    """A structure whose first field is its own size, by which the library tells versions apart.

    A field `dtype` may be given by name, one of `KERNEL_DTYPES`.
    """

    def __init__(self, **values: Any) -> None:
        if isinstance(values.get("dtype"), str):
            values["dtype"] = KERNEL_DTYPES.index(values["dtype"])
        super().__init__(struct_size=ctypes.sizeof(type(self)), **values)


_Int3 = ctypes.c_int32 * 3
Strides = ctypes.c_int64 * 3
"""Strides of batch, token and head, in elements."""
_C_TYPES: dict[Kind, Any] = {
    Kind.TRIPLE: _Int3,
    Kind.INTEGER: ctypes.c_int32,
    Kind.NUMBER: ctypes.c_float,
    Kind.CHOICE: ctypes.c_int32,
}


class Problem(SizedStructure):
    """`vorta_routed_attention_problem`: everything about a call but its pointers.

    Triples may be given as any sequence, and `dtype` and choices by name:
    `Problem(dtype="bfloat16", grid=(20, 45, 80), coreset_keys="query", ...)`.
    """

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("dtype", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        *((attribute.name, _C_TYPES[attribute.kind]) for attribute in ROUTED_ATTENTION.attributes),
        ("reserved", ctypes.c_int32),
    ]

    def __init__(self, **values: Any) -> None:
        for attribute in ROUTED_ATTENTION.attributes:
            value = values.get(attribute.name)
            if attribute.kind is Kind.TRIPLE and value is not None:
                values[attribute.name] = _Int3(*_triple(attribute.name, value))
            elif isinstance(value, str):
                values[attribute.name] = attribute.choices.index(value)
        super().__init__(**values)


class Tensors(SizedStructure):
    """`vorta_routed_attention_tensors`: device pointers as integers, strides (batch, token, head) in elements."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("routes", ctypes.c_void_p),
        ("text_length", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("query_stride", Strides),
        ("key_stride", Strides),
        ("value_stride", Strides),
        ("output_stride", Strides),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
    ]

    def __init__(self, **values: Any) -> None:
        for name in ("query_stride", "key_stride", "value_stride", "output_stride"):
            if name in values:
                values[name] = as_strides(name, values[name])
        super().__init__(**values)


def as_strides(name: str, values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """Turns three strides into the array that a structure holds.

    Args:
        name: Name of the structure's field, for the error message.
        values: Strides of batch, token and head, in elements.

    Raises:
        ValueError: There are not three strides.
    """
    return Strides(*_triple(name, values))


def _triple(name: str, values: Sequence[int]) -> Sequence[int]:
    if len(values) != 3:
        raise ValueError(f"{name} {tuple(values)}: must have 3 entries; give one for each")
    return values


class _KernelFamily(ctypes.Structure):
    """`vorta_kernel_family` of `include/vorta_trt/kernel_families.h`."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("attention_precision", ctypes.c_int32),
        ("oldest_gpu", ctypes.c_int32),
        ("newest_gpu", ctypes.c_int32),
        ("pads_head_dim", ctypes.c_int32),
        ("head_dims", ctypes.POINTER(ctypes.c_int32)),
        ("head_dim_count", ctypes.c_size_t),
        ("architectures", ctypes.c_char_p),
    ]


@dataclass(frozen=True)
class KernelFamily:
    """A family of attention kernels among the sources, whether the library holds it or not.

    Attributes:
        name: Name of its folder among the sources, such as "sm90".
        attention_precision: Attention precision that it computes in, as the operator's attribute names it.
        oldest_gpu: Oldest compute capability that it serves.
        newest_gpu: Newest compute capability that it serves.
        head_dims: D of its instances, ascending.
        pads_head_dim: Whether an instance also takes a smaller D than its own.
        architectures: GPU architectures that it was compiled for, as CMake spells them; empty if the library lacks it.
    """

    name: str
    attention_precision: str
    oldest_gpu: ComputeCapability
    newest_gpu: ComputeCapability
    head_dims: tuple[int, ...]
    pads_head_dim: bool
    architectures: tuple[str, ...]

    def serves(self, capability: ComputeCapability) -> bool:
        """Says whether it is made for GPUs of this compute capability."""
        return self.oldest_gpu <= capability <= self.newest_gpu

    def takes(self, head_dim: int) -> bool:
        """Says whether it has an instance for this D."""
        return head_dim <= self.head_dims[-1] if self.pads_head_dim else head_dim in self.head_dims


class PluginLibrary:
    """The loaded library. Its functions may be called from any thread.

    Args:
        path: The file; loading it needs neither a GPU nor a driver.

    Raises:
        VortaError: The file is no library of this version of the package.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise VortaError(f"{path}: the loader refuses it ({error}); build it again for this machine") from error
        self._declare()
        self._check_interface()
        for function, places in RUNTIME_LIBRARIES.items():
            if wheel := in_wheels(places):
                suggest = self._function(function)
                suggest.restype, suggest.argtypes = None, [ctypes.c_char_p]
                suggest(str(wheel).encode())

    def _declare(self) -> None:
        problem, tensors = ctypes.POINTER(Problem), ctypes.POINTER(Tensors)
        signatures: dict[str, tuple[type[Any], list[type[Any]]]] = {
            "vorta_routed_attention_validate": (ctypes.c_int, [problem]),
            "vorta_routed_attention_workspace_size": (ctypes.c_int, [problem, ctypes.POINTER(ctypes.c_size_t)]),
            "vorta_routed_attention_enqueue": (ctypes.c_int, [problem, tensors, ctypes.c_void_p]),
            "vorta_force_kernels": (ctypes.c_int, [ctypes.c_char_p]),
            "vorta_forced_kernels": (ctypes.c_char_p, []),
            "vorta_last_error": (ctypes.c_char_p, []),
            "vorta_version": (ctypes.c_char_p, []),
            "vorta_abi_hash": (ctypes.c_char_p, []),
            "vorta_cuda_architectures": (ctypes.c_char_p, []),
            "vorta_cuda_version": (ctypes.c_int32, []),
            "vorta_kernel_families": (ctypes.POINTER(_KernelFamily), [ctypes.POINTER(ctypes.c_size_t)]),
        }
        for name, (result, arguments) in signatures.items():
            function = self._function(name)
            function.restype, function.argtypes = result, arguments

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._library, name)
        except AttributeError as error:
            raise VortaError(
                f"{self.path}: has no function {name}, so it is not this package's library; "
                f"unset {LIBRARY_VARIABLE}, or build the library from this version"
            ) from error

    def _check_interface(self) -> None:
        """The library recognises the structures by their size: a smallest valid problem has to pass."""
        ones = (1, 1, 1)
        smallest = Problem(
            batch=1, heads=1, head_dim=8, grid=ones, tile=ones, window=ones, bucket=ones, keep=1, text_tokens=0
        )
        try:
            self.validate(smallest)
        except LibraryError as error:
            raise VortaError(
                f"{self.path}: version {self.version} has another interface than this package ({error}); "
                f"unset {LIBRARY_VARIABLE}, or build the library from this version"
            ) from error

    def _text(self, function: str) -> str:
        value: bytes = getattr(self._library, function)()
        return value.decode()

    def _require(self, status: int) -> None:
        if status != Status.OK:
            raise LibraryError(Status(status), self._text("vorta_last_error"))

    @property
    def version(self) -> str:
        """Version of the project that the library was built from."""
        return self._text("vorta_version")

    @property
    def abi_hash(self) -> str:
        """Hash of what a bundle relies on: C API, plugin fields, operator version."""
        return self._text("vorta_abi_hash")

    @property
    def cuda_architectures(self) -> tuple[str, ...]:
        """GPU architectures compiled in, as CMake spells them; one without a suffix also carries PTX."""
        return tuple(self._text("vorta_cuda_architectures").split(";"))

    @property
    def cuda_version(self) -> str:
        """Version of the CUDA runtime in it, such as "13.0"; the driver has to be of that major version or newer."""
        version: int = self._library.vorta_cuda_version()
        return f"{version // 1000}.{version % 1000 // 10}"

    @cached_property
    def kernel_families(self) -> tuple[KernelFamily, ...]:
        """Every family of attention kernels among the sources; of those that serve a call, the first is the fastest."""
        count = ctypes.c_size_t()
        families = self._library.vorta_kernel_families(ctypes.byref(count))
        return tuple(map(_family, families[: count.value]))

    @property
    def forced_kernels(self) -> str:
        """Family of kernels that all calls have to take; "" if the GPU decides."""
        return self._text("vorta_forced_kernels")

    def force_kernels(self, family: str) -> None:
        """Makes all later calls of the process take one family of kernels, for tests and comparisons.

        Args:
            family: "sm80", the kernels that run on every GPU; "sm89_fp8", the 8-bit kernels for GPUs from SM89 on,
                together with the 16-bit kernels of sm80; or "" to let the GPU decide.

        Raises:
            LibraryError: There is no such family.
        """
        self._require(self._library.vorta_force_kernels(family.encode()))

    def call(self, function: str, *arguments: Any) -> None:
        """Calls a function of the C API that returns a status. The mirrors of the operators' headers go through here.

        Args:
            function: Its name.
            arguments: Values of ctypes, e.g. `ctypes.byref(params), ctypes.c_void_p(stream)`.

        Raises:
            LibraryError: The function refuses; the message names argument, value, rule and remedy.
            VortaError: The library has no such function.
        """
        self._require(self._function(function)(*arguments))

    def call_text(self, function: str, *arguments: Any) -> str:
        """Calls a function of the C API that returns a text and cannot fail.

        Args:
            function: Its name.
            arguments: Values of ctypes.

        Raises:
            VortaError: The library has no such function.
        """
        entry = self._function(function)
        entry.restype = ctypes.c_char_p
        text: bytes = entry(*arguments)
        return text.decode()

    def validate(self, problem: Problem) -> None:
        """Checks that the kernels take a problem. Needs no GPU.

        Args:
            problem: Everything about a call but its pointers.

        Raises:
            LibraryError: They do not; the message names argument, value, rule and remedy.
        """
        self._require(self._library.vorta_routed_attention_validate(ctypes.byref(problem)))

    def workspace_size(self, problem: Problem) -> int:
        """Asks for the scratch memory of one call. Needs no GPU.

        Args:
            problem: Everything about the call but its pointers.

        Returns:
            Bytes; they depend on the problem alone.

        Raises:
            LibraryError: The kernels do not take the problem.
        """
        size = ctypes.c_size_t()
        self._require(self._library.vorta_routed_attention_workspace_size(ctypes.byref(problem), ctypes.byref(size)))
        return size.value

    def enqueue(self, problem: Problem, tensors: Tensors, stream: int) -> None:
        """Launches the operator on a stream and returns at once.

        Args:
            problem: Everything about the call but its pointers.
            tensors: Pointers and strides; they stay valid until the stream has done the work.
            stream: A cudaStream_t as an integer, 0 for the default stream.

        Raises:
            LibraryError: An argument breaks a rule, there is no kernel for this GPU, or CUDA refuses the launch.
        """
        arguments = (ctypes.byref(problem), ctypes.byref(tensors), ctypes.c_void_p(stream))
        self._require(self._library.vorta_routed_attention_enqueue(*arguments))


def _family(family: Any) -> KernelFamily:
    return KernelFamily(
        name=family.name.decode(),
        attention_precision=choices("attention_precision")[family.attention_precision],
        oldest_gpu=ComputeCapability(*divmod(family.oldest_gpu, 10)),
        newest_gpu=ComputeCapability(*divmod(family.newest_gpu, 10)),
        head_dims=tuple(family.head_dims[: family.head_dim_count]),
        pads_head_dim=bool(family.pads_head_dim),
        architectures=tuple(family.architectures.decode().split(";")) if family.architectures else (),
    )


def _beside_this_file(name: str) -> Path | None:
    """`name` in the folders of this package; an editable install has a source and a build folder."""
    package = sys.modules[__name__.rpartition(".")[0]]
    folders = [Path(__file__).parent, *(Path(folder) for folder in package.__path__)]
    return next((folder.absolute() / name for folder in folders if (folder / name).is_file()), None)


def in_wheels(places: Sequence[str]) -> Path | None:
    """Finds a file of NVIDIA's wheels in this Python environment.

    The library opens it if neither the process nor the loader has one, as in engines that run without torch. A process
    that has imported torch has loaded its own.

    Args:
        places: Paths of the file in the package `nvidia`; the first that exists is taken.
    """
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = (Path(folder) / place for place in places for folder in folders)
    return next((file.absolute() for file in files if file.is_file()), None)


def library_path() -> Path:
    """Absolute path of libvorta_trt.so: the one that VORTA_TRT_LIBRARY names, else the one of this package.

    Raises:
        LibraryNotFoundError: There is none.
    """
    if named := os.environ.get(LIBRARY_VARIABLE):
        path = Path(named).expanduser().absolute()  # TensorRT ignores relative paths in silence
        if not path.is_file():
            there = "is no file" if path.exists() else "no such file"
            raise LibraryNotFoundError(f"{LIBRARY_VARIABLE} {named}: {there}; unset it or correct the path")
        return path
    if path_here := _beside_this_file(LIBRARY_NAME):
        return path_here
    raise LibraryNotFoundError(
        f"{Path(__file__).parent / LIBRARY_NAME}: no such file; install the package (pip install .) to build it, "
        f"or name a built one in {LIBRARY_VARIABLE}"
    )


def rtx_shim_path() -> Path:
    """Absolute path of the shim that lets the ONNX parser of the tensorrt_rtx wheel import plugins.

    Load it after `import tensorrt_rtx` and before parsing: `ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)`. Without it
    the parser ends the process.

    Raises:
        LibraryNotFoundError: The package was installed without it.
    """
    if path := _beside_this_file("shims/libtensorrt_rtx.so"):
        return path
    raise LibraryNotFoundError(
        f"{Path(__file__).parent / 'shims/libtensorrt_rtx.so'}: no such file; install the package again (pip install .)"
    )


@cache
def _load(path: Path) -> PluginLibrary:
    return PluginLibrary(path)


def load_library() -> PluginLibrary:
    """Loads the library at `library_path()`, once per process. It needs neither a GPU nor a driver.

    Returns:
        The library. `kernel_support.prepare_gpu` says whether it runs on a GPU of this machine.

    Raises:
        LibraryNotFoundError: There is none.
        VortaError: The file is no library of this version of the package.
    """
    return _load(library_path())
