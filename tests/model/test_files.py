# SPDX-License-Identifier: Apache-2.0
"""Files and folders are there whole or not at all, on file systems of many kinds, whatever ends the process."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from vorta_trt.model import unfinished
from vorta_trt.model.files import (
    absence,
    check_output,
    check_sources,
    json_kind,
    make_folder,
    make_way,
    new_file,
    new_folder,
    write_json,
    write_text,
)
from vorta_trt.model.write_errors import WriteError

DATA = "model.onnx.data"


def write_pair(path: Path, content: str, external: bool = True) -> None:
    with new_file(path, path.name + ".data", size=10) as unfinished:
        unfinished.write_text(content)
        if external:
            unfinished.with_name(path.name + ".data").write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in folder.iterdir()}


def refuse(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, code: int) -> list[Any]:
    """Makes a system call fail as on a file system that does not have it; returns the list of its calls."""
    calls: list[Any] = []

    def call(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, name, call)
    return calls


# --- Files -------------------------------------------------------------------


def test_pair_replaces_pair(tmp_path: Path) -> None:
    path = tmp_path / "a model.onnx"
    write_pair(path, "first")
    assert contents(tmp_path) == {"a model.onnx": "first", "a model.onnx.data": "first"}
    write_pair(path, "second")
    assert contents(tmp_path) == {"a model.onnx": "second", "a model.onnx.data": "second"}
    write_pair(path, "third", external=False)
    assert contents(tmp_path) == {"a model.onnx": "third"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_mode_is_that_of_any_new_file(tmp_path: Path, mask: int) -> None:
    """safetensors, for one, writes files that only their owner reads."""
    before = os.umask(mask)
    try:
        (tmp_path / "plain").touch()
        with new_file(tmp_path / "file") as unfinished:
            unfinished.touch(mode=0o600)
        with new_folder(tmp_path / "folder") as folder:
            (folder / "file").touch(mode=0o600)
    finally:
        os.umask(before)
    expected = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "folder/file").stat().st_mode == expected


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyboardInterrupt(), OSError(errno.EIO, "input/output error")]
)
def test_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model.onnx"
    write_pair(path, "old")
    with pytest.raises(type(error)) as caught, new_file(path, DATA) as unfinished:
        unfinished.write_text("half")
        unfinished.with_name(DATA).write_text("ha")
        raise error
    assert caught.value is error
    assert contents(tmp_path) == {"model.onnx": "old", DATA: "old"}


def test_an_error_of_reading_is_not_one_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, new_file(tmp_path / "new"):
        (tmp_path / "missing").read_text()
    assert not isinstance(caught.value, WriteError) and caught.value.filename == str(tmp_path / "missing")


def test_no_file_stands_beside_foreign_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two moves: no .onnx file at all, rather than the old one with the new data."""
    path = tmp_path / "model.onnx"
    write_pair(path, "old")
    move = os.replace

    def replace(source: Path, target: Path) -> None:
        if target == path:
            raise OSError(errno.EIO, "input/output error")
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(WriteError):
        write_pair(path, "new")
    assert contents(tmp_path) == {DATA: "new"}


