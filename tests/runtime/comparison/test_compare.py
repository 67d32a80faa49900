# SPDX-License-Identifier: Apache-2.0
"""Comparison of sample sets: pairing, figures, errors, and the video."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vorta_trt.model.write_errors import WriteError
from vorta_trt.runtime.comparison.compare import compare_samples
from vorta_trt.runtime.comparison.image_quality import LpipsUnavailableError
from vorta_trt.runtime.comparison.report import CompareReport
from vorta_trt.runtime.frames import SampleError, frame_rate, read_frames


def compare(first: Path, second: Path, **options: Any) -> CompareReport:
    return compare_samples(first, second, lambda what, done, total: None, **{"lpips": False, **options})


def frames(seed: int, count: int = 3, height: int = 20, width: int = 17) -> Any:
    return np.random.default_rng(seed).random((count, height, width, 3))


def save(path: Path, array: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def save_video(path: Path, array: Any, rate: int = 8) -> Path:
    """Lossless: ffv1 in RGB."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = array.shape[1:3]
        stream.pix_fmt = "bgr0"
        for picture in array:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_figures(tmp_path: Path, seed: int) -> None:
    array = 0.25 + 0.5 * frames(seed)
    other = array.copy()
    other[1] += 0.1  # one frame of three
    report = compare(save(tmp_path / "a.npy", array), save(tmp_path / "b.npy", other))
    (pair,) = report.pairs
    assert (pair.name, pair.frames, pair.height, pair.width) == ("a | b", 3, 20, 17)
    assert pair.mean_squared_error == pytest.approx(0.01 / 3)
    assert pair.psnr == report.psnr == pytest.approx(20 + 10 * math.log10(3))
    assert pair.worst_frame_psnr == pytest.approx(20)
    assert pair.ssim == pytest.approx((2 + pair.worst_frame_ssim) / 3) and pair.worst_frame_ssim < 1
    assert report.lpips is None and report.lpips_note == "not asked for"


def test_the_set_has_the_psnr_of_its_mean_error(tmp_path: Path, seed: int) -> None:
    array = 0.5 * frames(seed)
    for name, shift in (("cat", 0.0), ("dog", 0.1)):
        save(tmp_path / "a" / f"{name}.npy", array)
        save(tmp_path / "b" / f"{name}.npy", array + shift)
    (tmp_path / "a" / "notes.txt").write_text("not a sample")
    report = compare(tmp_path / "a", tmp_path / "b")
    assert [pair.name for pair in report.pairs] == ["cat", "dog"]
    assert report.pairs[0].psnr == math.inf and report.pairs[0].ssim == pytest.approx(1)
    assert report.psnr == pytest.approx(20 + 10 * math.log10(2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 1, 2), (0, 3, 1, 2)])
def test_layouts_and_types(tmp_path: Path, seed: int, dtype: torch.dtype, order: tuple[int, ...]) -> None:
    bytes_ = torch.from_numpy(np.rint(255 * frames(seed, count=2)).astype(np.uint8))
    tensor = (bytes_ if dtype == torch.uint8 else (bytes_ / 255.0).to(dtype)).permute(order).contiguous()
    save_file({"video": tensor, "seed": torch.tensor([1])}, tmp_path / "a.safetensors")
    if dtype != torch.bfloat16:
        save(tmp_path / "b.npy", tensor.unsqueeze(0).numpy())
        assert len(list(read_frames(tmp_path / "b.npy"))) == 2
    read = np.stack(list(read_frames(tmp_path / "a.safetensors")))
    np.testing.assert_allclose(read, bytes_ / 255, atol=4e-3 if dtype == torch.bfloat16 else 1e-6)


def test_videos(tmp_path: Path, seed: int) -> None:
    array = np.rint(255 * frames(seed, height=18, width=22)).astype(np.uint8)
    movie = save_video(tmp_path / "a.mkv", array)
    assert frame_rate(movie) == 8
    np.testing.assert_array_equal(np.stack(list(read_frames(movie))), array / 255.0)
    report = compare(movie, save(tmp_path / "a.npy", array))
    assert report.psnr == math.inf and report.pairs[0].name == "a"


@pytest.mark.parametrize("size", [(18, 22), (19, 21)])
def test_side_by_side(tmp_path: Path, size: tuple[int, int]) -> None:
    """Panels of one colour each, to survive the encoder; odd sizes are padded."""
    height, width = size
    one, other = np.full((3, height, width, 3), 0.25), np.full((3, height, width, 3), 0.4)
    path = tmp_path / "beside.mp4"
    save(tmp_path / "a.npy", one), save(tmp_path / "b.npy", other)
    report = compare(tmp_path / "a.npy", tmp_path / "b.npy", video=path, fps=12.5)
    assert report.pairs[0].video == str(path) and frame_rate(path) == 12.5
    pictures = list(read_frames(path))
    assert len(pictures) == 3 and sorted(entry.name for entry in tmp_path.iterdir()) == ["a.npy", "b.npy", "beside.mp4"]
    assert pictures[0].shape == (height + height % 2, 3 * width + 16 + width % 2, 3)
    for start, colour in ((0, 0.25), (width + 8, 0.4), (2 * width + 16, 0.6)):
        inside = pictures[1][4:-4, start + 4 : start + width - 4]
        np.testing.assert_allclose(inside, colour, atol=0.02)


