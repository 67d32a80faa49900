# SPDX-License-Identifier: Apache-2.0
"""Training data from videos and captions, through a tiny VAE and text encoder; frames from real video files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_pipeline import complete_pipeline
from vorta_trt.model.training import DataError, TrainingSettings, prepare_data, train_router
from vorta_trt.model.training import prepare as module
from vorta_trt.model.training.clips import read_video
from vorta_trt.model.write_errors import WriteError
from vorta_trt.plugins.errors import VortaError

from .samples import CHANNELS, HEAD_DIM, HEADS, LAYERS, SHAPE, SIZE, TEXT_DIM
from .videos import write_video

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny pipeline: transformer, scheduler, tokenizer, text encoder, VAE."""
    root = tmp_path_factory.mktemp("pipeline") / "wan"
    sizes = {"layers": LAYERS, "heads": HEADS, "head_dim": HEAD_DIM, "channels": CHANNELS, "text_dim": TEXT_DIM}
    make_wan_checkpoint(root, ffn_dim=32, freq_dim=32, seed=3, **sizes)
    return complete_pipeline(root)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "the videos"
    folder.mkdir()
    for name, grey in (("red", 60), ("blue", 180)):
        write_video(folder / f"{name}.mp4", [grey] * SIZE[0])
        (folder / f"{name}.txt").write_text(f"a {name} wall\n")
    (folder / "notes.md").write_text("not a video")
    return folder


def prepare(checkpoint: Path, videos: Path, output: Path, **options: Any) -> Any:
    return prepare_data(checkpoint, videos, output, SIZE, precision="fp32", device="cpu", **options)


def test_latents_and_embeddings_are_the_pipelines_own(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan, WanPipeline

    prepared = prepare(checkpoint, videos, tmp_path / "data")
    assert prepared.samples == ("blue", "red")
    assert json.loads((tmp_path / "data/dataset.json").read_text()) == {
        "version": 1,
        "family": "wan",
        "video_size": list(SIZE),
        "samples": [{"name": "blue", "caption": "a blue wall"}, {"name": "red", "caption": "a red wall"}],
    }
    latents = load_file(tmp_path / "data/latents/red.safetensors")["latents"]
    assert latents.shape == SHAPE
    vae = AutoencoderKLWan.from_pretrained(checkpoint, subfolder="vae")
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    video = read_video(videos / "red.mp4", SIZE, 16.0)
    with torch.no_grad():
        encoded = vae.encode(video.unsqueeze(0)).latent_dist.mode()[0]
    torch.testing.assert_close(latents, (encoded - mean) / std)

    pipeline = WanPipeline.from_pretrained(checkpoint, transformer=None)
    with torch.no_grad():
        embeds, _ = pipeline.encode_prompt("a red wall", do_classifier_free_guidance=False, max_sequence_length=512)
    stored = load_file(tmp_path / "data/prompts/red.safetensors")["prompt_embeds"]
    torch.testing.assert_close(stored, embeds[0])
    assert bool((stored[4:] == 0).all())  # three words and the end

    settings = TrainingSettings(steps=2, batch_size=1, precision="fp32")
    assert train_router(checkpoint, tmp_path / "data", tmp_path / "run", settings, device="cpu") is not None


def test_only_what_is_missing_is_made(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    prepare(checkpoint, videos, output)
    (output / "dataset.json").unlink()  # killed before the end
    (output / "latents/red.safetensors").unlink()
    (output / "latents/.red.safetensors.unfinished-12-ab").mkdir()
    (output / "latents/.red.safetensors.unfinished-12-ab/red.safetensors").write_bytes(b"half")
    kept = (output / "latents/blue.safetensors").stat().st_mtime_ns
    assert prepare(checkpoint, videos, output).kept_files == 3
    assert (output / "latents/blue.safetensors").stat().st_mtime_ns == kept
    assert sorted(file.name for file in (output / "latents").iterdir()) == ["blue.safetensors", "red.safetensors"]
    (videos / "blue.txt").write_text("a red and blue wall")
    write_video(videos / "red.mp4", [10] * 12)
    assert prepare(checkpoint, videos, output).kept_files == 2
    assert prepare(checkpoint, videos, output, frames_per_second=15).kept_files == 2  # other frames
    assert "4 of 4 files were there already" in prepare(checkpoint, videos, output, frames_per_second=15).summary()


def test_captions_from_a_file(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"red.mp4": "a wall", "blue.mp4": "blue"}))
    prepare(checkpoint, videos, tmp_path / "data", captions=captions)
    samples = json.loads((tmp_path / "data/dataset.json").read_text())["samples"]
    assert [sample["caption"] for sample in samples] == ["blue", "a wall"]
    captions.write_text(json.dumps({"red.mp4": "a wall"}))
    with pytest.raises(DataError, match=r"video blue.mp4: has no caption.*'blue.mp4'.*captions.json"):
        prepare(checkpoint, videos, tmp_path / "data", captions=captions)
    captions.write_text(json.dumps({"red.mp4": "a wall", "blue.mp4": "a \ud83d"}))
    with pytest.raises(DataError, match=r"video blue.mp4: its caption in .*captions.json is no text"):
        prepare(checkpoint, videos, tmp_path / "data", captions=captions)
    captions.write_text("[]")
    with pytest.raises(DataError, match=r"captions .*captions.json: content \[\]: must be a valid dictionary.*JSON"):
        prepare(checkpoint, videos, tmp_path / "data", captions=captions)