@pytest.mark.parametrize("name", ["a b", "ä\u2028ö", "new\nline", "-o", "a[b]*?", "x" * 250, os.fsdecode(b"\xff\xfe")])
def test_names_with_odd_characters(tmp_path: Path, name: str) -> None:
    for content in ("first", "second"):
        write_text(tmp_path / name, content)
        assert contents(tmp_path) == {name: content}
    with new_folder(tmp_path / "folders" / name) as folder:
        (folder / "file").touch()
    assert os.listdir(tmp_path / "folders") == [name]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/a").write_text("old")
    os.link(tmp_path / "blobs/a", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("blobs/a")
    (tmp_path / "dangling").symlink_to("blobs/b")
    write_text(tmp_path / "soft", "new")
    write_text(tmp_path / "dangling", "new")
    assert (tmp_path / "soft").is_symlink() and contents(tmp_path / "blobs") == {"a": "new", "b": "new"}
    (tmp_path / "lost").symlink_to("absent/c")
    with pytest.raises(WriteError, match=f"its folder does not exist; create it first: mkdir -p {tmp_path}/absent$"):
        write_text(tmp_path / "lost", "new")
    assert (tmp_path / "hard").read_text() == "old"  # another name of the file that was there before


def test_a_pipe_gets_the_bytes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    check_output(pipe)
    write_json(pipe, {"a": 1})
    reader.join(10)
    assert read == ['{\n  "a": 1\n}\n'] and pipe.is_fifo()


def test_dev_null_stays(tmp_path: Path) -> None:
    if not Path("/dev/null").is_char_device():
        pytest.skip("no /dev/null")
    write_text("/dev/null", "text")
    assert Path("/dev/null").is_char_device()


def test_a_device_that_takes_nothing_is_named(tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full")
    link = tmp_path / "full.mp4"
    link.symlink_to("/dev/full")
    check_output(link)
    message = f"output {link}: cannot be written .No space left on device.: is a link to /dev/full, no regular file"
    with pytest.raises(WriteError, match=message) as caught:
        write_text(link, "text")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(WriteError, match="output /dev/full: .*: is no regular file; give the path of a file"):
        write_text("/dev/full", "text")


# --- What is in the way, and may stay -----------------------------------------


def test_only_a_file_of_the_same_kind_is_replaced(tmp_path: Path) -> None:
    kind = json_kind("route table", "format", "routes", values={"question": "which"})
    file, link = tmp_path / "file", tmp_path / "link"
    check_output(file, kind=kind)
    link.symlink_to(file)
    check_output(link, kind=kind)
    for content in (
        b"",
        b'{"routes": [], "format": 1, "question": "which"}',
        b'\xef\xbb\xbf {"format":0,"routes":0,"question":"which"}',
    ):
        file.write_bytes(content)
        check_output(file, kind=kind)
    others = (b"{", b"{}", b"[]", b"text", b"\xff\xfe", b'{"routes": [], "format": 1}', b'{"a": ' * 10**5, b"\0" * 100)
    for content in (*others, b'{"routes": [], "format": 1, "question": "whose"}'):
        file.write_bytes(content)
        with pytest.raises(WriteError, match="file: exists and is no route table, so it is kept; give another path"):
            check_output(file, kind=kind)
        with pytest.raises(WriteError, match=f"link: is a link to {file}, which is no route table, so it is kept"):
            check_output(link, kind=kind)
    check_output(file)
    check_output("/dev/null", kind=kind)
    with pytest.raises(WriteError, match="is a folder"):
        check_output(tmp_path, kind=kind)


def test_a_folder_that_holds_what_it_is_made_from(tmp_path: Path) -> None:
    folder, outside = tmp_path / "m.bundle", tmp_path / "outside"
    check_sources(folder, [tmp_path, folder / "absent"])  # nothing is replaced
    folder.mkdir()
    outside.mkdir()
    (folder / "file").touch()
    (outside / "file").touch()
    (folder / "to outside").symlink_to(outside / "file")
    (outside / "to inside").symlink_to(folder / "file")
    (tmp_path / "current").symlink_to(folder)
    check_sources(folder, [None, outside, outside / "file", folder / "absent"])
    (tmp_path / "m.bundle.onnx").touch()
    check_sources(folder, [tmp_path / "m.bundle.onnx"])  # the name only begins alike
    for source in (folder, folder / "file", folder / "to outside", outside / "to inside", outside / "../m.bundle/file"):
        for path in (folder, tmp_path / "current"):
            with pytest.raises(WriteError, match="would be replaced, and .* lies in it; give another path"):
                check_sources(path, [None, outside, source])
    check_sources(folder, [tmp_path])  # of a checkpoint, a bundle inside may be built again


# --- Space and permission ----------------------------------------------------


def disk(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(total, total - free, free))


def test_disk_too_small(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"model.onnx: needs 1000000000.0 GB, the disk has") as caught:
        with new_file(tmp_path / "model.onnx", size=10**18):
            pytest.fail("nothing must be written")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(WriteError, match="needs 1000000000.0 GB"):
        check_output(tmp_path / "model.onnx", 10**18)
    assert not list(tmp_path.iterdir())


def test_unknown_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """blobfuse and its like report 0 blocks in all."""
    disk(monkeypatch, 0, 0)
    check_output(tmp_path / "file", 10**18)
    with new_file(tmp_path / "file", size=10**18) as unfinished:
        unfinished.write_text("fits")
    monkeypatch.undo()
    refuse(monkeypatch, shutil, "disk_usage", errno.ENOSYS)
    check_output(tmp_path / "file", 10**18)
    assert contents(tmp_path) == {"file": "fits"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),  # as of safetensors
    ],
)
def test_disk_full_while_writing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(WriteError, match="choose another folder"), new_file(tmp_path / "file") as unfinished:
        unfinished.write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


