# SPDX-License-Identifier: Apache-2.0
"""Two processes, replicated and sharded, do what one does: the batch of a step is as large, of the same samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vorta_trt.model import load_router
from vorta_trt.model.training import TrainingSettings, train_router
from vorta_trt.model.training.run_folder import RunFolder

from .samples import Job, Setup, make_hunyuan_video_setup, train_in_two_processes


@pytest.fixture(scope="module")
def jobs(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Runs that two processes did."""
    torch.manual_seed(5)
    root = tmp_path_factory.mktemp("two processes")
    other = make_hunyuan_video_setup(root / "hunyuan video", ["cat", "dog", "sea"])
    made = {
        "replicated": Job(setup, root / "replicated", fsdp=False),
        "sharded": Job(setup, root / "sharded", fsdp=True, steps=4),
        "sharded, with text": Job(other, root / "with text", fsdp=True),
    }
    train_in_two_processes(root, list(made.values()))
    return made


def settings(steps: int) -> TrainingSettings:
    return TrainingSettings(steps=steps, batch_size=2, seed=1, precision="fp32")


@pytest.mark.parametrize("name", ["replicated", "sharded", "sharded, with text"])
def test_two_processes_do_what_one_does(jobs: dict[str, Job], tmp_path: Path, name: str) -> None:
    job = jobs[name]
    report = train_router(job.setup.checkpoint, job.setup.data, tmp_path, settings(job.steps), device="cpu")
    assert report is not None and "batch size 2, on 1 process of 2" in report.summary()
    one, two = (load_router(run).state_dict for run in (tmp_path, job.output))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-5)
    logs = [RunFolder(run).read_log() for run in (tmp_path, job.output)]
    assert len(logs[1]) == job.steps
    for line, other in zip(*logs, strict=True):
        assert line["timesteps"] == other["timesteps"] and len(line["timesteps"]) == 2
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_one_process_goes_on_with_a_run_of_two(jobs: dict[str, Job]) -> None:
    job = jobs["sharded, with text"]
    arguments = (job.setup.checkpoint, job.setup.data, job.output)
    report = train_router(*arguments, settings(3), device="cpu", resume=True)
    assert report is not None and (report.step, report.processes, report.batch_size) == (3, 1, 2)


def test_a_batch_that_cannot_be_shared_out() -> None:
    assert TrainingSettings(batch_size=12, micro_batch_size=2).micro_batches(3) == 2
    for batch, micro, processes, use in ((4, 1, 3, 3), (4, 1, 8, 8), (7, 2, 2, 8), (1, 2, 1, 2)):
        with pytest.raises(ValueError, match=f"batch_size {batch}: must be a multiple of .*{use},"):
            TrainingSettings(batch_size=batch, micro_batch_size=micro).micro_batches(processes)
