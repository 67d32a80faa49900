# SPDX-License-Identifier: Apache-2.0
"""Facts that stand once: no other file has a table of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from vorta_trt.model.precision import (
    BITS,
    DATA_TYPES,
    PRECISIONS,
    DataType,
    PrecisionName,
    dtype_name,
    numpy_dtype,
    precision_name,
    torch_dtype,
)

ROOT = Path(__file__).parents[2]
ROOMS = ("plugins", "model", "export", "engines", "runtime", "serving", "benchmarks", "commands")
STRAYS = {
    "a table of precisions": (r"""["'](fp32|fp16|bf16)["']\s*:\s*(["'](b?float)|torch|\d)""", "model/precision.py"),
    "the type of a name": (r"getattr\(torch, ", "model/precision.py"),
    "TensorRT's names of types": (r"""["']HALF["']""", "model/precision.py"),
    "-1 for the router's decision": (r"ROUTER_DECIDES\b.*= *-1|_like\([^)]*routes[^)]*, -1\)", "model/constants.py"),
    "the default tau": (r"\w*TAU\w*(: *\w+)? *= *\d", "model/constants.py"),
    "the operator's name": (r"""["']RoutedAttention["']""", "plugins/operator_schema.py"),
    "what picks the plugin": (r"""["']plugin_(namespace|version)["'](?!, field)""", "plugins/operator_schema.py"),
    "values of an attribute": (r"""["']same["'], ["']fp8["']""", "plugins/operator_schema.py"),
    "the training timesteps": (r"\w*TIMESTEPS?(: *\w+)? *= *1_?000\b", "model/constants.py"),
}


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("what", STRAYS)
def test_home(what: str) -> None:
    pattern, home = STRAYS[what]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        if path != ROOT / home
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"{what} stands in {home}; import it from there: {found}"


def test_data_types() -> None:
    assert set(get_args(DataType)) == set(DATA_TYPES)
    assert get_args(PrecisionName) == tuple(PRECISIONS)
    for precision, name in PRECISIONS.items():
        dtype = torch_dtype(precision)
        assert dtype is torch_dtype(name) and dtype_name(dtype) == name and precision_name(dtype) == precision
        assert numpy_dtype(name).name == name
        assert 8 * dtype.itemsize == 8 * numpy_dtype(name).itemsize == BITS[name]
    assert precision_name(torch.float64) is None
    with pytest.raises(ValueError, match=r"'fp12'.*fp32, fp16, bf16"):
        torch_dtype("fp12")
