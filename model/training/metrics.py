# SPDX-License-Identifier: Apache-2.0
"""The log of a run: JSON lines, and TensorBoard if asked for.

A line per step: step, loss (weighted), diffusion, distillation, regularisation (before weighting), grad_norm,
learning_rate, interval and timesteps that were drawn, score_<branch> (mean of the routers' scores), share_<branch> (of
the heads, by hard routes), seconds, and on a GPU peak_memory_gib.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from vorta_trt.model.files import write_text
from vorta_trt.plugins.errors import VortaError


class MetricsLog:
    """Appends to a run's log. A context manager.

    Args:
        file: log.jsonl. resumed_from: lines of later steps, which will be done again, are dropped; 0 starts anew.
        tensorboard: folder of event files, None for none.

    Raises:
        VortaError: tensorboard is not installed.
    """

    def __init__(self, file: Path, resumed_from: int = 0, tensorboard: Path | None = None) -> None:
        self._writer: Any = None
        if tensorboard is not None:
            self._writer = _tensorboard_writer(tensorboard, resumed_from)
        kept = [line for line in read_log(file) if line["step"] <= resumed_from] if resumed_from else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(file, text)
        self._stream = file.open("a", encoding="utf-8")

    def write(self, metrics: dict[str, Any]) -> None:
        """One step's line, on disk when this returns."""
        self._stream.write(json.dumps(metrics) + "\n")
        self._stream.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        self._stream.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that a kill cut off is left out."""
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if text.endswith("\n"):
            lines.append(json.loads(text))
    return lines


def _tensorboard_writer(folder: Path, resumed_from: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise VortaError(
            f"tensorboard: is not installed ({error}); run pip install 'vorta-trt[train]', or leave out --tensorboard"
        ) from error
    writer: Any = SummaryWriter(log_dir=str(folder), purge_step=resumed_from + 1 if resumed_from else None)
    return writer
