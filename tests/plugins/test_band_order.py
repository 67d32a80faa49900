# SPDX-License-Identifier: Apache-2.0
"""The order in which Hopper's fp8 product visits its tiles, on the host: each once, and in squares."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from .test_bucket_partition import KERNELS, package_folder

HEADER = KERNELS / "sm90_linear" / "band_order.h"


def test_every_cluster_is_visited_once(compile_cpp: Any) -> None:
    cuda = package_folder("nvidia", "cu13/include")
    system = [package_folder("cutlass_library", "source/include"), cuda, cuda / "cccl"]
    program = compile_cpp(
        f"band-order-{hashlib.sha256(HEADER.read_bytes()).hexdigest()[:16]}", f"-I{KERNELS}",
        *(part for path in system for part in ("-isystem", path)),
        Path(__file__).parent / "driver" / "band_order.cpp",
    )  # fmt: skip
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert int(result.stdout) == 2 * (20 * 20 * 9 + 4)