def test_bad_videos_are_named_or_skipped(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    write_video(videos / "short.mp4", [0] * 5)
    (videos / "short.txt").write_text("a wall")
    with pytest.raises(DataError, match=r"short.mp4 has 5 frames at 16 per second, 9 are needed; .*--skip-bad"):
        prepare(checkpoint, videos, output)
    (videos / "short.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"short.mp4: cannot be decoded"):
        prepare(checkpoint, videos, output)
    (videos / "short.txt").unlink()
    with pytest.raises(DataError, match=r"video short.mp4: has no caption.*short.txt"):
        prepare(checkpoint, videos, output)
    (videos / "short.txt").write_bytes("Häuser".encode("latin-1"))
    with pytest.raises(DataError, match=r"caption short.txt: is not UTF-8 text .*--skip-bad"):
        prepare(checkpoint, videos, output)
    assert not (output / "dataset.json").exists()
    write_video(videos / "red.avi", [0] * 9)
    prepared = prepare(checkpoint, videos, output, skip_bad=True)
    assert prepared.samples == ("blue", "red")
    assert set(prepared.skipped) == {"short.mp4", "red.mp4"}  # red.avi comes first
    assert "2 videos skipped" in prepared.summary()


def test_files_that_vanish_or_are_damaged(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    def remove(what: str, done: int, total: int) -> None:
        if what == "encoding videos":
            (videos / "red.mp4").unlink(missing_ok=True)

    with pytest.raises(DataError, match=r"video red.mp4: cannot be read any more \(No such file.*--skip-bad"):
        prepare(checkpoint, videos, tmp_path / "data", progress=remove)
    write_video(videos / "red.mp4", [60] * SIZE[0])
    prepared = prepare(checkpoint, videos, tmp_path / "data", progress=remove, skip_bad=True)
    assert (prepared.samples, set(prepared.skipped)) == (("blue",), {"red.mp4"})
    file = tmp_path / "data/latents/blue.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert prepare(checkpoint, videos, tmp_path / "data").samples == ("blue",)
    assert file.read_bytes() == whole


def test_numbers_that_are_not_finite(
    checkpoint: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_video", lambda *arguments: torch.full((3, *SIZE), torch.nan))
    with pytest.raises(DataError, match=r"blue.mp4: latents has \d+ values that are NaN or infinite"):
        prepare(checkpoint, videos, tmp_path / "data")
    assert not list((tmp_path / "data/latents").iterdir())


def test_what_cannot_be_prepared(
    checkpoint: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="videos .*absent: is no folder"):
        prepare(checkpoint, tmp_path / "absent", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no video file"):
        prepare(checkpoint, tmp_path / "empty", tmp_path / "data")
    with pytest.raises(FileNotFoundError, match=r"has no model_index.json"):
        prepare(checkpoint / "transformer", videos, tmp_path / "data")
    bare = make_wan_checkpoint(tmp_path / "bare", layers=1, heads=1, head_dim=24)
    with pytest.raises(CheckpointError, match="has no text_encoder, tokenizer, vae"):
        prepare(bare, videos, tmp_path / "data")
    with pytest.raises(ValueError, match="frames_per_second -1: must be positive and finite.*16"):
        prepare(checkpoint, videos, tmp_path / "data", frames_per_second=-1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/dataset.json").write_text('{"name": "mine"}')
    with pytest.raises(WriteError, match="dataset.json: exists and is no data of `vorta-trt train-router prepare`"):
        prepare(checkpoint, videos, tmp_path / "foreign")
    assert (tmp_path / "foreign/dataset.json").read_text() == '{"name": "mine"}'
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(VortaError, match=r"package av is not installed .*pip install '\.\[video\]'"):
        prepare(checkpoint, videos, tmp_path / "other data")


def test_captions_of_other_editors(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    """Windows' Notepad writes a byte order mark and CRLF."""
    (videos / "red.txt").write_bytes(b"\xef\xbb\xbfa red wall\r\n")
    (tmp_path / "captions.json").write_bytes(
        b'\xef\xbb\xbf{"red.mp4": "a red wall\\r\\n", "blue.mp4": "a blue wall"}\r\n'
    )
    for number, captions in enumerate((None, tmp_path / "captions.json")):
        prepare(checkpoint, videos, tmp_path / f"data{number}", captions=captions)
        samples = json.loads((tmp_path / f"data{number}/dataset.json").read_text())["samples"]
        assert [sample["caption"] for sample in samples] == ["a blue wall", "a red wall"]


# -- frames ------------------------------------------------------------------------------------------------------------


def greys_of(video: Tensor) -> list[float]:
    return ((video[:, :, 8:-8, 8:-8].mean(dim=(0, 2, 3)) + 1) * 127.5 / 10).round().tolist()


@pytest.mark.parametrize(
    ("rate", "wanted", "expected"),
    [
        (16, 16.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (24, 16.0, [0, 1, 3, 4, 6, 7, 9, 10]),
        (32, 16.0, [0, 2, 4, 6, 8, 10, 12, 14]),
        (8, 16.0, [0, 0, 1, 1, 2, 2, 3, 3]),
        (16, 8.0, [0, 2, 4, 6, 8, 10, 12, 14]),
    ],
)
def test_the_frame_on_screen_at_each_time(tmp_path: Path, rate: int, wanted: float, expected: list[int]) -> None:
    file = write_video(tmp_path / "steps.mp4", [10 * grey for grey in range(16)], rate=rate)
    assert greys_of(read_video(file, (8, 64, 96), wanted)) == expected


def test_the_last_frame_counts_as_long_as_it_is_shown(tmp_path: Path) -> None:
    file = write_video(tmp_path / "steps.mp4", [0, 100], rate=8)
    assert greys_of(read_video(file, (4, 64, 96), 16.0)) == [0, 0, 10, 10]
    with pytest.raises(DataError, match="has 4 frames at 16 per second, 5 are needed"):
        read_video(file, (5, 64, 96), 16.0)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (128, 128), (50, 200), (33, 97)])
def test_frames_cover_the_size_around_the_centre(tmp_path: Path, height: int, width: int) -> None:
    file = tmp_path / "bars.avi"
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 3 : -(height // 3), width // 3 : -(width // 3)] = 255  # a box in the middle
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")), *stream.encode()]:
            container.mux(packet)
    video = read_video(file, (1, 64, 96), 16.0)
    assert video.shape == (3, 1, 64, 96)
    assert video.min() >= -1
    assert video.max() <= 1
    assert bool((video[:, 0, 30:34, 46:50] > 0.9).all())
    torch.testing.assert_close(video, video.flip(2), atol=0.2, rtol=0)
    torch.testing.assert_close(video, video.flip(3), atol=0.2, rtol=0)
