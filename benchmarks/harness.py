# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: the description of the machine, and one JSON file per run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from vorta_trt.model.files import write_json
from vorta_trt.plugins.gpu import driver_version

HERE = Path(__file__).parent
REPORTED_PACKAGES = (
    "vorta-trt",
    "torch",
    "triton",
    "flash-attn-4",
    "nvidia-cutlass-dsl",
    "diffusers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tensorrt-rtx",
    "tensorrt",
)


def environment(source: Path = HERE) -> dict[str, Any]:
    """GPUs, driver, versions, command and commit: what a reader needs to repeat a run.

    The commit is that of the folder `source`; it is None for an installed folder. The variable VORTA_COMMIT names it on
    a machine that holds the files without their history.
    """
    names = (_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines()
    return {
        "date": date.today().isoformat(),
        "command": shlex.join(_command(sys.argv)),
        "commit": os.environ.get("VORTA_COMMIT") or _commit(source),
        "cpu_cores": os.cpu_count(),
        "cpu": _cpu_name(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": ", ".join(dict.fromkeys(names)) or None,
        "gpus": len(names),
        "driver": driver_version() if names else None,
        "python": platform.python_version(),
        "versions": {name: version for name in REPORTED_PACKAGES if (version := _version(name))},
    }


def write_result(folder: Path, name: str, figures: dict[str, Any]) -> Path:
    """Writes `<folder>/<date>-<name>.json` and returns its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{date.today().isoformat()}-{name}.json"
    write_json(path, {**environment(folder), **figures})
    return path


def gib(size: int) -> float:
    """Bytes as GiB, two decimals."""
    return round(size / 2**30, 2)


def _command(arguments: Sequence[str]) -> list[str]:
    """The command as one would type it."""
    program, *rest = arguments
    name = Path(program).name
    typed = ["vorta-trt"] if name in ("vorta-trt", "cli.py") else ["python", name]
    return [*typed, *(_short(part) for part in rest)]


def _commit(folder: Path) -> str | None:
    """`git describe` of a folder whose files are tracked; None for others, as a virtual environment in a checkout."""
    if not _output("git", "-C", str(folder), "ls-files", "--", "."):
        return None
    return _output("git", "-C", str(folder), "describe", "--always", "--dirty")


def _short(argument: str) -> str:
    """An absolute path as its last part: results name no folders of the machine they were made on."""
    return Path(argument).name if argument.startswith("/") else argument


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
