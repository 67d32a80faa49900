# SPDX-License-Identifier: Apache-2.0
"""Chooses the GPU architectures that the build compiles for; GpuArchitectures.cmake runs it and prints what it says.

    python gpu_architectures.py ASKED CODES

ASKED is VORTA_CUDA_ARCHITECTURES: empty for the GPUs of this machine, "release" for those of a release wheel, or a
list as CMake spells it. CODES are the GPUs that nvcc can make code for, as `nvcc --list-gpu-code` lists them. The
answer is JSON: `architectures`, `reason`, `warnings`, and the architectures of the kernels for some GPUs only, `sm90`
and `sm89`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

GENERIC = "80"  # code for SM80, and PTX that the driver compiles for newer GPUs
RELEASE = ("80-real", "86-real", "89-real", "90a-real", "100-real", "120-real", "120-virtual")
LIST_GPUS = "--list-gpus"
KERNELS = Path(__file__).parents[1] / "kernels"
TIMEOUT = 60  # seconds; a driver that does not answer by then has no GPU for us


def _gpu_module() -> ModuleType:
    """Imports plugins/gpu.py by its path: the package is not installed yet, and gpu.py imports nothing of it."""
    path = Path(__file__).parents[1] / "gpu.py"
    spec = importlib.util.spec_from_file_location("vorta_trt_gpu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


gpu = _gpu_module()


def machine_gpus() -> tuple[list[tuple[str, Any]], str]:
    """The GPUs of this machine, as names and compute capabilities, and why there are none.

    The driver is asked in a process of its own: a broken one may crash or hang. CUDA_VISIBLE_DEVICES hides GPUs from a
    run, not from a build.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        result = subprocess.run(
            [sys.executable, __file__, LIST_GPUS],
            capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [], f"the CUDA driver did not answer within {TIMEOUT} s"
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [], f"asking the CUDA driver failed with exit code {result.returncode}: {last}"
    answer = json.loads(result.stdout)
    return [(name, gpu.ComputeCapability.parse(text)) for name, text in answer["gpus"]], str(answer["reason"])


def special_code(architectures: Sequence[str]) -> dict[str, list[str]]:
    """Architectures of the kernels that not every GPU can run, by the prefix of the kernels' folders."""
    return {
        "sm90": ["90a-real"] if any(name.startswith("90a") for name in architectures) else [],  # wgmma and TMA
        "sm89": [name for name in architectures if int(gpu.split_architecture(name)[0]) >= 89],  # mma of e4m3
    }


def choose(asked: str, codes: Sequence[str], gpus: Sequence[tuple[str, Any]], why_none: str) -> dict[str, Any]:
    """Chooses the architectures.

    Args:
        asked: VORTA_CUDA_ARCHITECTURES; see the top of this file.
        codes: GPUs that nvcc can make code for, such as "sm_90".
        gpus: Names and compute capabilities of this machine's GPUs.
        why_none: The reason why there are no GPUs.

    Returns:
        The answer; see the top of this file.

    Raises:
        ValueError: `asked` is not a list of architectures.
    """
    if asked == "release":
        architectures, reason = list(RELEASE), "the architectures of a release"
    elif asked:
        architectures, reason = asked.split(";"), "asked for"
    else:
        architectures, reason = _for_machine(codes, gpus, why_none)
    for name in architectures:
        gpu.split_architecture(name)  # raises ValueError
    special = special_code(architectures)
    warnings = [text for name, capability in gpus if (text := _slower(name, capability, architectures, special, codes))]
    return {"architectures": architectures, "reason": reason, "warnings": warnings, **special}


def _for_machine(codes: Sequence[str], gpus: Sequence[tuple[str, Any]], why_none: str) -> tuple[list[str], str]:
    if not gpus:
        return [GENERIC], (
            f"no GPU here: {why_none}; Hopper, Ada and Blackwell run faster kernels than these: if the library is for "
            "such a GPU, set VORTA_CUDA_ARCHITECTURES, e.g. to 80;90a-real"
        )
    architectures, reasons = [GENERIC], []
    for capability in sorted({capability for _, capability in gpus}):
        names = ", ".join(sorted({name for name, other in gpus if other == capability}))
        native = gpu.native_architecture(capability)
        if capability < gpu.OLDEST:
            reasons.append(f"{names} ({capability}) is older than {gpu.OLDEST}, the oldest that the kernels run on")
        elif f"sm_{capability.major}{capability.minor}" not in codes:
            reasons.append(f"{names} ({capability}) is newer than this nvcc, and runs the PTX")
        else:
            reasons.append(f"{names} ({capability})")
            if native != GENERIC:
                architectures.append(f"{native}-real")
    return architectures, f"GPUs here: {'; '.join(reasons)}"


def _slower(
    name: str, capability: Any, architectures: Sequence[str], special: dict[str, list[str]], codes: Sequence[str]
) -> str | None:
    """Warning about the code that a GPU would miss; None if it misses none."""
    if capability < gpu.OLDEST:
        return None
    misses = []
    folder = "sm90" if capability == gpu.HOPPER else "sm89" if capability >= gpu.ADA else None
    if folder and any(KERNELS.glob(f"{folder}*")) and not gpu.architectures_cover(special[folder], capability):
        misses.append(f"the kernels of {KERNELS.name}/{folder}*")
    code = gpu.code_for(architectures, capability)
    if code is not gpu.Code.MACHINE:
        misses.append("code that needs no compiling at the first launch" if code else "any code")
    if not misses:
        return None
    if f"sm_{capability.major}{capability.minor}" in codes:
        remedy = f"add {gpu.native_architecture(capability)}-real to VORTA_CUDA_ARCHITECTURES"
    else:
        remedy = "this nvcc makes no code for it: build with a newer CUDA"
    return (
        f"{name} (compute capability {capability}) of this machine will miss {' and '.join(misses)}: "
        f"{';'.join(architectures)} is compiled for; {remedy}"
    )


def main(arguments: Sequence[str]) -> int:
    """The program."""
    if list(arguments) == [LIST_GPUS]:
        report = gpu.driver_report()
        gpus = [(device.name, str(device.capability)) for device in report.devices]
        print(json.dumps({"gpus": gpus, "reason": report.reason}))
        return 0
    if len(arguments) != 2:
        print(f"usage: {Path(__file__).name} ASKED CODES; the top of the file says what they are", file=sys.stderr)
        return 2
    asked, codes = arguments
    try:
        print(json.dumps(choose(asked, codes.split(), *machine_gpus())))
    except ValueError as error:
        print(f"VORTA_CUDA_ARCHITECTURES {asked}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
