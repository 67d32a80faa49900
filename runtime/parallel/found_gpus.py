# SPDX-License-Identifier: Apache-2.0
"""How many GPUs torch finds, in words. The module imports torch only when `found_gpus` is called."""

from __future__ import annotations

import os

VISIBLE = "CUDA_VISIBLE_DEVICES"


def found_gpus() -> str:
    """A text like "torch 2.11.0 finds 1 GPU here (CUDA_VISIBLE_DEVICES is not set)"; does not initialise any GPU."""
    import torch

    found = torch.cuda.device_count()
    gpus = {0: "no GPU", 1: "1 GPU"}.get(found, f"{found} GPUs")
    return f"torch {torch.__version__} finds {gpus} here ({VISIBLE} {os.environ.get(VISIBLE, 'is not set')})"