def test_a_failure_leaves_no_video(tmp_path: Path, seed: int) -> None:
    one, other = save(tmp_path / "a.npy", frames(seed)), save(tmp_path / "b.npy", frames(seed, count=4))
    path = tmp_path / "video.mp4"
    with pytest.raises(SampleError, match="have 3 and 4 frames.*--size"):
        compare(one, other, video=path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.npy", "b.npy"]
    with pytest.raises(ValueError, match=r"a.npy: is one of the samples and would be replaced"):
        compare(one, one, video=one)
    with pytest.raises(ValueError, match=r"video .*v.webm: its suffix must be one of .*; use v.mp4"):
        compare(one, one, video=tmp_path / "v.webm")
    with pytest.raises(ValueError, match="fps 0.0: must be positive"):
        compare(one, one, video=path, fps=0.0)
    with pytest.raises(ValueError, match="is a folder of samples, among which the videos would count"):
        compare(tmp_path, tmp_path, video=tmp_path)
    with pytest.raises(WriteError, match="v.mp4: its folder does not exist"):
        compare(one, one, video=tmp_path / "absent" / "v.mp4")
    save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(SampleError, match="is no video"):
        compare(one, tmp_path / "bad.npy", video=path)
    assert not list(tmp_path.glob("*.mp4")) and not list(tmp_path.glob(".*"))


def test_pairing_errors(tmp_path: Path, seed: int) -> None:
    array = frames(seed)
    one = save(tmp_path / "a" / "cat.npy", array)
    for number in range(7):
        save(tmp_path / "b" / f"dog {number}.npy", array)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"b lacks cat; samples are paired .* or move .*cat.npy away"):
        compare(one.parent, tmp_path / "b")
    save(tmp_path / "b" / "cat.npy", array)
    with pytest.raises(FileNotFoundError, match=r"a lacks dog 0, dog 1, dog 2, dog 3, dog 4 and 2 more"):
        compare(one.parent, tmp_path / "b")
    with pytest.raises(ValueError, match=r"is a folder and .* a file"):
        compare(one, tmp_path / "b")
    with pytest.raises(SampleError, match="empty: has no samples.*.npy"):
        compare(one.parent, tmp_path / "empty")
    save_file({"frames": torch.zeros(1, 12, 12, 3)}, one.with_suffix(".safetensors"))
    with pytest.raises(SampleError, match="cat.npy and .*cat.safetensors: have the same name without suffix"):
        compare(one.parent, tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        compare(one, tmp_path / "absent")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 16, 17, 3)), r"frame 0 is 20 x 17 in one and 16 x 17 in the other"),
        (np.full((3, 20, 17, 3), -1.0), r"frame 0 has values from -1 to -1; must be in \[0, 1\]; of frames in "),
        (np.full((3, 20, 17, 3), np.nan), r"frame 0 has values from nan to nan"),
        (np.zeros((3, 20, 17, 3), np.int64), r"type int64; must be uint8 in 0..255 or floating point"),
        (np.zeros((20, 17, 3)), r"shape \(20, 17, 3\) is no video; must be \[F, H, W, 3\]"),
        (np.zeros((3, 10, 17, 3)), r"shape \(3, 10, 17, 3\) is no video; .* at least 11"),
        (np.zeros((3, 3, 20, 17)), r"could be \[3, F, H, W\] or \[F, 3, H, W\]; .* save it as \[F, H, W, 3\]"),
        (np.zeros((0, 20, 17, 3)), r"shape \(0, 20, 17, 3\) is no video"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(tmp_path: Path, seed: int, array: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        compare(save(tmp_path / "a.npy", frames(seed)), save(tmp_path / "b.npy", array))


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "mp4"])
@pytest.mark.parametrize("content", [b"", b"this is not a sample, whatever its name says"])
def test_unreadable_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        SampleError, match=rf"sample .*a.{suffix}: cannot be (read|decoded) .*; it is damaged or not a .{suffix}"
    ):
        compare(path, path)
    with pytest.raises(SampleError, match="suffix '.txt' is not known; must be one of .npy"):
        list(read_frames(save(tmp_path / "b.npy", 0).rename(tmp_path / "b.txt")))
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(SampleError, match=r"must hold one, or name one of them 'frames' or 'video'"):
        list(read_frames(tmp_path / "two.safetensors"))


def test_lpips_where_it_is_not_installed(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    path = save(tmp_path / "a.npy", frames(seed))
    report = compare(path, path, lpips=None)
    assert report.lpips is None and "pip install '.[compare]'" in str(report.lpips_note)
    with pytest.raises(LpipsUnavailableError, match="LPIPS needs the package lpips"):
        compare(path, path, lpips=True)


def test_lpips_gets_pictures_as_its_package_wants_them(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Network:
        """In place of the package: the mean absolute difference."""

        def __init__(self, **options: Any) -> None:
            assert options == {"net": "alex", "version": "0.1", "verbose": False}

        def eval(self) -> Network:
            return self

        def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            assert first.shape == (1, 3, 20, 17) and first.dtype == torch.float32
            assert -1 <= float(first.min()) < -0.5 and 0.5 < float(first.max()) <= 1
            return (first - second).abs().mean()

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Network))
    array = frames(seed)
    report = compare(save(tmp_path / "a.npy", array), save(tmp_path / "b.npy", 1 - array), lpips=None)
    assert report.lpips_note is None
    assert report.lpips == pytest.approx(2 * np.abs(2 * array - 1).mean(), rel=1e-5)
