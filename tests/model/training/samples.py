# SPDX-License-Identifier: Apache-2.0
"""Sizes of the tiny model, training data for it, and training in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vorta_trt.model import AttentionGeometry

LAYERS, HEADS, HEAD_DIM, TEXT_DIM, CHANNELS = 2, 3, 16, 16, 4
SIZE = (9, 64, 96)  # pixels
SHAPE = (CHANNELS, 3, 8, 12)  # of the latents
GEOMETRY = AttentionGeometry.for_video(*SIZE)  # grid (3, 4, 6)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
PROCESS = """
import sys
from vorta_trt.model.training import TrainingSettings, train_router
checkpoint, data, output, fsdp, resume = sys.argv[1:]
settings = TrainingSettings(steps=4 if resume else 2, batch_size=2, seed=1, precision="fp32")
report = train_router(
    checkpoint, data, output, settings, device="cpu", fsdp=bool(fsdp), resume=bool(resume)
)
print("main" if report else "other")
"""


@dataclass(frozen=True)
class Setup:
    """Folders that nothing writes to."""

    checkpoint: Path
    data: Path


def write_data(folder: Path, names: Sequence[str], **changes: Any) -> Path:
    """A prepared data folder of random latents; `changes` go into dataset.json."""
    generator = torch.Generator().manual_seed(0)
    for kind in ("latents", "prompts"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        latents = torch.randn(SHAPE, generator=generator)
        prompt = torch.randn(5 + index, TEXT_DIM, generator=generator)
        save_file({"latents": latents}, folder / "latents" / f"{name}.safetensors")
        save_file({"prompt_embeds": prompt}, folder / "prompts" / f"{name}.safetensors")
    content = {
        "version": 1,
        "family": "wan",
        "video_size": list(SIZE),
        "samples": [{"name": name, "caption": f"A video of {name}"} for name in names],
    }
    (folder / "dataset.json").write_text(json.dumps({**content, **changes}))
    return folder


def train_in_two_processes(setup: Setup, output: Path, fsdp: str = "", resume: str = "") -> None:
    """2 steps, with `resume` 4, of one micro-batch per process, of seed 1, in fp32; `fsdp` and `resume` may be ""."""
    script = output.with_name("process.py")
    script.write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    arguments = [setup.checkpoint, setup.data, output, fsdp, resume]
    done = subprocess.run(
        [str(part) for part in (*command, *arguments)], capture_output=True, text=True, timeout=200, env=ONE_THREAD
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("main"), done.stdout.count("other")) == (1, 1)
