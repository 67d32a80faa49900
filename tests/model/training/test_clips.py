# SPDX-License-Identifier: Apache-2.0
"""Videos and their captions as users have them: other editors, other encodings, files that are not what they seem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vorta_trt.model.training.clips import find_clips
from vorta_trt.model.training.data import DataError

UMLAUTS = "Häuser am Fluß, 日本"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("cat.mp4", "dog.mp4"):
        (folder / name).write_bytes(b"nobody reads it here")
    for name in ("cat", "dog"):
        (folder / f"{name}.txt").write_text(f"a {name}\n")
    return folder


def found(videos: Path, captions: Path | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """Captions of the clips that are found, and the reasons of those that are refused."""
    refused: dict[str, str] = {}
    clips = find_clips(videos, captions, refused.__setitem__)
    return {clip.name: clip.caption for clip in clips}, refused


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_a_file_itself_tells(videos: Path, tmp_path: Path, encoding: str) -> None:
    (videos / "cat.txt").write_text(f" {UMLAUTS}\r\n", encoding=encoding)
    assert found(videos) == ({"cat": UMLAUTS, "dog": "a dog"}, {})
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"cat.mp4": UMLAUTS, "dog.mp4": "x"}, ensure_ascii=False), encoding=encoding)
    assert found(videos, captions) == ({"cat": UMLAUTS, "dog": "x"}, {})


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "gb18030"])
def test_encodings_that_would_be_guesses(videos: Path, encoding: str) -> None:
    (videos / "cat.txt").write_bytes("Häuser".encode(encoding))
    clips, refused = found(videos)
    if encoding == "utf-16-le":  # valid UTF-8 with zeros between, but for the umlaut
        assert "is not UTF-8 text" in refused["cat.mp4"]
    assert clips == {"dog": "a dog"}
    assert "caption cat.txt: is not UTF-8 text" in refused["cat.mp4"] and "save it as UTF-8" in refused["cat.mp4"]


def test_captions_that_are_empty_or_missing(videos: Path, tmp_path: Path) -> None:
    (videos / "cat.txt").write_text(" \n\t\n")
    (videos / "dog.txt").unlink()
    _, refused = found(videos)
    assert refused == {
        "cat.mp4": "caption cat.txt: is empty; write what the video shows",
        "dog.mp4": "video dog.mp4: has no caption; write dog.txt beside it",
    }
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"cat.mp4": "  "}))
    _, refused = found(videos, captions)
    assert refused["cat.mp4"] == f"video cat.mp4: its caption in {captions} is empty; write what the video shows"
    assert refused["dog.mp4"] == f"video dog.mp4: has no caption; write an entry 'dog.mp4' in {captions}"
    (videos / "dog.txt").mkdir()
    assert found(videos)[1]["dog.mp4"].startswith("caption dog.txt: cannot be read (Is a directory)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cat.mp4": "a", "dog.mp4": "b", "cat.mp4": "c"}', "'cat.mp4' stands there 2 times; keep one of them"),
        ('{"cat.mp4": 5}', "cat.mp4 5: must be a valid string; give a JSON object"),
        ('{"cat.mp4": NaN}', "cat.mp4 nan: must be a valid string"),
        ('["a"]', r"content \['a'\]: must be a valid dictionary"),
        ('{"cat.mp4"', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_files_of_captions_that_are_none(videos: Path, tmp_path: Path, content: str, message: str) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text(content)
    with pytest.raises(DataError, match=f"captions .*captions.json: {message}"):
        found(videos, captions)


def test_no_file_of_captions(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"captions .*absent.json: no such file.*JSON"):
        found(videos, tmp_path / "absent.json")


def test_captions_of_other_videos_are_counted(videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"cat.mp4": "a", "dog.mp4": "b", "Dog.mp4": "c", "sea": "d"}))
    assert found(videos, captions) == ({"cat": "a", "dog": "b"}, {})
    assert "2 name no video there, the first is 'Dog.mp4'" in caplog.text


def test_what_is_no_video_of_ones_own(videos: Path) -> None:
    (videos / "._cat.mp4").write_bytes(b"what macOS writes beside every file")
    (videos / "folder.mp4").mkdir()
    (videos / "cat.AVI").write_bytes(b"")
    clips, refused = found(videos)
    assert clips == {"cat": "a cat", "dog": "a dog"}
    assert refused == {"cat.mp4": "video cat.mp4: cat.AVI has the same name; rename one"}