def test_disk_full_in_the_words_of_numpy_and_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="100 requested and 3 written") as caught, new_file(tmp_path / "file"):
        raise OSError("100 requested and 3 written")
    assert not isinstance(caught.value, WriteError)  # the disk has space
    disk(monkeypatch, 10**9, 0)
    with pytest.raises(WriteError, match=r"the disk is full \(0.00 GB free\)"), new_file(tmp_path / "file"):
        raise OSError("100 requested and 3 written")
    assert not list(tmp_path.iterdir())


def test_really_full_disk(tmp_path: Path) -> None:
    """/dev/full behaves as a disk that fills up while a file is written."""
    with pytest.raises(WriteError, match="free some space"), new_file(tmp_path / "f"), open("/dev/full", "wb") as f:
        f.write(b"x" * 10**6)
        f.flush()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *a, **k: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    for write in (lambda: check_output(tmp_path / "file"), lambda: write_text(tmp_path / "file", "x")):
        with pytest.raises(WriteError, match=f"{tmp_path / 'file'}: .*choose another folder") as caught:
            write()
        assert caught.value.errno == code


def test_a_read_only_file_system() -> None:
    """sysfs is the one that root cannot write either."""
    if not Path("/sys/kernel").is_dir():
        pytest.skip("no sysfs")
    for write in (check_output, lambda path: write_text(path, "x")):
        with pytest.raises(WriteError, match="/sys/kernel/file: cannot be written .*choose another folder"):
            write("/sys/kernel/file")


@pytest.mark.parametrize("name", ["file", "absent/file"])
def test_a_file_system_that_takes_no_new_names(name: str) -> None:
    """proc says that something is missing, as if a folder were to be made first."""
    path = Path("/proc") / name
    for write in (check_output, lambda path: write_text(path, "x"), make_folder, make_way):
        if write is make_way and name == "file":
            continue  # /proc is there
        with pytest.raises(WriteError, match=f"{path}: cannot be written .*/proc takes no new files or"):
            write(path)


