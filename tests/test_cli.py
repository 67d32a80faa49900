# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, one clean message for every bad input, JSON that parses, and an instant --help."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.families.hunyuan_video.random import make_checkpoint as make_hunyuan_video_checkpoint
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_checkpoint import make_router

from .kept import Kept

MODEL = {"layers": 2, "heads": 2, "head_dim": 32}
COMMANDS = (
    *("doctor", "demo", "export", "build", "refit", "inspect", "verify", "routes", "generate", "compare", "calibrate"),
    *("bench attention", "bench blocks", "bench step", "train-router", "train-router prepare"),
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def vorta(*arguments: object) -> Result:
    """Runs a command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def vorta_process(*arguments: object, **options: Any) -> Result:
    """Runs a command in a process of its own."""
    command = [sys.executable, "-m", "vorta_trt.cli", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    return Result(result.returncode, result.stdout, result.stderr)


def fails(*arguments: object, message: str, code: int = 1) -> None:
    """The command ends with `code`, prints nothing on stdout, and one message without a traceback on stderr."""
    result = vorta(*arguments)
    assert result.code == code, result
    assert result.out == ""
    assert re.search(message, result.err), result.err
    assert "Traceback" not in result.err
    if code != 2:
        assert result.err.count("error: ") == 1


@dataclass(frozen=True)
class Wan:
    """Everything that the commands work on; the folder has a space in its name."""

    folder: Path
    geometry: AttentionGeometry

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def router(self) -> Path:
        return self.folder / "router"

    @property
    def onnx(self) -> Path:
        return self.folder / "wan fp32.onnx"

    @property
    def half(self) -> Path:
        return self.folder / "wan fp16.onnx"

    @property
    def bundle(self) -> Path:
        return self.folder / "wan.bundle"


@pytest.fixture(scope="session")
def wan(kept: Kept) -> Wan:
    """A checkpoint and a router, and the files that `export` and `build` make of them."""
    folder = kept.folder("plugins", "model", "export", "engines", "runtime", "commands") / "a wan of test_cli"
    kept.make(folder, _make_wan)
    return Wan(folder, AttentionGeometry.for_video(29, 96, 128, "wan"))


def _make_wan(folder: Path) -> None:
    made = Wan(folder, AttentionGeometry.for_video(29, 96, 128, "wan"))
    make_wan_checkpoint(made.checkpoint, **MODEL, ffn_dim=96, text_dim=32)
    make_router(made.router, made.geometry, **MODEL)
    made_of = f"'{made.checkpoint}' --router '{made.router}'"
    for precision, path, following in (
        ("fp32", made.onnx, f"next: vorta-trt verify '{made.onnx}' {made_of}"),  # no engine computes in fp32
        ("fp16", made.half, f"next: vorta-trt build '{made.half}'"),
    ):
        exported = vorta("export", made.checkpoint, "--router", made.router, "--precision", precision, "-o", path)
        assert exported.code == 0, exported
        assert following in exported.out
    built = vorta("build", made.half, "-o", made.bundle, "--keep-onnx", "--batch", "1:2:3", "--json")
    assert built.code == 0, built
    content = json.loads(built.out)
    assert content["path"] == str(made.bundle)
    assert content["manifest"]["inputs"][0]["profile"]["max"][0] == 3


# -- help and usage ----------------------------------------------------------------------------------------------------


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    def seconds() -> float:
        """Of this process's children, without what they waited for the machine."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = [seconds()]
    for _ in range(3):
        assert vorta_process("--help").code == 0
        times.append(seconds())
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    python = seconds() - times[-1]
    assert min(after - before for before, after in pairwise(times)) < 0.3 + 2 * python
    heavy_ones = ("torch", "numpy", "onnx", "pydantic", "rich")
    code = f"import sys, vorta_trt.cli; print([name for name in {heavy_ones} if name in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert heavy == "[]"


def test_every_command_has_help_with_an_example() -> None:
    for command in COMMANDS:
        result = vorta(*command.split(), "--help")
        assert result.code == 0
        assert re.search(rf"Examples?:\n\s+vorta-trt {command}", result.out), result.out
        assert f"\n  {command.split()[0]} " in vorta("--help").out


def test_usage_errors() -> None:
    fails("sample", message="No such command 'sample'", code=2)
    fails("build", "x.onnx", message="Missing option '--output'", code=2)
    fails("export", "x", "-o", "y.onnx", "--size", "720p", code=2, message="size '720p': must be FRAMESxHEIGHTxWIDTH")
    fails("export", "x", "-o", "y.onnx", "--precision", "int8", code=2, message="'int8' is not one of")
    fails(
        "build", "x", "-o", "y", "--tensorrt", "openvino", code=2, message="'openvino' is not one of 'rtx', 'tensorrt'"
    )
    fails("build", "x", "-o", "y", "--batch", "1:2", code=2, message="'1:2': must be MIN:OPT:MAX or one number")
    fails("build", "x.onnx", "-o", "y", "--size", "77x720x1280", code=2, message="--size belongs to checkpoints")
    fails("routes", "x", message="Missing option '--router'", code=2)
    fails("verify", "x", "y", "--batch", "0", message="Invalid value for '--batch'", code=2)


# -- commands that work ------------------------------------------------------------------------------------------------


def test_doctor() -> None:
    result = vorta("doctor", "--json")
    assert result.code == 0
    content = json.loads(result.out)
    assert content["can_build"] is True
    text = vorta("doctor").out
    assert "vorta-trt can build engines here, with: rtx" in text


def test_doctor_fails_where_nothing_can_be_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VORTA_TRT_LIBRARY", str(tmp_path / "absent.so"))
    result = vorta("doctor", "--json")
    assert result.code == 1
    assert json.loads(result.out)["can_build"] is False


def test_export_as_json(wan: Wan, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    result = vorta(
        "export", wan.checkpoint, "--size", "29x96x128", "--precision", "fp16", "--tau", "0.4", "-o", path, "--json"
    )
    assert result.code == 0, result
    content = json.loads(result.out)
    assert content["path"] == str(path)
    assert content["metadata"]["precision"] == "fp16"
    assert content["metadata"]["tau"] == 0.4
    assert content["metadata"]["router_sha256"] is None


def test_attention_precision(wan: Wan, tmp_path: Path) -> None:
    path, bundle = tmp_path / "fp8.onnx", tmp_path / "fp8.bundle"
    options = (wan.checkpoint, "--router", wan.router, "--attention-precision", "fp8")
    result = vorta("export", *options, "--precision", "fp16", "-o", path, "--json")
    assert result.code == 0, result
    assert json.loads(result.out)["metadata"]["attention_precision"] == "fp8"
    assert "attention  fp8 products" in vorta("inspect", path).out
    needs = "attention_precision fp8 needs GPUs of compute capability 8.9 or newer, and"
    fails("build", path, "-o", bundle, message=f"{needs} .*or pass strict=False .--no-strict. to build it as it is")
    built = vorta("build", *options, "-o", bundle, "--no-strict", "--json")
    assert built.code == 0, built
    assert json.loads(built.out)["manifest"]["attention_precision"] == "fp8"
    assert "attention  fp8 products" in vorta("inspect", bundle).out
    assert "attention  products in the type of the inputs" in vorta("inspect", wan.bundle).out
    given = ("--attention-precision", "same")
    fails("build", path, *given, "-o", bundle, code=2, message="--attention-precision belongs to checkpoints")
    fails("export", *options[:-1], "fp4", "-o", path, code=2, message="'fp4' is not one of")


def test_build_from_a_checkpoint(wan: Wan, tmp_path: Path) -> None:
    bundle = tmp_path / "in one go.bundle"
    result = vorta("build", wan.checkpoint, "--router", wan.router, "--size", "29x96x128", "-o", bundle)
    assert result.code == 0, result
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["precision"] == "bf16"
    assert manifest["plugin"]["layers"] == 2
    assert "model.onnx" not in manifest["files"]
    assert {"timestep_path.safetensors", "layers.json"} <= set(manifest["files"])
    assert [entry.name for entry in tmp_path.iterdir()] == [bundle.name]


def test_inspect(wan: Wan, tmp_path: Path) -> None:
    for target in (wan.onnx, wan.bundle):
        picture = tmp_path / f"{target.name}.png"
        result = vorta("inspect", target, "--plot", picture)
        assert result.code == 0, result
        assert "RoutedAttention" in result.out
        assert picture.read_bytes().startswith(b"\x89PNG")
        content = json.loads(vorta("inspect", target, "--json").out)
        assert content["network"]["plugin_layers"] == 2
    assert vorta("inspect", wan.bundle, "--check").code == 0
    assert "141 GiB: guidance batched" in vorta("inspect", wan.bundle).out
    shared = vorta("inspect", wan.bundle, "--gpus", 2).out
    assert "of the first of 2 GPUs that share a pass" in shared
    assert re.search(
        r"a pass on 2 GPUs, every head full: \d[\d.e-]+ s, \d+\.\d\d times slower .*; predicted from the rates of H100",
        shared,
    )  # of a tiny model
    fails("inspect", wan.bundle, "--gpus", 3, message="3 GPUs for 2 heads")
    (card,) = json.loads(vorta("inspect", wan.bundle, "--memory", 8, "--json").out)["memory_plan"]["cards"]
    assert (card["gib"], card["fits"], card["text_encoder"]) == (8, True, None)
    fails("inspect", wan.bundle, "--memory", 0, message="memory 0: must be the GiB of a card")
    fails("inspect", wan.bundle, "--checkpoint", tmp_path, message="neither text_encoder/ nor vae/ with weights")


def test_verify_passes(wan: Wan) -> None:
    result = vorta("verify", wan.onnx, wan.checkpoint, "--router", wan.router, "--case", "mixed override", "--seed", 4)
    assert result.code == 0, result
    assert "verified" in result.out
    assert "seed 4" in result.out
    arguments = ("--router", wan.router, "--executor", "onnxruntime", "--case", "all sliding", "--json")
    content = json.loads(vorta("verify", wan.bundle, wan.checkpoint, *arguments).out)
    assert content["passed"] is True
    assert content["executor"] == "onnxruntime"
    assert content["cases"][0]["name"] == "all sliding"


def test_verify_fails_with_the_place(wan: Wan, tmp_path: Path) -> None:
    model = onnx.load(wan.onnx)
    weight = next(tensor for tensor in model.graph.initializer if "blocks.1.attn1.to_v.weight" in tensor.name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3] *= 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "tampered.onnx")
    arguments = (tmp_path / "tampered.onnx", wan.checkpoint, "--router", wan.router, "--case", "all full")
    result = vorta("verify", *arguments)
    assert result.code == 1
    assert "FAILED: it does not compute what torch does" in result.out
    assert "first departure: blocks.1.attn1.to_v" in result.out
    as_json = vorta("verify", *arguments, "--json")
    assert as_json.code == 1
    assert json.loads(as_json.out)["layers"]["first_departure"] == "blocks.1.attn1.to_v"


def test_routes(wan: Wan, tmp_path: Path) -> None:
    table, picture = tmp_path / "routes.json", tmp_path / "routes.png"
    arguments = ("routes", wan.checkpoint, "--router", wan.router, "--steps", 6)
    result = vorta(*arguments, "-o", table, "--plot", picture)
    assert result.code == 0, result
    assert "UniPCMultistepScheduler, shift 5" in result.out
    assert re.search(r"attention FLOPs saved by routing: \d+\.\d %", result.out)
    assert re.search(r"end-to-end FLOPs saved by routing: \d+\.\d %", result.out)
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = json.loads(vorta(*arguments, "--json").out)
    assert printed == json.loads(table.read_text())
    assert np.shape(printed["routes"]) == (6, 2, 2)
    dense = json.loads(vorta(*arguments, "--tau", 1.1, "--scheduler", "flow-euler", "--flow-shift", 3, "--json").out)
    assert dense["attention_flops_saved"] == dense["total_flops_saved"] == 0
    assert dense["total_flops_routed"] == dense["total_flops_dense"] > dense["attention_flops_dense"]
    assert dense["timesteps"] != printed["timesteps"]
    balanced = json.loads(vorta(*arguments, "--gpus", 2, "--json").out)
    assert balanced["routes"] == printed["routes"]
    assert np.shape(balanced["balance"]["loads_balanced"]) == (6, 2, 2)
    fails(*arguments, "--gpus", 3, message="3 GPUs for 2 heads: every GPU must have as many heads; use one of 1, 2")
    fails(*arguments, "--step-profile", "absent.json", message="needs --gpus", code=2)


def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "a set", tmp_path / "another"
    for folder in (one, other):
        folder.mkdir()
        for name in ("cat", "dog"):
            np.save(folder / f"{name}.npy", np.random.default_rng(len(name)).random((2, 16, 18, 3)))
    np.save(other / "dog.npy", np.full((2, 16, 18, 3), 0.5))
    report, videos = tmp_path / "report.json", tmp_path / "videos"
    result = vorta("compare", one, other, "-o", report, "--video", videos, "--fps", 8, "--no-lpips")
    assert result.code == 0, result
    assert re.search(r"cat .* inf .* 1\.0000", result.out) and "no LPIPS: not asked for" in result.out
    assert f"wrote {report}\nwrote {videos}" in result.out
    content = json.loads(vorta("compare", one, other, "--no-lpips", "--json").out)
    assert content["pairs"][0]["psnr"] == "Infinity" and 0 < content["ssim"] < 1
    assert content["psnr"] == json.loads(report.read_text())["psnr"]
    assert sorted(path.name for path in videos.iterdir()) == ["cat.mp4", "dog.mp4"]
    (one / "cat.npy").unlink()
    fails("compare", one, other, message="a set lacks cat; samples are paired by name")
    fails("compare", one, tmp_path / "absent", message="absent: no such file or folder")
    fails("compare", one, other, "--fps", 8, message="belongs to --video", code=2)
    fails("compare", one, message="Missing argument 'B'", code=2)
    monkeypatch.setitem(sys.modules, "lpips", None)
    fails("compare", one / "dog.npy", other / "dog.npy", "--lpips", message="LPIPS needs the package lpips")


def test_hunyuan_video(tmp_path: Path) -> None:
    """The same commands, on a checkpoint of the other family."""
    checkpoint, router, bundle = tmp_path / "a hunyuan video", tmp_path / "router", tmp_path / "hunyuan.bundle"
    sizes = {"layers": 1, "single_layers": 2, "heads": 2, "head_dim": 32}
    make_hunyuan_video_checkpoint(checkpoint, text_dim=32, pooled_dim=16, **sizes)
    make_router(router, AttentionGeometry.for_video(29, 96, 128, "hunyuan_video"), "hunyuan_video", **sizes)
    common = (checkpoint, "--router", router)

    onnx_file = tmp_path / "hunyuan.onnx"
    exported = vorta("export", *common, "--precision", "fp16", "-o", onnx_file, "--json")
    assert exported.code == 0, exported
    assert json.loads(exported.out)["metadata"]["family"] == "hunyuan_video"
    verified = vorta("verify", onnx_file, *common, "--case", "mixed override", "--json")
    assert verified.code == 0, verified
    built = vorta("build", onnx_file, "-o", bundle, "--json")
    assert built.code == 0, built
    assert json.loads(built.out)["manifest"]["plugin"]["layers"] == 3
    for target in (onnx_file, bundle):
        inspected = vorta("inspect", target)
        assert inspected.code == 0 and "encoder_attention_mask" in inspected.out, inspected

    arguments = ("routes", *common, "--steps", 5)
    assert "FlowMatchEulerDiscreteScheduler, shift 7" in vorta(*arguments).out
    table = json.loads(vorta(*arguments, "--json").out)
    assert np.shape(table["routes"]) == (5, 3, 2)
    assert table["timesteps"][0] == 1000
    fails("routes", checkpoint, "--router", tmp_path / "absent", message="router .*absent: does not exist")
    fails("demo", "--family", "mochi", message="'mochi' is not one of 'wan', 'hunyuan-video'", code=2)


def test_train_router(wan: Wan, tmp_path: Path) -> None:
    video, data, run = (29, 96, 128), tmp_path / "data", tmp_path / "run"
    for kind, tensor in (("latents", torch.randn(16, 8, 12, 16)), ("prompts", torch.randn(7, 32))):
        (data / kind).mkdir(parents=True)
        name = "latents" if kind == "latents" else "prompt_embeds"
        save_file({name: tensor}, data / kind / "cat.safetensors")
    samples = [{"name": "cat", "caption": "a cat"}]
    content = {"version": 1, "family": "wan", "video_size": video, "samples": samples}
    (data / "dataset.json").write_text(json.dumps(content))
    arguments = ("train-router", wan.checkpoint, "--data", data, "-o", run, "--precision", "fp32", "--device", "cpu")
    result = vorta(*arguments, "--steps", 2, "--batch-size", 1)
    assert result.code == 0, result
    assert "2 steps on 1 samples\nbatch size 1, on 1 process of 1\nloss " in result.out
    assert f"next: vorta-trt routes '{wan.checkpoint}' --router {run}" in result.out
    fails(*arguments, message="output .*run: holds a training run already; continue it with --resume")
    resumed = vorta("train-router", "run", *arguments[1:], "--steps", 3, "--batch-size", 1, "--resume", "--json")
    assert resumed.code == 0, resumed
    assert json.loads(resumed.out)["step"] == 3
    assert vorta("routes", wan.checkpoint, "--router", run, "--steps", 2).code == 0
    samples.append({"name": "dog", "caption": "a dog"})
    (data / "dataset.json").write_text(json.dumps(content))
    fails(*arguments[:5], tmp_path / "other", message="sample 'dog': its latents .* do not exist")
    assert not (tmp_path / "other").exists()


def test_train_router_usage(wan: Wan, tmp_path: Path) -> None:
    train = ("train-router", wan.checkpoint, "-o", tmp_path / "run", "--data", tmp_path)
    fails(*train[:4], message="Missing option '--data'", code=2)
    fails(*train, "--learning-rate", 0, message="learning_rate 0.0: must be greater than 0", code=2)
    fails(*train, "--tile", "5x9", message="'5x9': must be FRAMESxHEIGHTxWIDTH", code=2)
    fails(*train, "--warmup-steps", 5, message="warmup_steps 5: schedule 'constant' has no warm-up", code=2)
    fails(*train, "--size", "720p", message="size '720p': must be FRAMESxHEIGHTxWIDTH", code=2)
    fails(*train, "--precision", "fp16", message="'fp16' is not one of", code=2)
    fails(*train, message="has neither dataset.json nor videos2caption.json")
    prepare = ("train-router", "prepare", wan.checkpoint, "--videos", tmp_path, "-o", tmp_path / "data")
    fails(*prepare, message="Missing option '--size'", code=2)
    fails(*prepare, "--size", "29x96x128", message="holds no video file")
    help_text = vorta("train-router", "run", "--help").out
    assert "vorta-trt train-router Wan2.1-T2V-14B-Diffusers --data DATA -o ROUTER --resume" in help_text


def test_the_defaults_of_training_are_the_published_ones() -> None:
    from inspect import signature

    from vorta_trt.commands.train_router import TrainingOptions, run
    from vorta_trt.model.training import TrainingSettings

    settings = TrainingSettings().model_dump()
    settings |= {f"{name}_weight": value for name, value in settings.pop("weights").items()}
    parameters = [*signature(run).parameters.values(), *TrainingOptions.parameters()]
    defaults = {parameter.name: parameter.default for parameter in parameters}
    given = {parameter.name: parameter.default for parameter in TrainingOptions.parameters()}
    assert TrainingOptions(**given).settings() == TrainingSettings()
    assert {name: defaults[name] for name in settings} == settings
    assert (settings["schedule"], settings["warmup_steps"], defaults["window"]) == ("constant", 0, "3x3x3")
    assert (settings["steps"], settings["batch_size"], settings["learning_rate"]) == (100, 4, 1e-2)
    assert (settings["diffusion_weight"], settings["distillation_weight"]) == (1, 20)
    assert (settings["regularisation_weight"], settings["intervals"]) == (0.02, 5)


def test_from_another_folder_with_relative_paths(wan: Wan, tmp_path: Path) -> None:
    library = Path(os.path.relpath(_library(), tmp_path))
    environment = {**os.environ, "VORTA_TRT_LIBRARY": str(library)}
    source = os.path.relpath(wan.half, tmp_path)
    result = vorta_process("build", source, "-o", "made here.bundle", cwd=tmp_path, env=environment)
    assert result.code == 0, result
    assert result.err == ""  # no terminal, no progress bar
    assert (tmp_path / "made here.bundle" / "transformer.plan").is_file()


def _library() -> Path:
    from vorta_trt.plugins import library_path

    return library_path()


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_checkpoint(wan: Wan, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "x.onnx", "--size", "29x96x128")
    fails("export", tmp_path, *out, message="has neither transformer/config.json nor config.json")
    fails("export", tmp_path / "absent", *out, message="checkpoint .*absent: does not exist")
    fails("export", wan.router, *out, message="_class_name|neither")
    fails("build", tmp_path, "-o", tmp_path / "x.bundle", message="has neither transformer/config.json")
    assert not list(tmp_path.iterdir())


def test_a_router_of_another_model(wan: Wan, tmp_path: Path) -> None:
    router = make_router(tmp_path / "router", wan.geometry, layers=5, heads=2, head_dim=32)
    message = "use the router that was trained for this checkpoint"
    fails("export", wan.checkpoint, "--router", router, "-o", tmp_path / "x.onnx", message=message)
    fails("routes", wan.checkpoint, "--router", router, message=message)
    fails("verify", wan.onnx, wan.checkpoint, "--router", router, message=message)


@pytest.mark.parametrize("content", [b"", b"not a pickle at all", b"PK\x03\x04 broken zip"])
def test_a_router_that_is_no_torch_file(wan: Wan, tmp_path: Path, content: bytes) -> None:
    router = tmp_path / "router.pt"
    router.write_bytes(content)
    fails("routes", wan.checkpoint, "--router", router, "--size", "29x96x128", message=r"weights_only=True")


def test_a_router_that_is_no_state_dict(wan: Wan, tmp_path: Path) -> None:
    router = tmp_path / "router.pt"
    torch.save([torch.ones(3)], router)
    fails("routes", wan.checkpoint, "--router", router, message="holds a list; must be a state dict")
    torch.save({"blocks.0.attn1.to_q.weight": torch.ones(3)}, router)
    fails("routes", wan.checkpoint, "--router", router, message="keys must be blocks")
    fails("routes", wan.checkpoint, "--router", tmp_path / "absent", message="router .*absent: does not exist")


def test_a_router_that_runs_code_is_refused(wan: Wan, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "boom"),)

    torch.save({"blocks.0.router.linear.weight": Bomb()}, tmp_path / "router.pt")
    fails("routes", wan.checkpoint, "--router", tmp_path / "router.pt", message="cannot be read with torch.load")
    assert not (tmp_path / "boom").exists()


