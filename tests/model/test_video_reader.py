# SPDX-License-Identifier: Apache-2.0
"""Videos are read as a player shows them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vorta_trt.model.video_reader import VideoError, frame_rate, read_pictures
from vorta_trt.plugins.extras import MissingExtraError

av = pytest.importorskip("av")

HEIGHT, WIDTH = 96, 160
RED, GREEN, BLUE, WHITE = (200, 20, 20), (20, 200, 20), (20, 20, 200), (200, 200, 200)
STORED = [[RED, GREEN], [BLUE, WHITE]]  # the quarters of the picture in the file

# A player shows the quarters so; matrices are [a b; c d] of a point (p, q) shown at (a p + c q, b p + d q).
TURNED = {
    (1, 0, 0, 1): [[RED, GREEN], [BLUE, WHITE]],
    (0, 1, -1, 0): [[BLUE, RED], [WHITE, GREEN]],  # a quarter turn clockwise, as of a phone held upright
    (-1, 0, 0, -1): [[WHITE, BLUE], [GREEN, RED]],
    (0, -1, 1, 0): [[GREEN, WHITE], [RED, BLUE]],
    (-1, 0, 0, 1): [[GREEN, RED], [WHITE, BLUE]],  # a mirror, as of a front camera
    (1, 0, 0, -1): [[BLUE, WHITE], [RED, GREEN]],
    (0, 1, 1, 0): [[RED, BLUE], [GREEN, WHITE]],
    (0, -1, -1, 0): [[WHITE, GREEN], [BLUE, RED]],
}


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    pixels = np.zeros((height, width, 3), np.uint8)
    for row, colours in enumerate(STORED):
        for column, colour in enumerate(colours):
            pixels[row * height // 2 :, column * width // 2 :][: height // 2, : width // 2] = colour
    return pixels


def write(
    path: Path, pixels: np.ndarray, *, matrix: Sequence[int] = (), aspect: Fraction | None = None, tag: int = 2
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix:
            a, b, c, d = (65536 * value for value in matrix)
            shift = [65536 * size * (value < 0) for size, value in ((pixels.shape[1], min(a, c)), (0, 0))]
            stream.set_display_matrix([a, b, 0, c, d, 0, *shift, 1 << 30])
        matrix_name = "ITU709" if tag == 1 else "ITU601"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=matrix_name)))
        container.mux(stream.encode())
    return path


def quarters(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return np.array([[pixels[row, column] for column in columns] for row in rows]).astype(int)


@pytest.mark.parametrize("matrix", TURNED)
def test_turned_and_mirrored(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    file = write(tmp_path / "phone.mp4", picture(), matrix=matrix)
    shown = [entry.pixels for entry in read_pictures(file)]
    assert len(shown) == 3
    sides = (WIDTH, HEIGHT) if matrix[0] == 0 else (HEIGHT, WIDTH)
    assert shown[0].shape == (*sides, 3) and shown[0].flags.c_contiguous
    np.testing.assert_allclose(quarters(shown[0]), TURNED[matrix], atol=6)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    file = write(tmp_path / "dv.mp4", picture(96, 120), aspect=Fraction(4, 3))
    (shown, *_) = (entry.pixels for entry in read_pictures(file))
    assert shown.shape == (96, 160, 3)
    np.testing.assert_allclose(quarters(shown), STORED, atol=6)


def test_an_untagged_hd_video_is_bt709(tmp_path: Path) -> None:
    for tag, height in ((1, 720), (6, 480)):  # how the colours were converted, of which the file says nothing
        file = write(tmp_path / "a.mp4", picture(height, 320), tag=tag)
        with av.open(str(file)) as container:
            assert next(container.decode(video=0)).colorspace == 2
        (shown, *_) = (entry.pixels for entry in read_pictures(file))
        np.testing.assert_allclose(quarters(shown), STORED, atol=6)


def test_times_of_a_variable_rate(tmp_path: Path) -> None:
    file = tmp_path / "vfr.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in (500, 600, 900):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), time % 255, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert [round(entry.start, 3) for entry in read_pictures(file)] == [0, 0.1, 0.4]


def test_what_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "whole.mp4", picture()).read_bytes()
    contents: dict[str, Any] = {
        "empty.mp4": b"",
        "text.mp4": b"a red wall",
        "half.mp4": whole[: len(whole) // 2],
        "pointer.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=f"{name}: cannot be decoded .*it is damaged or not a .mp4 file"):
            list(read_pictures(tmp_path / name))
        with pytest.raises(VideoError, match=name):
            frame_rate(tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"av .*pip install '\.\[video\]'"):
        frame_rate(tmp_path / "whole.mp4")