def test_what_stands_in_the_place_of_a_file(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(tmp_path / "gone")
    assert absence(tmp_path / "absent") == "no such file"
    assert absence(tmp_path / "absent", "no such bundle") == "no such bundle"
    assert absence(tmp_path) == "is a folder"
    assert absence(Path("/dev/null")) == "is no regular file"
    assert absence(link) == f"is a link to {tmp_path / 'gone'}, which does not exist"
    assert absence(file / "x", "no such bundle") == f"no such bundle, for {file} is a file"


def test_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(WriteError, match="is a folder; give a file name"):
        check_output(tmp_path)
    with pytest.raises(WriteError, match=f"its folder does not exist; create it first: mkdir -p {tmp_path / 'no'}"):
        check_output(tmp_path / "no/file")
    with pytest.raises(WriteError, match="a part of the path is a file"):
        check_output(tmp_path / "file/file")
    with pytest.raises(WriteError, match="a part of the path is a file"), new_folder(tmp_path / "file/folder"):
        pytest.fail("nothing must be written")
    with pytest.raises(WriteError, match="the name is too long"):
        check_output(tmp_path / ("x" * 300))
    with pytest.raises(WriteError, match="exists"), new_folder(tmp_path / "file", replaces="m.json"):
        pytest.fail("nothing must be written")
    assert contents(tmp_path) == {"file": "kept"}


# --- File systems of other kinds ---------------------------------------------


def test_without_chmod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = refuse(monkeypatch, os, "chmod", errno.EPERM)
    with new_file(tmp_path / "file") as unfinished:
        unfinished.touch(mode=0o600)
    assert calls and (tmp_path / "file").exists()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_without_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    calls = refuse(monkeypatch, os, "fsync", code)
    write_text(tmp_path / "file", "x")
    assert calls and contents(tmp_path) == {"file": "x"}


def test_fsync_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "old")
    refuse(monkeypatch, os, "fsync", errno.EIO)
    with pytest.raises(WriteError, match="Input/output error"):
        write_text(tmp_path / "file", "new")
    assert contents(tmp_path) == {"file": "old"}


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be known to be stale, so the remains of others stay."""
    (tmp_path / ".file.unfinished-1-ff").mkdir()
    refuse(monkeypatch, unfinished.fcntl, "flock", errno.ENOSYS)
    write_text(tmp_path / "file", "x")
    assert sorted(os.listdir(tmp_path)) == [".file.unfinished-1-ff", "file"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EXDEV, errno.EEXIST, errno.EBUSY])
def test_without_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    write_text(tmp_path / "file", "old")
    assert refuse(monkeypatch, os, "replace", code) == []
    refuse(monkeypatch, os, "rename", code)
    write_text(tmp_path / "file", "new")
    with new_folder(tmp_path / "folder") as folder:
        (folder / "sub").mkdir()
        write_text(folder / "sub/file", "in it")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "new" and (tmp_path / "folder/sub/file").read_text() == "in it"


def test_a_copy_that_fails_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "replace", errno.EPERM)
    refuse(monkeypatch, os, "rename", errno.EPERM)
    refuse(monkeypatch, shutil, "copyfile", errno.ENOSPC)
    with pytest.raises(WriteError, match="free some space"):
        write_text(tmp_path / "file", "new")
    with pytest.raises((WriteError, shutil.Error)), new_folder(tmp_path / "folder") as folder:
        (folder / "file").touch()
    assert not list(tmp_path.iterdir())


# --- Folders -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["renameat2", "rename aside", "layer below"])
def test_replacing_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how != "renameat2":
        monkeypatch.setattr(unfinished, "exchange", lambda first, second: False)
    target = tmp_path / "m.bundle"
    if how == "layer below":  # of a container's overlay: a folder of the image cannot be renamed
        rename = Path.rename

        def refuse_target(self: Path, other: Path) -> Path:
            if self == target:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            return rename(self, other)

        monkeypatch.setattr(Path, "rename", refuse_target)
    for content in ("first", "second"):
        with new_folder(target, replaces="m.json") as folder:
            (folder / "m.json").write_text(content)
        assert contents(target) == {"m.json": content}
        assert os.listdir(tmp_path) == ["m.bundle"]
    with pytest.raises(WriteError, match="exists"), new_folder(target):
        pytest.fail("nothing must be written")
    with pytest.raises(WriteError, match="holds no other.json"), new_folder(target, replaces="other.json"):
        pytest.fail("nothing must be written")


def test_a_folder_that_cannot_be_put_into_place_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "exchange", lambda first, second: False)
    target = tmp_path / "m.bundle"
    with new_folder(target) as folder:
        (folder / "m.json").write_text("old")
    refuse(monkeypatch, unfinished, "_rename_folder", errno.EIO)
    with pytest.raises(WriteError, match="Input/output error"), new_folder(target, replaces="m.json") as folder:
        (folder / "m.json").write_text("new")
    assert os.listdir(tmp_path) == ["m.bundle"] and contents(target) == {"m.json": "old"}


def test_a_folder_moved_aside_by_a_killed_writer_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".m.bundle.replaced-1-abcd"
    aside.mkdir()
    (aside / "m.json").write_text("old")
    with pytest.raises(WriteError, match="exists"), new_folder(tmp_path / "m.bundle"):
        pytest.fail("nothing must be written")
    assert os.listdir(tmp_path) == ["m.bundle"] and contents(tmp_path / "m.bundle") == {"m.json": "old"}


def test_names_with_wildcards_clean_only_their_own_remains(tmp_path: Path) -> None:
    other = tmp_path / ".ab.unfinished-1-ffff"
    other.mkdir()
    for name in ("a[b]", "*"):
        write_text(tmp_path / name, "x")
    assert other.is_dir()


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1/m.json").write_text("old")
    (tmp_path / "current").symlink_to("v1")
    with new_folder(tmp_path / "current", replaces="m.json") as folder:
        (folder / "m.json").write_text("new")
    assert (tmp_path / "current").is_symlink() and contents(tmp_path / "v1") == {"m.json": "new"}


# --- Signals -----------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from vorta_trt.model.files import new_file
with new_file(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def killed(path: Path, number: signal.Signals) -> int:
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        assert len(list(path.parent.iterdir())) == 2
        process.send_signal(number)
        return process.wait(30)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_clean_up(tmp_path: Path, number: signal.Signals) -> None:
    write_text(tmp_path / "file", "old")
    assert killed(tmp_path / "file", number) == (-number if number == signal.SIGINT else 128 + number)
    assert contents(tmp_path) == {"file": "old"}


def test_what_a_kill_leaves_goes_with_the_next_write(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    assert killed(tmp_path / "file", signal.SIGKILL) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "file").read_text() == "old"
    write_text(tmp_path / "file", "new")
    assert contents(tmp_path) == {"file": "new"}


def test_a_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        write_text(tmp_path / "file", "ours")
        assert len(list(tmp_path.iterdir())) == 2
        process.kill()
