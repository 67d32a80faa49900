# SPDX-License-Identifier: Apache-2.0
"""Opsets of exported files, their names, and the names that mark what the exporter changed."""

from __future__ import annotations

import os
from pathlib import Path

from vorta_trt.model.constants import TRANSFORMER

OPSET = 23  # opset of the standard operators: RMSNormalization and Attention are single nodes from 23 on
OPSET_17 = 17  # the newest opset that TensorRT 8.6 reads
OPSETS = (OPSET, OPSET_17)
SUFFIX = ".onnx"
TRANSPOSED = ".transposed"  # suffix of a weight that is stored as [in, out]


def check_name(path: Path) -> None:
    """Raises ValueError unless an exported file may be written to `path`.

    It must have the suffix of ONNX files. If it is a link, so must the file that the link leads to, because that file
    is replaced. So the export never replaces a checkpoint, a manifest or another file.
    """
    place = Path(os.path.realpath(path))
    if path.suffix != SUFFIX:
        fitting = path.with_suffix(SUFFIX) if path.name else path / f"model{SUFFIX}"
        raise ValueError(f"ONNX file {path}: its suffix must be {SUFFIX}; use e.g. {fitting}")
    if place.suffix != SUFFIX:
        raise ValueError(
            f"ONNX file {path}: is a link to {place}, whose suffix must be {SUFFIX}, too, since that file would be "
            f"replaced; remove the link, or give another path"
        )


def component_file(path: Path, component: str) -> Path:
    """The exported file of a component beside that of the transformer: NAME.transformer_2.onnx beside NAME.onnx."""
    return path if component == TRANSFORMER else path.with_name(f"{path.stem}.{component}{path.suffix}")


def check_second(path: Path, second: Path) -> None:
    """Raises FileNotFoundError unless the second expert's file lies beside that of the first."""
    if not second.is_file():
        raise FileNotFoundError(
            f"{second}: does not exist, and {path} is the first of two experts; put the file of the second there, as "
            f"`vorta-trt export` wrote it, or export both again"
        )
