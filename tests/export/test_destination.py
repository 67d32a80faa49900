# SPDX-License-Identifier: Apache-2.0
"""A model file is there whole or not at all, and never beside another model's data."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vorta_trt.export.destination import check_destination, data_file, staged


def write_pair(path: Path, content: str, external: bool = True) -> None:
    with staged(path, 10) as stage:
        stage.write_text(content)
        if external:
            data_file(stage).write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in folder.iterdir()}


def test_pair_replaces_pair(tmp_path: Path) -> None:
    path = tmp_path / "a model.onnx"
    write_pair(path, "first")
    assert contents(tmp_path) == {"a model.onnx": "first", "a model.onnx.data": "first"}
    write_pair(path, "second")
    assert contents(tmp_path) == {"a model.onnx": "second", "a model.onnx.data": "second"}
    write_pair(path, "third", external=False)
    assert contents(tmp_path) == {"a model.onnx": "third"}


def test_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    write_pair(tmp_path / "model.onnx", "x")
    (tmp_path / "plain").touch()
    modes = {entry.stat().st_mode for entry in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyboardInterrupt(), OSError(errno.EIO, "input/output error")]
)
def test_failure_leaves_the_old_model(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model.onnx"
    write_pair(path, "old")
    with pytest.raises(type(error)), staged(path, 10) as stage:
        stage.write_text("half")
        data_file(stage).write_text("ha")
        raise error
    assert contents(tmp_path) == {"model.onnx": "old", "model.onnx.data": "old"}


def test_no_model_stands_beside_foreign_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two moves: no .onnx file at all, rather than the old one with the new data."""
    path = tmp_path / "model.onnx"
    write_pair(path, "old")
    move = os.replace

    def replace(source: Path, target: Path) -> None:
        if target == path:
            raise OSError(errno.EIO, "input/output error")
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError):
        write_pair(path, "new")
    assert contents(tmp_path) == {"model.onnx.data": "new"}


def test_disk_too_small(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"model.onnx: needs 1000000000.0 GB, the disk has") as caught:
        with staged(tmp_path / "model.onnx", 10**18):
            pytest.fail("nothing must be written")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_disk_full_while_writing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="free some space, or choose another folder"):
        with staged(tmp_path / "model.onnx", 10) as stage:
            stage.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_really_full_disk(tmp_path: Path) -> None:
    """/dev/full behaves as a disk that fills up while a file is written."""
    with (
        pytest.raises(OSError, match="free some space"),
        staged(tmp_path / "model.onnx", 10),
        open("/dev/full", "wb") as f,
    ):
        f.write(b"x" * 10**6)
        f.flush()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("interruptible")
def test_sigterm_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_pair(path, "old")
    script = f"""
import time
from pathlib import Path
from vorta_trt.export.destination import staged
with staged(Path({str(path)!r}), 10) as stage:
    stage.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert contents(tmp_path) == {"model.onnx": "old", "model.onnx.data": "old"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="its folder is not writable; choose another folder"):
        check_destination(tmp_path / "model.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_read_only_folder_of_a_user(tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    with pytest.raises(PermissionError, match="its folder is not writable"):
        check_destination(folder / "model.onnx")
    shutil.rmtree(folder)
