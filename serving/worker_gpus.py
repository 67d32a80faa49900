# SPDX-License-Identifier: Apache-2.0
"""Which GPUs of the machine each worker of `vorta-trt serve` has, and whether there are any for its engines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.executors import ON_CPU
from vorta_trt.runtime.parallel.found_gpus import VISIBLE, found_gpus
from vorta_trt.serving.settings import ServeSettings

if TYPE_CHECKING:
    from vorta_trt.serving.catalogue import Catalogue


def gpus_of(settings: ServeSettings, worker: int, gpus: int = 1) -> dict[str, str]:
    """Environment variables that show a worker only its own GPUs; none if a device is given or there is only one GPU.

    Workers with one GPU each take the GPUs in turn, and share them if there are more workers than GPUs. Workers with
    several GPUs share none, see `check_gpus_of_workers`.

    Args:
        settings: Settings of the server.
        worker: Number of the worker.
        gpus: Number of GPUs that it needs.
    """
    import torch

    if any(model.pipeline.get("device") is not None for model in settings.models):
        return {}
    chosen = os.environ.get(VISIBLE)
    visible = [str(number) for number in range(torch.cuda.device_count())] if chosen is None else chosen.split(",")
    groups = len(visible) // gpus
    if len(visible) < 2 or not groups:
        return {}
    first = worker % groups * gpus
    return {VISIBLE: ",".join(visible[first : first + gpus])}


def check_engines_have_a_gpu(catalogue: Catalogue) -> None:
    """Raises VortaError for a TensorRT engine if there is no GPU: its workers would only fail again and again."""
    import torch

    if torch.cuda.device_count():
        return
    for model in catalogue.models.values():
        if model.flavour is not None and model.settings.pipeline.get("executor") not in ON_CPU:
            raise VortaError(
                f"{model.settings.source}: is an engine of TensorRT, and {found_gpus()}; serve it where there is one, "
                f"or, if it was built with --keep-onnx, serve its ONNX file on the CPU with --executor onnxruntime"
            )


def check_gpus_of_workers(catalogue: Catalogue, workers: int) -> None:
    """Raises ValueError if there are too few GPUs for workers that need several each; a CPU is shared."""
    import torch

    gpus, kinds = catalogue.gpus, {model.kind for model in catalogue.models.values()}
    found = torch.cuda.device_count()
    if gpus == 1 or "cuda" not in kinds or found >= gpus * workers:
        return
    remedy = f"give --workers {found // gpus}" if found >= gpus else f"a worker needs {gpus}"
    raise ValueError(f"workers {workers} of {gpus} GPUs each: they need {gpus * workers}, and {found_gpus()}; {remedy}")
