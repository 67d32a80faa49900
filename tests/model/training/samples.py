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
import json, os, sys
from vorta_trt.model.training import TrainingSettings, train_router
for folders, fsdp, steps in json.loads(sys.argv[1]):
    settings = TrainingSettings(steps=2, batch_size=2, seed=1, precision="fp32")
    for done in range(2, steps + 1, 2):
        settings = settings.model_copy(update={"steps": done})
        report = train_router(*folders, settings, device="cpu", fsdp=fsdp, resume=done > 2)
    print("main" if report else "other", flush=True)
os._exit(0)  # threads of torch's process group have aborted a finished process; what is tested is the training
"""


@dataclass(frozen=True)
class Setup:
    """Folders that no test writes to."""

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


def hunyuan_video_sample(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The conditions of a sample, with 7 of 10 tokens valid."""
    tensors = {
        "prompt_embeds": torch.randn(10, 16),
        "prompt_attention_mask": (torch.arange(10) < 7).long(),
        "pooled_prompt_embeds": torch.randn(12),
    }
    return {**tensors, **changes}


def make_hunyuan_video_setup(folder: Path, names: Sequence[str]) -> Setup:
    """A tiny checkpoint, and prepared data of random numbers."""
    from vorta_trt.model.families.hunyuan_video.random import make_checkpoint

    sizes = {"layers": 1, "single_layers": 2, "heads": 2, "head_dim": 16, "refiner_layers": 1}
    checkpoint = make_checkpoint(folder / "model", text_dim=16, pooled_dim=12, channels=CHANNELS, **sizes)
    data = write_data(folder / "data", names, family="hunyuan_video")
    for name in names:
        save_file(hunyuan_video_sample(), data / "prompts" / f"{name}.safetensors")
    return Setup(checkpoint, data)


@dataclass(frozen=True)
class Job:
    """A training run with seed 1, in fp32, with batches of 2 samples, resumed after every second step."""

    setup: Setup
    output: Path
    fsdp: bool
    steps: int = 2


def train_in_two_processes(folder: Path, jobs: Sequence[Job]) -> None:
    """Runs the jobs, one after the other, in the same two processes."""
    script = folder / "process.py"
    script.write_text(PROCESS)
    listed = [
        [[str(part) for part in (job.setup.checkpoint, job.setup.data, job.output)], job.fsdp, job.steps]
        for job in jobs
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, json.dumps(listed)], capture_output=True, text=True, timeout=300, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("main"), done.stdout.count("other")) == (len(jobs), len(jobs))
