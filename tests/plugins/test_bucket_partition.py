# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of ragged buckets, on the host: the kernels' own header against counting."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "plugins" / "kernels"
HEADERS = ("box_partition.h", "bucket_partition.h")


def package_folder(package: str, inside: str) -> Path:
    """A folder of headers in an installed package; skips the test without it."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / inside).is_dir():
            return Path(location) / inside
    pytest.skip(f"needs the headers of {package} ({inside}), with which the library is built")


def test_closed_forms_agree_with_counting(compile_cpp: Any) -> None:
    cuda = package_folder("nvidia", "cu13/include")
    system = [package_folder("cutlass_library", "source/include"), cuda, cuda / "cccl"]
    digest = hashlib.sha256(b"".join((KERNELS / name).read_bytes() for name in HEADERS)).hexdigest()
    program = compile_cpp(
        f"bucket-partition-{digest[:16]}", f"-I{KERNELS}", *(part for path in system for part in ("-isystem", path)),
        Path(__file__).parent / "driver" / "bucket_partition.cpp",
    )  # fmt: skip
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert int(result.stdout) > 3000, "every trial has a bucket"
