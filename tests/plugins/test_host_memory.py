# SPDX-License-Identifier: Apache-2.0
"""Files larger than memory, as the libraries that map them refuse: a limit of the address space stands for memory."""

from __future__ import annotations

import errno
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.host_memory import HostOutOfMemory, NotMappable, is_out_of_memory, mapping

GIB = 1 << 30

READ = """
import resource, sys
from pathlib import Path
from vorta_trt.plugins.host_memory import HostOutOfMemory
path = Path(sys.argv[1])
{imports}
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    {read}
except HostOutOfMemory as error:
    print(error)
"""


def _safetensors(path: Path) -> None:
    """8 GiB of one tensor, of which the disk holds nothing."""
    header = json.dumps({"proj.weight": {"dtype": "BF16", "shape": [4 * GIB], "data_offsets": [0, 8 * GIB]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 8 * GIB)


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (8 * GIB,)})
        file.truncate(file.tell() + 8 * GIB)


def _plan(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 * GIB)


def _onnx(path: Path) -> None:
    """y = sum of a weight of 8 GiB that lies beside the file."""
    weight = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[8 * GIB], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", f"{path.name}.data"), ("offset", "0"), ("length", str(8 * GIB))):
        weight.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Gather", ["w", "x"], ["y"])]
    values = [helper.make_tensor_value_info(n, t, [1]) for n, t in (("x", TensorProto.INT64), ("y", TensorProto.UINT8))]
    graph = helper.make_graph(nodes, "sum", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    _plan(path.with_name(f"{path.name}.data"))


@pytest.mark.parametrize(
    ("name", "write", "imports", "read"),
    [
        (
            "diffusion_pytorch_model.safetensors",
            _safetensors,
            "from vorta_trt.model.safetensors_files import open_safetensors",
            "open_safetensors(path)",
        ),
        (
            "sample.safetensors",
            _safetensors,
            "from vorta_trt.runtime.frames import read_frames",
            "list(read_frames(path))",
        ),
        ("sample.npy", _npy, "from vorta_trt.runtime.frames import read_frames", "list(read_frames(path))"),
        (
            "transformer.plan",
            _plan,
            "from vorta_trt.engines.shared_plan import open_plan",
            "open_plan(path, None).__enter__()",
        ),
        (
            "model.onnx",
            _onnx,
            "from vorta_trt.engines import telemetry; telemetry.disable_telemetry(); import onnxruntime\n"
            "from vorta_trt.runtime.engine import Engine",
            "Engine(path)",
        ),
        (
            "model.onnx",
            _onnx,
            "import onnx.reference; from vorta_trt.runtime.engine import Engine",
            "Engine(path, executor='reference')",
        ),
    ],
)
def test_a_file_larger_than_memory(
    tmp_path: Path, name: str, write: Callable[[Path], None], imports: str, read: str
) -> None:
    path = tmp_path / name
    write(path)
    script = READ.format(imports=imports, read=read)
    ran = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert f"{path}" in ran.stdout and "its 8.0 GiB do not fit into memory" in ran.stdout, ran


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), False),
    ],
)
def test_what_says_that_memory_is_used_up(tmp_path: Path, error: Exception, answer: bool) -> None:
    assert is_out_of_memory(error) is answer
    file = tmp_path / "file"
    file.write_bytes(b"0")
    with pytest.raises(HostOutOfMemory if answer else type(error)) as caught, mapping(file):
        raise error
    assert isinstance(caught.value, VortaError) is answer


@pytest.mark.parametrize(
    "error", [OSError(errno.ENODEV, "No such device"), ValueError("Error: No such device (os error 19)")]
)
def test_a_file_system_that_does_not_map(tmp_path: Path, error: Exception) -> None:
    """As FUSE mounts with direct_io and some network ones; the words are those of NumPy and safetensors."""
    with pytest.raises(NotMappable, match=f"{tmp_path / 'file'}: its file system does not map .* local disk"):
        with mapping(tmp_path / "file"):
            raise error


def test_tensors_that_do_not_fit() -> None:
    for make in (lambda: torch.empty(1 << 45), lambda: np.empty(1 << 45)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            make()
        assert is_out_of_memory(caught.value)
