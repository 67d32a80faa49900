# SPDX-License-Identifier: Apache-2.0
"""README and guides are followed, in their order: every command and every Python example runs on a CPU.

The names that they use lead to small models: `demo/` is what `make demo` makes, a checkpoint is the tiny Wan. Real
sizes become the small model's, long runs short ones, and what needs a GPU runs in ONNX Runtime; see `on_a_cpu`.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.runtime import demo

from .kept import Kept
from .test_documentation import ROOT, blocks, commands
from .tiny import FRAMES, HEIGHT, WIDTH, Tiny

pytest.importorskip("av")
pytest.importorskip("matplotlib")

SIZE = f"{FRAMES}x{HEIGHT}x{WIDTH}"
CHECKPOINTS = ("Wan2.1-T2V-14B-Diffusers", "Wan2.1-T2V-1.3B-Diffusers", "CHECKPOINT", "checkpoint")
QUICK = {
    "generate": "--steps 2",
    "compare": "--steps 2 --no-lpips",
    "verify": "--case 'all sliding'",
    "calibrate": "--dtype fp32 --device cpu --samples 2 --buckets 2 --steps 4 --run-steps 2",
    "train-router": "--precision fp32 --device cpu --batch-size 1 --steps 1",
    "prepare": "--precision fp32 --device cpu",
}
NEEDS_A_GPU = ("bench",)
DOCUMENTS = ("README.md", "docs/generate.md", "docs/calibration.md", "docs/training.md")


@pytest.fixture
def workspace(tiny_wan: Tiny, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with everything that the documents name."""
    rooms = kept.folder("plugins", "model", "export", "engines", "runtime")
    made = kept.make(rooms / "demo", lambda path: demo.run_demo(path, lambda *what: None, "wan"))
    monkeypatch.chdir(tmp_path)
    links = {"demo": made, "ROUTER": tiny_wan.router, "wan.onnx": tiny_wan.onnx, "wan.bundle": tiny_wan.bundle}
    for name, target in {**links, **dict.fromkeys(CHECKPOINTS, tiny_wan.checkpoint)}.items():
        Path(name).symlink_to(target)
    Path("prompts.txt").write_text("a red wall\na blue wall\n", encoding="utf-8")
    Path("VIDEOS").mkdir()
    for name in ("dense.mp4", "routed.mp4", "VIDEOS/cat.mp4", "VIDEOS/dog.mp4"):
        shutil.copy(made / "video.mp4", name)
    for name in ("cat", "dog"):
        Path(f"VIDEOS/{name}.txt").write_text(f"a {name}\n", encoding="utf-8")
    return tmp_path


def on_a_cpu(arguments: list[str]) -> list[str]:
    """The same command for small models and without a GPU."""
    name = arguments[1] if arguments[:2] == ["train-router", "prepare"] else arguments[0]
    changed = [SIZE if before == "--size" else text for before, text in zip(["", *arguments], arguments, strict=False)]
    extra = shlex.split(QUICK.get(name, ""))
    if {"--steps", "--timesteps", "--sigmas"} & {*arguments} and "--steps" in extra[:1]:
        extra = extra[2:]
    if name == "train-router" and "--resume" in arguments:
        extra[-1] = "2"
    if name == "compare" and "--of" not in arguments:
        extra = ["--no-lpips"]
    if "tea" in arguments:  # no coefficients are published for a tiny model
        extra += ["--cache-coefficients", "none", "--cache-threshold", "5"]
    if name in ("generate", "compare") and "--dry-run" not in arguments:
        changed = ["wan.onnx" if text == "wan.bundle" else text for text in changed]
    return changed + extra


def test_quick_options() -> None:
    assert on_a_cpu(["build", "C", "--size", "77x720x1280", "-o", "b"]) == ["build", "C", "--size", SIZE, "-o", "b"]
    assert on_a_cpu(["generate", "wan.bundle", "--steps", "6"]) == ["generate", "wan.onnx", "--steps", "6"]
    assert on_a_cpu(["generate", "wan.bundle", "--dry-run"])[1] == "wan.bundle"
    assert on_a_cpu(["train-router", "C", "--resume"])[-2:] == ["--steps", "2"]


def run(arguments: list[str]) -> None:
    """Runs a command; what it writes may be there from the command before it, as in the alternatives of a guide."""
    for option, name in zip(arguments, arguments[1:], strict=False):
        path = Path(name)
        if option in ("-o", "--plot") and arguments[0] != "train-router":
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        elif option == "-o" and path.is_symlink():
            path.unlink()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{shlex.join(arguments)}\n{result.output}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_following(document: str, workspace: Path) -> None:
    written = commands("\n".join(blocks(ROOT / document, "bash")))
    assert written or blocks(ROOT / document, "python")
    if document == "docs/calibration.md":
        run(on_a_cpu(["train-router", "prepare", "CHECKPOINT", "--videos", "VIDEOS", "--size", SIZE, "-o", "DATA"]))
    for arguments in written:
        if arguments[0] not in NEEDS_A_GPU and "--fsdp" not in arguments:
            run(on_a_cpu(arguments))
    for number, script in enumerate(blocks(ROOT / document, "python")):
        exec(compile(script, f"{document}, example {number}", "exec"), {"__name__": "example"})
