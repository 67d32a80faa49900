# SPDX-License-Identifier: Apache-2.0
"""How many GPUs torch finds, in words; the module does not import torch, which is loaded when someone asks."""

from __future__ import annotations

import os

VISIBLE = "CUDA_VISIBLE_DEVICES"


def found_gpus() -> str:
    """As "torch 2.11.0 finds 1 GPU here (CUDA_VISIBLE_DEVICES is not set)"; none is initialised."""
    import torch

    found = torch.cuda.device_count()
    gpus = {0: "no GPU", 1: "1 GPU"}.get(found, f"{found} GPUs")
    return f"torch {torch.__version__} finds {gpus} here ({VISIBLE} {os.environ.get(VISIBLE, 'is not set')})"
