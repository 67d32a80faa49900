# SPDX-License-Identifier: Apache-2.0
"""Builds that are killed, cancelled, run out of disk or cannot write: no half bundle, and words that help."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from vorta_trt.engines import Bundle, build_engine
from vorta_trt.model.write_errors import WriteError

# Builds, and in the middle of TensorRT's work says so and waits (in short naps, so that signals are seen).
SLOW_BUILD = """
import sys, time
from pathlib import Path
from vorta_trt.engines import build_engine
def wait(event):
    if event.phase == "Optimizing graph" and event.step == 3:
        Path(sys.argv[3]).touch()
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not Path(sys.argv[3] + ".go").exists():
            time.sleep(0.02)
build_engine(sys.argv[1], sys.argv[2], progress=wait, overwrite=True)
"""


class SlowBuild:
    """A build in another process that has reached the middle of TensorRT's work."""

    def __init__(self, model: Path, target: Path, marker: Path) -> None:
        self.marker = marker
        command = [sys.executable, "-c", SLOW_BUILD, str(model), str(target), str(marker)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not marker.exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "the build did not get to TensorRT"
            time.sleep(0.02)

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        time.sleep(0.1)
        return self.finish()

    def finish(self) -> tuple[int, str]:
        self.marker.with_name(self.marker.name + ".go").touch()
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture
def model(make_model: Any, tmp_path: Path) -> Path:
    return Path(make_model(tmp_path / "models" / "m.onnx", blocks=1))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out put"
    folder.mkdir()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sigkill_leaves_no_bundle_and_the_next_build_cleans_up(model: Path, output: Path, tmp_path: Path) -> None:
    target = output / "m.bundle"
    code, _ = SlowBuild(model, target, tmp_path / "marker").stop(signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not target.exists()
    (remains,) = names(output)
    assert remains.startswith(".m.bundle.unfinished-")
    build_engine(model, target)
    assert names(output) == ["m.bundle"]


def test_sigkill_keeps_the_bundle_that_was_to_be_replaced(model: Path, output: Path, tmp_path: Path) -> None:
    target = output / "m.bundle"
    before = build_engine(model, target).manifest
    SlowBuild(model, target, tmp_path / "marker").stop(signal.SIGKILL)
    assert Bundle.open(target).manifest == before


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_stop_the_build_and_clean_up(model: Path, output: Path, tmp_path: Path, number: signal.Signals) -> None:
    code, errors = SlowBuild(model, output / "m.bundle", tmp_path / "marker").stop(number)
    assert code == -number, errors  # the signal's own effect, once everything is cleaned up
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
    assert names(output) == []


def test_a_running_build_is_left_alone(model: Path, output: Path, tmp_path: Path) -> None:
    other = SlowBuild(model, output / "m.bundle", tmp_path / "marker")
    ours = build_engine(model, output / "m.bundle")  # clears stale folders, and the other one is not stale
    assert len(names(output)) == 2
    code, errors = other.finish()
    assert code == 0, errors
    assert names(output) == ["m.bundle"]
    assert Bundle.open(output / "m.bundle").manifest.digest != ours.manifest.digest


# --- Disk --------------------------------------------------------------------

LIMITED_BUILD = """
import resource, sys
from vorta_trt.engines import build_engine
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
build_engine(sys.argv[1], sys.argv[2])
"""


def test_a_write_that_fails_within_tensorrt(make_model: Any, output: Path, tmp_path: Path, run_python: Any) -> None:
    """TensorRT reports success when its stream writer fails; the plan must not be taken for whole."""
    model = make_model(tmp_path / "m.onnx", ffn=2048)  # a plan beyond the limit
    result = run_python(LIMITED_BUILD, model, output / "m.bundle")
    assert result.returncode == 1
    assert "WriteError" in result.stderr and "ulimit -f" in result.stderr
    assert names(output) == []


def test_a_full_disk(model: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vorta_trt.engines.hashed_file import HashedFile

    def write(self: HashedFile, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(HashedFile, "write", write)
    with pytest.raises(WriteError, match=r"No space left on device\): the disk is full .* GB free"):
        build_engine(model, output / "m.bundle")
    assert names(output) == []


def test_too_little_space_is_said_before_the_build(model: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10_000, 9_000, 1_000))

    def never(event: object) -> None:
        raise AssertionError("the build started")

    with pytest.raises(WriteError, match=r"needs \d+\.\d MB, the disk has 0\.0 MB free"):
        build_engine(model, output / "m.bundle", progress=never)
    assert names(output) == []


def test_a_read_only_folder(model: Path) -> None:
    if not Path("/sys/kernel").is_dir():
        pytest.skip("no sysfs, the one folder that root cannot write either")
    with pytest.raises(WriteError, match="/sys/kernel/m.bundle: cannot be written .*another folder"):
        build_engine(model, "/sys/kernel/m.bundle")


def test_a_file_in_the_way(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="a part of the path is a file"):
        build_engine(model, tmp_path / "file" / "m.bundle")
    with pytest.raises(WriteError, match="exists and is not a bundle"):
        build_engine(model, tmp_path / "file", overwrite=True)