def test_a_size_that_does_not_fit(wan: Wan, tmp_path: Path) -> None:
    command = ("export", wan.checkpoint, "-o", tmp_path / "x.onnx")
    fails(*command, message="so the video size is unknown; give it, e.g. --size 77x720x1280")
    fails(
        *command, "--size", "30x96x128", message="frames 30 of video 30x96x128: must be 1 \\+ a multiple of 4; nearest"
    )
    fails(*command, "--size", "29x97x128", message="height 97 .*must be a multiple of 16 pixels; nearest")


def test_a_corrupt_onnx_file(wan: Wan, tmp_path: Path) -> None:
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"\x08\x07\xff\xff\xff" * 100)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(wan.onnx.read_bytes()[:-1000])
    for path in (noise, cut, tmp_path / "absent.onnx"):
        fails("build", path, "-o", tmp_path / "x.bundle", message="export it|no such bundle or ONNX file")
        fails("inspect", path, message="export it|no such bundle or ONNX file|does not exist")
        fails("verify", path, wan.checkpoint, "--router", wan.router, message="export it|no such bundle")
    assert not (tmp_path / "x.bundle").exists()


def test_an_onnx_file_of_another_origin(wan: Wan, tmp_path: Path) -> None:
    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [shape], [out])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)]), tmp_path / "relu.onnx")
    fails("build", tmp_path / "relu.onnx", "-o", tmp_path / "x.bundle", message="not a model that vorta-trt exported")
    fails("verify", tmp_path / "relu.onnx", wan.checkpoint, message="vorta-trt did not export it")


