# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt generate`: real videos of tiny pipelines, plans without sampling, and bad usage."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from vorta_trt.cli import app
from vorta_trt.runtime import VortaTransformer, video_file
from vorta_trt.runtime.frames import frame_rate, read_frames

from ..tiny import FRAMES, HEIGHT, WIDTH, Tiny

av = pytest.importorskip("av")


def generate(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def one_error(result: Result, message: str) -> None:
    assert result.stdout == ""
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def bundle_without_onnx(tiny_wan: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vorta_trt.runtime.from_checkpoint import Source, build_checkpoint

    source = Source(tiny_wan.checkpoint, tiny_wan.router, precision="bf16")
    return build_checkpoint(source, tmp_path_factory.mktemp("bundle") / "wan.bundle", lambda *what: None).path


def test_a_video(tiny_wan: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "wall.mp4"
    result = generate(tiny_wan.onnx, "--prompt", "a red wall", "--steps", 3, "--seed", 5, "-o", file)
    assert re.fullmatch(rf"wrote {file}: seed 5, 3 steps, 6 launches, [\d.]+ s\n", result.stdout)
    assert np.stack(list(read_frames(file))).shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert frame_rate(file) == 16
    assert [entry.name for entry in tmp_path.iterdir()] == ["wall.mp4"]


def test_everything_together(tiny_hunyuan_video: Tiny, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red wall\n\n  a blue wall  \n", encoding="utf-8-sig")
    options = [
        *("--negative-prompt", "red", "--true-cfg-scale", 3, "--guidance-scale", 4, "--steps", 5, "--seed", 2),
        *("--guidance-batching", "batched", "--cache", "broadcast", "--cache-range", "100:999", "--dense-last", 1),
        *("--dense-layers", "0", "--tau", 0.4, "--format", "npy", "--strict", "--checkpoint"),
        tiny_hunyuan_video.checkpoint,
    ]
    result = generate(tiny_hunyuan_video.onnx, "--prompts", prompts, *options, "-o", tmp_path / "videos", "--json")
    content = json.loads(result.stdout)
    assert [(video["prompt"], video["seed"]) for video in content["videos"]] == [("a red wall", 2), ("a blue wall", 2)]
    assert [video["launches"] for video in content["videos"]] == [4, 4]  # 3 computed steps, the first in two launches
    assert [video["reused_steps"] for video in content["videos"]] == [2, 2]
    frames = [np.load(tmp_path / "videos" / f"00{number}.npy") for number in (0, 1)]
    assert not np.array_equal(*frames)
    alone = generate(
        tiny_hunyuan_video.onnx, "--prompt", "a blue wall", *options, "-o", tmp_path / "alone.npy", "--json"
    )
    assert json.loads(alone.stdout)["videos"][0]["output"] == str(tmp_path / "alone.npy")
    assert np.array_equal(np.load(tmp_path / "alone.npy"), frames[1])


def test_a_prompt_that_is_too_long(tiny_wan: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "wall.npy"
    options = ["--prompt", "red " * 30_000, "--steps", 1, "-o", file]
    cut = "prompt length: the prompt has 30001 tokens, and the model takes 512"
    one_error(generate(tiny_wan.onnx, *options, "--strict", "--json", code=1), rf"{cut}; strict mode refuses")
    assert not file.exists()
    assert json.loads(generate(tiny_wan.onnx, *options, "--json").stdout)["videos"][0]["fallbacks"] == [cut]
    assert f" s; {cut}\n" in generate(tiny_wan.onnx, *options).stdout


@pytest.mark.parametrize("prompt", ["", " \t"])
def test_an_empty_prompt_goes_on_with_a_warning(
    tiny_wan: Tiny, tmp_path: Path, prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "wall.npy"
    generate(tiny_wan.onnx, f"--prompt={prompt}", "--steps", 1, "--strict", "-o", file)
    assert file.exists()
    assert [record.getMessage() for record in caplog.records if "is empty" in record.getMessage()] == [
        f"prompt {prompt!r} is empty: the video follows no text, but for a negative prompt; give one with --prompt"
    ]


def test_a_fresh_seed_is_told(tiny_wan: Tiny, tmp_path: Path) -> None:
    arguments = [tiny_wan.onnx, "--prompt", "a red wall", "--timesteps", "1000,757,522", "--renoise"]
    said = generate(*arguments, "-o", tmp_path / "one.npy").stdout
    match = re.search(r"seed (\d+), 3 steps, 3 launches", said)
    assert match is not None
    prompts, videos = tmp_path / "prompts.txt", tmp_path / "videos"
    prompts.write_text("a red wall\n")
    arguments[1:3] = ["--prompts", prompts, "--samples", 2, "--naming", "vbench", "--format", "npy", "-o", videos]
    generate(*arguments, "--seed", match[1])
    again = [np.load(videos / f"a red wall-{index}.npy") for index in range(2)]
    assert np.array_equal(np.load(tmp_path / "one.npy"), again[0]) and not np.array_equal(*again)
    assert generate(*arguments, "--skip-existing").stdout == f"every video is in {videos} already\n"


def test_a_plan_without_sampling(tiny_wan: Tiny, tmp_path: Path) -> None:
    options = ["--steps", 10, "--cache", "broadcast", "--dense-first", 2, "--dry-run"]
    shown = generate(tiny_wan.onnx, *options).stdout
    assert shown.startswith("UniPCMultistepScheduler, shift 5\nstep  timestep")
    assert re.search(r"\n +0 +999.0 +compute +100.0% +0.0% +0.0% +100.0%\n", shown)
    assert "9 of 10 steps computed, 1 reused" in shown
    assert "TFLOP" in shown
    content = json.loads(generate(tiny_wan.onnx, *options, "--json").stdout)
    assert content["passes"] == 2
    assert content["plan"]["computed_steps"] == 9
    assert np.array(content["plan"]["routes"]).shape == (10, 2, 3)
    profile = tmp_path / "profile.json"
    profile.write_text('{"other": 1.0, "full": 0.1, "coreset": 0.05, "sliding": 0.01}')
    assert "from measured parts: " in generate(tiny_wan.onnx, *options, "--step-profile", profile).stdout


def test_a_checkpoint_runs_in_torch(tiny_wan: Tiny, tmp_path: Path) -> None:
    options = ["--router", tiny_wan.router, "--prompt", "a red wall", "--steps", 2, "--seed", 5]
    files = [tmp_path / "checkpoint.npy", tmp_path / "exported.npy"]
    generate(tiny_wan.checkpoint, *options, "-o", files[0])
    generate(tiny_wan.onnx, *options[2:], "-o", files[1])
    of_torch, exported = (np.load(file).astype(int) for file in files)
    assert of_torch.shape == (FRAMES, HEIGHT, WIDTH, 3) and abs(of_torch - exported).max() <= 1
    shown = generate(tiny_wan.checkpoint, *options[:2], "--dry-run", "--gpus", 6).stdout
    assert "predicted seconds of the transformer on 2 x 3 GPUs (guidance x heads)" in shown
    refused = generate(tiny_wan.checkpoint, *options, "--gpus", 4, "-o", tmp_path / "x.npy", code=1)
    one_error(refused, "gpus 4: 2 of them would share a pass, and the model's 3 heads .* use one of 1, 2, 3, 6")
    refused = generate(tiny_wan.checkpoint, "--executor", "reference", "--dry-run", code=2)
    one_error(refused, "--executor")


def test_a_bundles_plan_needs_no_gpu(bundle_without_onnx: Path, tiny_wan: Tiny) -> None:
    shown = generate(
        bundle_without_onnx, "--checkpoint", tiny_wan.checkpoint, "--cache", "tea", "--cache-coefficients", "none",
        "--cache-threshold", 5, "--steps", 20, "--dry-run",
    ).stdout  # fmt: skip
    assert re.search(r"\d+ of 20 steps computed, [1-9]\d* reused", shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.mp4"], "--prompt / --prompts.*give one of them"),
        (["--prompt", "a", "--prompts", "b", "-o", "x.mp4"], "--prompt / --prompts.*give one of them"),
        (["--prompt", "a"], "--output.*is missing; give e.g. -o video.mp4"),
        (["--dry-run", "--timesteps", "9,1", "--sigmas", "1"], "--sigmas.*give one of them"),
        (["--dry-run", "--timesteps", "999,1", "--steps", "3"], "--steps.*3.*leave it out"),
        (["--dry-run", "--timesteps", "many"], "--timesteps.*'many': must be numbers"),
        (["--dry-run", "--cache-interval", "2"], "--cache-interval.*belongs to --cache broadcast"),
        (["--dry-run", "--scheduler", "ddim"], "--scheduler.*'ddim': must be one of"),
        (["--dry-run", "--seed", "18446744073709551616"], "--seed.*18446744073709551616"),
        (["--dry-run", "--sigmas", "0.2,0.5"], "--sigmas.*0.2, 0.5: must fall"),
        (["--dry-run", "--renoise"], "--renoise.*needs given steps"),
        (["--prompt", "a", "-o", "x.mp4", "--fps", "0"], "--fps.*greater than or equal to 0.1"),
        (["--prompt", "a", "-o", "x.mp4", "--gpu-port", "29500"], "--gpu-port.*is for several GPUs; give --gpus"),
        (["--prompt", "a", "-o", "x.mp4", "--gpus", "2", "--device", "cuda:1"], "--device.*CUDA_VISIBLE_DEVICES"),
        (["--prompt", "a", "-o", "x.mp4", "--gpus", "2", "--compare-every", "2"], "--compare-every.*is for --strict"),
        (["--dry-run", "--router", "r"], "--router.*belongs to checkpoints, and"),
        *(
            (
                ["--prompt", "a", "-o", "x.mp4", "--weight-streaming", amount],
                f"--weight-streaming.*{amount}.*GiB from 0",
            )
            for amount in ("nan", "inf", "1e300", "-1", "1,2")
        ),
    ],
)
def test_bad_usage(tiny_wan: Tiny, arguments: list[str], message: str) -> None:
    result = generate(tiny_wan.onnx, *arguments, code=2)
    one_error(result, message.replace(".*", r"(.|\n)*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "-o", "x.gif"], "error: video x.gif: its suffix must be one of"),
        (["--prompt", "a", "-o", "absent/x.mp4"], "error: output absent/x.mp4: its folder does not exist"),
        (["--prompt", "a", "-o", "/proc/x.mp4"], "error: output /proc/x.mp4: .*/proc takes no new files or folders"),
        (["--prompts", "absent.txt", "-o", "x"], "error: prompts absent.txt: no such file"),
        (["--prompt", "a", "-o", "x.mp4", "--cpu-offload"], "error: cpu_offload: there is no GPU to keep free"),
        (
            ["--prompt", "a", "-o", "x.mp4", "--cpu-offload", "--residency", "sequential"],
            "error: cpu_offload: has no effect",
        ),
        (["--prompt", "a", "-o", "x.mp4", "--checkpoint", "absent"], "error: checkpoint absent: is no folder"),
        (["--prompt", "a", "-o", "x.mp4", "--device", "cuda"], "error: device 'cuda': executor 'onnxruntime' runs on"),
        (["--prompt", "a", "-o", "x.mp4", "--weight-streaming", "1.5"], "error: .*weight_streaming_budget"),
        (
            ["--prompt", "a", "-o", "x.mp4", "--gpus", "3"],
            "error: gpus 3: the engine is built for one GPU; give 2",
        ),
        (["--dry-run", "--dense-layers", "7"], "error: dense_layers 7: must be one of the model's, 0 to 1"),
    ],
)
def test_what_fails(
    tiny_wan: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    one_error(generate(tiny_wan.onnx, *arguments, code=1), message)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    one_error(generate(tmp_path, "--dry-run", code=1), "is neither a bundle, it has no manifest.json, nor a checkpoint")
    one_error(generate(tmp_path / "link", "--dry-run", code=1), f"is a link to {tmp_path / 'gone'}, which does not")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe wall", "is not UTF-8 text .*save it as UTF-8"), (b"\n \n", "holds no prompt; write one per line")],
)
def test_bad_prompt_files(tiny_wan: Tiny, tmp_path: Path, content: bytes, message: str) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(content)
    one_error(generate(tiny_wan.onnx, "--prompts", prompts, "-o", tmp_path / "videos", code=1), message)
    assert not (tmp_path / "videos").exists()
    prompts.write_text("a wall")
    one_error(generate(tiny_wan.onnx, "--prompts", prompts, "-o", prompts, code=1), "is a file, and several videos go")


def test_an_engine_that_cannot_run_here_says_what_can(
    tiny_wan: Tiny, bundle_without_onnx: Path, tmp_path: Path
) -> None:
    arguments: list[Any] = ["--checkpoint", tiny_wan.checkpoint, "--prompt", "a", "-o", tmp_path / "x.mp4"]
    one_error(
        generate(bundle_without_onnx, *arguments, "--executor", "onnxruntime", code=1), "build it with --keep-onnx"
    )
    for mode in ("auto", "resident", "sequential"):  # before anything is encoded
        result = generate(bundle_without_onnx, *arguments, "--residency", mode, code=1)
        one_error(result, "error: .*wan.bundle: TensorRT-RTX cannot run here: no NVIDIA driver")


def test_residencies(tiny_wan: Tiny, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red wall\na blue wall\n", encoding="utf-8")
    arguments = [tiny_wan.onnx, "--prompts", prompts, "--steps", 2, "--seed", 5, "--format", "npy"]
    told = {}
    for mode in ("auto", "sequential"):
        result = generate(*arguments, "--residency", mode, "-o", tmp_path / mode, "--json")
        told[mode] = json.loads(result.stdout)["residency"]
    common = {"cpu_offload": False, "weight_streaming": False, "experts_in_turn": False}
    assert told["auto"] == {"residency": "resident", "reason": "the model runs on the CPU", **common}
    assert told["sequential"] == {"residency": "sequential", "reason": "asked for", **common}
    for name in ("000.npy", "001.npy"):
        assert np.array_equal(np.load(tmp_path / "auto" / name), np.load(tmp_path / "sequential" / name))
    one = [tiny_wan.onnx, "--prompt", "a red wall", "--sigmas", "1", "--residency", "sequential"]
    said = generate(*one, "-o", tmp_path / "one.npy").stdout
    assert said.startswith(f"residency sequential: asked for\nwrote {tmp_path / 'one.npy'}: seed ")


def test_options_of_the_engine_reach_it(tiny_wan: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def opened(source: object, **options: Any) -> None:
        given.append(options)
        raise ValueError("opened")

    monkeypatch.setattr(VortaTransformer, "from_pretrained", opened)
    arguments = [tiny_wan.onnx, "--prompt", "a red wall", "-o", tmp_path / "wall.mp4"]
    streamed = ["--weight-streaming", 1.5, "--no-cuda-graph", "--device", "cuda:1"]
    for options in ([], streamed):
        one_error(generate(*arguments, *options, code=1), "error: opened")
    names = ("cuda_graph", "weight_streaming_budget", "device")
    assert [[options.get(name) for name in names] for options in given] == [[None] * 3, [False, 3 << 29, "cuda:1"]]


def interrupt_writing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Has Ctrl-C pressed while the video `name` is written."""
    writer = video_file.video_writer

    @contextlib.contextmanager
    def interrupted(path: Path, rate: float) -> Iterator[video_file.FrameWriter]:
        with writer(path, rate) as write:
            yield lambda frame: signal.raise_signal(signal.SIGINT) if path.name == name else write(frame)

    monkeypatch.setattr(video_file, "video_writer", interrupted)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_between_two_sequential_videos(tiny_wan: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red wall\na blue wall\n", encoding="utf-8")
    interrupt_writing(monkeypatch, "001.mp4")
    arguments = ["--prompts", prompts, "--sigmas", "1", "--residency", "sequential", "-o", tmp_path / "videos"]
    one_error(generate(tiny_wan.onnx, *arguments, code=130), "error: interrupted; nothing half-made is left")
    assert [entry.name for entry in (tmp_path / "videos").iterdir()] == ["000.mp4"]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_sampling(tiny_wan: Tiny, tmp_path: Path) -> None:
    """In a process of its own, on a terminal, whose bar tells the step."""
    command = [sys.executable, "-m", "vorta_trt.cli", "generate", tiny_wan.onnx, "--prompt", "a red wall"]
    command += ["--steps", 1000, "--scheduler", "flow-euler", "--guidance-scale", 1, "-o", tmp_path / "wall.mp4"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen([str(part) for part in command], stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    said = b""
    while not re.search(rb"step [1-9]\d+: \d+ % full, \d+ % coreset, \d+ % sliding", said):
        said += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 4096):
            said += part
    assert process.communicate(timeout=60)[0] == b""
    assert process.returncode == 130
    assert b"error: interrupted; nothing half-made is left" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("suffix", ["mp4", "npy"])
def test_ctrl_c_while_writing(tiny_wan: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    interrupt_writing(monkeypatch, "wall.mp4")
    monkeypatch.setattr(np, "save", lambda *arguments: signal.raise_signal(signal.SIGINT))
    arguments = ["--prompt", "a", "--sigmas", "1", "-o", tmp_path / f"wall.{suffix}"]
    one_error(generate(tiny_wan.onnx, *arguments, code=130), "error: interrupted; nothing half-made is left")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_takes_no_video_is_named(tiny_wan: Tiny, tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full")
    for suffix in ("mp4", "npy"):
        link = tmp_path / f"full.{suffix}"
        link.symlink_to("/dev/full")
        result = generate(tiny_wan.onnx, "--prompt", "a red wall", "--steps", 1, "--seed", 5, "-o", link, code=1)
        assert re.search(f"error: output {link}: cannot be written .No space left on device.", result.stderr)
