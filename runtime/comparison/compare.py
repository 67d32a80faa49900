# SPDX-License-Identifier: Apache-2.0
"""Compare two sets of samples, e.g. of two checkpoints, or of two settings (tau, overrides, dense) of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

from vorta_trt.model.files import absence, make_folder
from vorta_trt.runtime.comparison.image_quality import LpipsUnavailableError, load_lpips, mean_squared_error, ssim
from vorta_trt.runtime.comparison.report import CompareReport, PairReport
from vorta_trt.runtime.comparison.side_by_side import beside
from vorta_trt.runtime.frames import SUFFIXES, Frame, SampleError, frame_rate, read_frames
from vorta_trt.runtime.video_file import FrameWriter, video_writer

Report = Callable[[str, int, int], None]  # (what, done, total); total 0 is unknown
Distance = Callable[[Frame, Frame], float]
DEFAULT_RATE = 16.0  # frames per second for samples that are arrays, which store no rate


def compare_samples(
    first: Path,
    second: Path,
    report: Report,
    *,
    floor: Path | None = None,
    video: Path | None = None,
    fps: float | None = None,
    lpips: bool | None = None,
) -> CompareReport:
    """Computes PSNR, SSIM and, where it is available, LPIPS of two samples, or of two folders of samples.

    Args:
        first: A file (see `read_frames`), or a folder.
        second: A file if `first` is one, or a folder; files of two folders are paired by name without suffix.
        report: Progress callback. It gets what is done, how much of it is done, and how much there is in total.
        floor: The samples of `first` computed in another way, e.g. with other kernels. Their distance from `first` is
            the noise floor.
        video: Path of videos that show first | second | difference: a file for two files, a folder for two folders.
        fps: Frames per second of these videos; None takes the samples' own rate, or 16.
        lpips: Whether to compute LPIPS. None computes it if its package and weights are there, and otherwise the report
            says why it is missing; True raises an error then.

    Raises:
        FileNotFoundError: A sample, or its counterpart in the other folder, is missing.
        SampleError: Samples cannot be read or do not fit together; the message names the files.
        LpipsUnavailableError: `lpips` is True, and LPIPS is not available.
        ValueError: A file is given with a folder, or the video path is a sample or has an unknown suffix.
    """
    pairs = _pairs(first, second)
    floors = [] if floor is None else _floor_pairs(first, floor, pairs)
    videos = _video_paths(video, pairs, first.is_dir())
    distance, note = _distance(lpips)
    if video is not None and first.is_dir():
        make_folder(video)

    def compared(what: str, todo: list[tuple[str, Path, Path]], shown: dict[str, Path]) -> list[PairReport]:
        reports = []
        for number, (name, one, other) in enumerate(todo):

            def progress(frames: int, name: str = name, number: int = number) -> None:
                report(f"{what} {name}: frame {frames}", number, len(todo))

            reports.append(_compare_pair(name, one, other, shown.get(name), fps, distance, progress))
        return reports

    result = CompareReport(
        first=str(first), second=str(second), pairs=compared("comparing", pairs, videos), lpips_note=note
    )
    if floor is None:
        return result
    measured = compared("noise floor of", floors, {})
    least = CompareReport(first=str(first), second=str(floor), pairs=measured, lpips_note=note)
    return result.model_copy(update={"floor": least})


def _distance(lpips: bool | None) -> tuple[Distance | None, str | None]:
    """The LPIPS function and None; or None and the reason why there is no LPIPS."""
    if lpips is False:
        return None, "not asked for"
    try:
        return load_lpips(), None
    except LpipsUnavailableError as error:
        if lpips:
            raise
        return None, str(error)


def _pairs(first: Path, second: Path) -> list[tuple[str, Path, Path]]:
    for path in (first, second):
        if not path.exists():
            found = absence(path, "no such file or folder")
            raise FileNotFoundError(f"sample {path}: {found}; give what was generated")
    if first.is_dir() != second.is_dir():
        folder, file = (first, second) if first.is_dir() else (second, first)
        raise ValueError(f"{folder} is a folder and {file} a file; must be two folders or two files")
    if not first.is_dir():
        return [(first.stem if first.stem == second.stem else f"{first.stem} | {second.stem}", first, second)]
    ones, others = _samples(first), _samples(second)
    for here, there, folder in ((ones, others, second), (others, ones, first)):
        if missing := sorted(set(here) - set(there)):
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise FileNotFoundError(
                f"{folder} lacks {listed}; samples are paired by name without suffix, and every one needs its pair: "
                f"generate the missing ones, or move {here[missing[0]]} away"
            )
    return [(name, ones[name], others[name]) for name in sorted(ones)]


def _floor_pairs(first: Path, floor: Path, pairs: list[tuple[str, Path, Path]]) -> list[tuple[str, Path, Path]]:
    """The pairs of `first` and `floor`, under the same names as `pairs`."""
    if not first.is_dir() and floor.is_file():
        return [(pairs[0][0], first, floor)]
    return _pairs(first, floor)


def _samples(folder: Path) -> dict[str, Path]:
    samples: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in samples:
            raise SampleError(
                f"samples {samples[path.stem]} and {path}: have the same name without suffix, by which samples are "
                f"paired; move one of them away"
            )
        samples[path.stem] = path
    if not samples:
        raise SampleError(f"folder {folder}: has no samples; files must be {', '.join(SUFFIXES)}")
    return samples


def _video_paths(video: Path | None, pairs: list[tuple[str, Path, Path]], folders: bool) -> dict[str, Path]:
    if video is None:
        return {}
    if folders and video.resolve() in {path.resolve().parent for _, *both in pairs for path in both}:
        raise ValueError(f"video {video}: is a folder of samples, among which the videos would count; use another one")
    videos = {name: video / f"{name}.mp4" if folders else video for name, _, _ in pairs}
    samples = {path.resolve() for _, *both in pairs for path in both}
    for path in videos.values():
        if path.resolve() in samples:
            raise ValueError(f"video {path}: is one of the samples and would be replaced; use another path")
    return videos


def _compare_pair(
    name: str,
    one: Path,
    other: Path,
    video: Path | None,
    fps: float | None,
    distance: Distance | None,
    progress: Callable[[int], None],
) -> PairReport:
    errors: list[float] = []
    similarities: list[float] = []
    distances: list[float] = []
    shape: tuple[int, ...] = ()
    with ExitStack() as stack:
        write: FrameWriter | None = None
        if video is not None:
            rate = fps if fps is not None else frame_rate(one) or frame_rate(other) or DEFAULT_RATE
            write = stack.enter_context(video_writer(video, rate))
        for left, right in _frame_pairs(one, other):
            progress(len(errors) + 1)
            shape = left.shape
            errors.append(mean_squared_error(left, right))
            similarities.append(ssim(left, right))
            if distance is not None:
                distances.append(distance(left, right))
            if write is not None:
                write(beside(left, right))
    return PairReport(
        name=name,
        first=str(one),
        second=str(other),
        frames=len(errors),
        height=shape[0],
        width=shape[1],
        mean_squared_error=sum(errors) / len(errors),
        worst_frame_mean_squared_error=max(errors),
        ssim=sum(similarities) / len(similarities),
        worst_frame_ssim=min(similarities),
        lpips=sum(distances) / len(distances) if distances else None,
        video=None if video is None else str(video),
    )


def _frame_pairs(one: Path, other: Path) -> Iterator[tuple[Frame, Frame]]:
    """The frames of both files, pair by pair; raises SampleError unless both have as many frames of the same size."""
    streams = read_frames(one), read_frames(other)
    count = 0
    while True:
        heads = [list(islice(stream, 1)) for stream in streams]
        if all(heads):
            (left,), (right,) = heads
            if left.shape != right.shape:
                sizes = [f"{shape[0]} x {shape[1]}" for shape in (left.shape, right.shape)]
                raise SampleError(
                    f"samples {one} and {other}: frame {count} is {sizes[0]} in one and {sizes[1]} in the other "
                    f"(height x width); must be the same; generate both with one --size"
                )
            yield left, right
            count += 1
            continue
        counts = [count + sum(1 for _ in chain(head, stream)) for head, stream in zip(heads, streams, strict=True)]
        if counts[0] != counts[1]:
            raise SampleError(
                f"samples {one} and {other}: have {counts[0]} and {counts[1]} frames; must be equally many; generate "
                f"both with one --size"
            )
        if not count:
            raise SampleError(f"samples {one} and {other}: have no frames; generate them again")
        return
