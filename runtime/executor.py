# SPDX-License-Identifier: Apache-2.0
"""What every executor offers: specs, run, close. `Engine` does the checking; an executor only runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vorta_trt.runtime.tensors import Array, ArrayKind, TensorSpec


class Executor(Protocol):
    """One way to run a transformer. Owns its session, engine or buffers until `close`."""

    name: str
    array_kind: ArrayKind  # of what `run` takes and gives
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs once. `feeds` holds every input, already of the spec's type and shape and of `array_kind`."""
        ...

    def close(self) -> None:
        """Frees what the executor holds. May be called twice."""
        ...