def test_a_truncated_plan(wan: Wan, tmp_path: Path) -> None:
    bundle = shutil.copytree(wan.bundle, tmp_path / "cut.bundle")
    plan = bundle / "transformer.plan"
    plan.write_bytes(plan.read_bytes()[: plan.stat().st_size // 2])
    fails("inspect", bundle, message="transformer.plan is cut short")
    fails("verify", bundle, wan.checkpoint, "--router", wan.router, message="transformer.plan is cut short")


def test_a_plan_with_other_bytes(wan: Wan, tmp_path: Path) -> None:
    bundle = shutil.copytree(wan.bundle, tmp_path / "changed.bundle")
    plan = bundle / "transformer.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    assert vorta("inspect", bundle).code == 0  # sizes only
    fails("inspect", bundle, "--check", message="transformer.plan was changed: its SHA-256 differs")


def test_a_manifest_that_was_edited(wan: Wan, tmp_path: Path) -> None:
    bundle = shutil.copytree(wan.bundle, tmp_path / "edited.bundle")
    manifest = bundle / "manifest.json"
    original = manifest.read_text()
    manifest.write_text(original.replace('"fp16"', '"bf16"'))
    fails("inspect", bundle, message="manifest.json was changed after the build")
    manifest.write_text(original.replace('"schema_version": 1', '"schema_version": 99', 1))
    fails("inspect", bundle, message="schema_version 99, this vorta-trt reads 1")
    manifest.write_text(original[:200])
    fails("inspect", bundle, message="manifest.json: is not valid JSON")
    manifest.unlink()
    fails("inspect", bundle, message="not a bundle")


def test_an_engine_in_fp32(wan: Wan, tmp_path: Path) -> None:
    command = ("build", wan.checkpoint, "--router", wan.router, "--precision", "fp32", "-o", tmp_path / "x.bundle")
    fails(*command, message="precision 'fp32': the plugin computes in fp16 and bf16; use --precision bf16")
    fails("build", wan.onnx, "-o", tmp_path / "x.bundle", message="precision 'fp32': .*export .* --precision bf16")
    assert not list(tmp_path.iterdir())


def test_a_flavour_that_is_not_installed(wan: Wan, tmp_path: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("package tensorrt is installed")
    command = ("-o", tmp_path / "x.bundle", "--tensorrt", "tensorrt")
    fails("build", wan.half, *command, message='package "tensorrt" is not installed; .*install')
    fails("build", wan.checkpoint, "--router", wan.router, *command, message='package "tensorrt" is not installed')


def test_destinations_that_cannot_be_written(wan: Wan, tmp_path: Path) -> None:
    fails("build", wan.half, "-o", wan.bundle, message=r"this bundle exists; pass overwrite=True \(--overwrite\)")
    fails("build", wan.half, "-o", wan.checkpoint, message="exists and is not a bundle")
    fails("build", wan.half, "-o", wan.onnx / "x.bundle", message="a part of the path is a file")
    fails("export", wan.checkpoint, "--router", wan.router, "-o", wan.onnx / "x.onnx", message="file|folder")
    fails(
        "routes",
        wan.checkpoint,
        "--router",
        wan.router,
        "-o",
        tmp_path / "a" / "r.json",
        message="--output.*its folder does not exist",
        code=2,
    )
    fails("inspect", wan.onnx, "--plot", tmp_path / "layers.docx", message="a picture must end in .png")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_export_replaces_nothing_but_onnx_files(wan: Wan, tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "wan.bundle"
    shutil.copytree(wan.checkpoint, checkpoint)
    shutil.copytree(wan.bundle, bundle)
    weights = next(checkpoint.rglob("*.safetensors"))
    (tmp_path / "link.onnx").symlink_to(weights)
    (tmp_path / "folder.onnx").mkdir()
    before = contents(tmp_path)
    for path in (weights, bundle / "manifest.json", tmp_path / "m.txt", tmp_path / "new", checkpoint):
        message = r"--output.*: its suffix must be \.onnx; use e\.g\. "
        fails("export", checkpoint, "--router", wan.router, "-o", path, message=message, code=2)
        fails("export", "absent", "-o", path, message=message, code=2)  # before anything is read
    message = r"--output.*is a link to .*whose suffix must be \.onnx, too"
    fails("export", checkpoint, "--router", wan.router, "-o", tmp_path / "link.onnx", message=message, code=2)
    fails("export", checkpoint, "--router", wan.router, "-o", tmp_path / "folder.onnx", message="is a folder")
    assert contents(tmp_path) == before
    (tmp_path / "old.onnx").write_bytes(b"old")
    (tmp_path / "to old.onnx").symlink_to("old.onnx")
    assert vorta("export", checkpoint, "--router", wan.router, "-o", tmp_path / "to old.onnx").code == 0
    assert onnx.load(tmp_path / "old.onnx").graph.node and (tmp_path / "to old.onnx").is_symlink()


def test_a_json_file_replaces_only_its_own_kind(wan: Wan, tmp_path: Path) -> None:
    table, config = tmp_path / "routes.json", tmp_path / "config.json"
    config.write_text('{"_class_name": "AutoencoderKLWan"}')
    routes = ("routes", wan.checkpoint, "--router", wan.router, "--steps", 3)
    no_table = "--output.*exists and is no route table, so it is kept; give another path, or remove the file first"
    fails(*routes, "-o", config, message=no_table, code=2)
    fails("calibrate", wan.checkpoint, "--data", tmp_path, "-o", config, message="no file of calibrated routes", code=2)
    measured = ("calibrate", wan.checkpoint, "--data", tmp_path, "-o", tmp_path / "c.json", "--linear-output", config)
    fails(*measured, message="--linear-output.*is no linear calibration", code=2)
    fails(*measured[:-1], tmp_path / "c.json", message="c.json: is the file of the routes, too; give each its own")
    fails("compare", "a", "b", "-o", config, message="is no report of `vorta-trt compare`", code=2)
    fails("compare", "a", "b", "--table", tmp_path / "config.md", message="absent|no such")  # free
    (tmp_path / "README.md").write_text("# A readme\n")
    fails("compare", "a", "b", "--table", tmp_path / "README.md", message="--table.*is no table of", code=2)
    for name in ("attention", "blocks", "step", "parallel"):
        fails("bench", name, "-o", config, message=f"--output.*is no report of `bench {name}`", code=2)
    assert config.read_text() == '{"_class_name": "AutoencoderKLWan"}'
    table.touch()
    for tau in (0.2, 0.4):  # an empty file, and a table
        assert vorta(*routes, "--tau", tau, "-o", table).code == 0
        assert json.loads(table.read_text())["tau"] == tau
    fails("compare", "a", "b", "-o", table, message="is no report of `vorta-trt compare`", code=2)
    assert vorta(*routes, "-o", "/dev/null").code == 0


def test_build_keeps_what_it_reads(wan: Wan, tmp_path: Path) -> None:
    bundle = tmp_path / "wan.bundle"
    shutil.copytree(wan.bundle, bundle)
    shutil.copytree(wan.checkpoint, bundle / "checkpoint")
    (tmp_path / "link.onnx").symlink_to(bundle / "model.onnx")
    (bundle / "calibration.json").write_text("{}")
    before = contents(tmp_path)
    lies = "would be replaced, and .*, from which it is to be made, lies in it; give another path"
    overwrite = ("-o", bundle, "--overwrite")
    fails("build", bundle / "model.onnx", *overwrite, message=lies)
    fails("build", tmp_path / "link.onnx", *overwrite, message=lies)
    fails("build", wan.half, "--route-override", bundle / "calibration.json", *overwrite, message=lies)
    fails("build", bundle / "checkpoint", "--router", wan.router, *overwrite, message=lies)
    of_checkpoint = ("build", wan.checkpoint, "--size", "29x96x128", *overwrite)
    of_linears = ("--linear-precision", "fp8", "--linear-calibration", bundle / "calibration.json")
    fails(*of_checkpoint, *of_linears, message=lies)
    fails(*of_checkpoint, "--lora", bundle / "calibration.json", message=lies)
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys").is_dir(), reason="root may write everywhere")
def test_a_read_only_folder(wan: Wan, tmp_path: Path) -> None:
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    target = folder if os.geteuid() != 0 else Path("/proc/sys")  # where not even root can make files
    message = (
        "cannot be written|does not exist|not permitted|no permission|read-only|[Pp]ermission|not writable|No such file"
    )
    fails("build", wan.half, "-o", target / "x.bundle", message=message)
    fails("export", wan.checkpoint, "--router", wan.router, "-o", target / "x.onnx", message=message)


def test_verify_refuses_what_cannot_be_compared(wan: Wan) -> None:
    common = ("verify", wan.onnx, wan.checkpoint)
    fails(*common, message="was exported with a router, so it must be compared with one; give --router")
    fails(*common, "--router", wan.router, "--precision", "bf16", message="is in fp32")
    fails(*common, "--router", wan.router, "--case", "all", message="case 'all': must be one of")
    fails("verify", wan.bundle, wan.checkpoint, "--router", wan.router, message="cannot run here")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = vorta("inspect", tmp_path / "absent.onnx", "--debug")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "error: " in result.err


def test_a_bug_is_called_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vorta_trt.runtime import doctor

    def broken(*arguments: Any) -> Any:
        raise KeyError("surprise")

    monkeypatch.setattr(doctor, "examine", broken)
    fails("doctor", message="error: KeyError: 'surprise' .*--debug")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    for option, command in (
        ("--prompt", ("generate", "absent.onnx", "-o", tmp_path / "x.npy")),
        ("--case", ("verify", "absent.onnx", tmp_path)),
    ):
        fails(*command, option, "a \udcff wall", message=rf"{option}.*'a \\udcff wall': is not UTF-8", code=2)


def test_a_full_gpu_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    from vorta_trt.runtime import doctor

    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr(doctor, "examine", full)
    fails("doctor", message="error: CUDA out of memory.* 9.00 GiB.\nclose what else uses the GPU, or take less of it")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 256. TiB"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 140737488355328 bytes."),
    ],
)
def test_full_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from vorta_trt.runtime import doctor

    def full(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(doctor, "examine", full)
    fails("doctor", message="error: memory is used up .*allocate.*; close what else uses memory")


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from vorta_trt.runtime import doctor

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    fails("doctor", message="error: interrupted", code=130)
