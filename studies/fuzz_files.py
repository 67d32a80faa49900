# SPDX-License-Identifier: Apache-2.0
"""A mutation fuzz of every file that a command reads.

    python studies/fuzz_files.py --work /tmp/fuzz --count 1000 --seed 0

Makes a small model with everything that belongs to it, in the way `vorta-trt demo` does. Then each case damages one
file of a copy, in one way, and runs a command that reads it. A finding is a traceback, an error that is "a bug of
vorta-trt", a crash, a hang, or an output that is left behind although the command failed. The result goes to
benchmarks/results/.

Every case runs in a forked child of a process that has the packages imported, so that crashes and hangs are seen and
nothing of one case is left in the next.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SLOW = re.compile(r"--sigmas|^export|^build|prepare|^calibrate|^verify")  # commands that compute for seconds
LIMIT_SECONDS = 240  # of a case; what takes longer is a hang
SIZE = "9x64x96"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
)

ROUTES = "routes checkpoint --router router --steps 2 -o new-output.json"
ROUTES_OF_RUN = "routes checkpoint --router run --steps 2 -o new-output.json"
GENERATE = "generate m.onnx --checkpoint checkpoint --prompt red --sigmas 1 --seed 1 -o new-output.npy"
DRY = "generate m.onnx --checkpoint checkpoint --steps 3 --dry-run"
DRY_BUNDLE = "generate m.bundle --checkpoint checkpoint --steps 3 --dry-run"
EXPORT = f"export checkpoint --router router --size {SIZE} --precision fp32 -o new-output.onnx"
VERIFY = "verify m.onnx checkpoint --router router --no-layers --case all-full"
TRAIN = "train-router checkpoint --data data -o new-output-run --steps 1 --precision fp32 --device cpu --batch-size 1"
RESUME = "train-router checkpoint --data data -o run --steps 2 --precision fp32 --device cpu --batch-size 1 --resume"
CALIBRATE = (
    "calibrate checkpoint --data data -o new-output.json --dtype fp32 --device cpu --buckets 2 --samples 1 --steps 4"
)
PREPARE = (
    f"train-router prepare checkpoint --videos videos --size {SIZE} --precision fp32 --device cpu -o new-output-data"
)
TEA = f"{DRY} --cache tea --cache-coefficients tea.json --cache-threshold 0.1"

# What is mutated, and by which commands it is read; a name with * stands for each file that fits.
TARGETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("checkpoint/model_index.json", (ROUTES, GENERATE, PREPARE)),
    ("checkpoint/transformer/config.json", (ROUTES, EXPORT, VERIFY, TRAIN)),
    ("checkpoint/transformer/*.safetensors", (ROUTES, EXPORT, VERIFY)),
    ("checkpoint/vae/config.json", (GENERATE, PREPARE)),
    ("checkpoint/vae/*.safetensors", (GENERATE,)),
    ("checkpoint/scheduler/*.json", (ROUTES, DRY)),
    ("checkpoint/text_encoder/config.json", (GENERATE, PREPARE)),
    ("checkpoint/text_encoder/*.safetensors", (GENERATE,)),
    ("checkpoint/tokenizer/*", (GENERATE,)),
    ("router/config.json", (ROUTES,)),
    ("router/ckpt/*/router.pt", (ROUTES,)),
    ("m.onnx", ("inspect m.onnx", DRY, GENERATE, VERIFY, "build m.onnx -o new-output.bundle")),
    ("m.onnx.data", ("inspect m.onnx", DRY, VERIFY, "build m.onnx -o new-output.bundle")),
    ("m.bundle/manifest.json", ("inspect m.bundle", DRY_BUNDLE, "inspect m.bundle --check")),
    ("m.bundle/layers.json", ("inspect m.bundle", "inspect m.bundle --plot new-output.png")),
    ("m.bundle/timestep_path.safetensors", (DRY_BUNDLE,)),
    ("m.bundle/route_override.json", (DRY_BUNDLE, "inspect m.bundle")),
    ("m.bundle/model.onnx", ("inspect m.bundle --check", "verify m.bundle checkpoint --router router")),
    ("m.bundle/transformer.plan", ("inspect m.bundle --check",)),
    (
        "calibration.json",
        ("routes checkpoint --route-override calibration.json --steps 2", f"{DRY} --route-override calibration.json"),
    ),
    ("tea.json", (TEA,)),
    ("profile.json", (f"{DRY} --step-profile profile.json",)),
    ("prompts.txt", (f"{GENERATE.replace('--prompt red', '--prompts prompts.txt').replace('.npy', '')} --format npy",)),
    (
        "prompts.json",
        (f"{GENERATE.replace('--prompt red', '--prompts prompts.json').replace('.npy', '')} --format npy",),
    ),
    ("data/dataset.json", (TRAIN, CALIBRATE)),
    ("data/*/*.safetensors", (TRAIN, CALIBRATE)),
    ("run/config.json", (ROUTES_OF_RUN, RESUME)),
    ("run/log.jsonl", (RESUME,)),
    ("run/ckpt/*/router.pt", (ROUTES_OF_RUN, RESUME)),
    ("run/ckpt/*/training.pt", (RESUME,)),
    ("videos/*", (PREPARE,)),
    ("captions.json", (f"{PREPARE} --captions captions.json",)),
    ("samples/a.*", ("compare samples/a.{suffix} samples/whole.npy --no-lpips -o new-output.json",)),
    ("attention.json", ("bench attention --from attention.json --plot new-output.png",)),
    ("step.json", ("bench step --from step.json --plot new-output.png",)),
)


@dataclass
class Outcome:
    """One case: what was done to which file, the command, and what came of it; `finding` is None if all is well."""

    file: str
    mutation: str
    command: str
    code: int | None
    seconds: float
    finding: str | None
    said: str


# --- Mutations: each gives a name and the new content, or None for a file that is no longer there ------------


def json_mutations(content: bytes, random_: random.Random) -> tuple[str, bytes]:
    """Changes one value somewhere in a JSON document to another type, another number, or nothing."""
    document = json.loads(content)
    places = list(_places(document))
    path = random_.choice(places)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    old = parent[path[-1]]
    name, new = random_.choice(_others(old))
    if name == "missing":
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return f"{'.'.join(map(str, path))}: {name}", json.dumps(document).encode()


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _others(old: Any) -> list[tuple[str, Any]]:
    number = old if isinstance(old, int | float) and not isinstance(old, bool) else 3
    return [
        ("missing", None),
        ("null", None),
        ("list", [old]),
        ("list of two", [old, old]),
        ("empty list", []),
        ("object", {"a": old}),
        ("empty object", {}),
        ("string", str(old)),
        ("empty string", ""),
        ("word", "word"),
        ("true", True),
        ("zero", 0),
        ("one", 1),
        ("negative", -abs(number) or -1),
        ("one more", number + 1),
        ("fraction", number + 0.5),
        ("huge", 10**30),
        ("large", 2**31),
        ("infinite", float("inf")),
        ("NaN", float("nan")),
        ("surrogate", "\ud800"),
        ("path", "../../etc"),
        ("line separator", "a\u2028b"),
    ]


def text_mutations(content: bytes, random_: random.Random) -> tuple[str, bytes]:
    """Damage that any text may have."""
    half = random_.randrange(1, max(2, len(content)))
    return random_.choice(
        [
            ("empty", b""),
            ("cut short", content[:half]),
            ("invalid UTF-8", content[:half] + b"\xff\xfe" + content[half:]),
            ("byte order mark", b"\xef\xbb\xbf" + content),
            ("UTF-16", b"\xff\xfe" + content.decode("utf-8", "replace").encode("utf-16-le")),
            ("pointer", POINTER),
            ("number", b"7\n"),
            ("list", b"[]"),
            ("object", b"{}"),
            ("null", b"null"),
            ("string", b'"a"'),
            ("deep", b"[" * 100_000),
            ("twice", content + content),
            ("NUL bytes", b"\0" * 64),
            ("web page", b"<!DOCTYPE html><html>"),
            ("CRLF", content.replace(b"\n", b"\r\n")),
            ("long", b'{"a": "' + b"x" * 5_000_000 + b'"}'),
        ]
    )


def binary_mutations(content: bytes, random_: random.Random) -> tuple[str, bytes]:
    """Damage that any file may have."""
    at = random_.randrange(0, max(1, len(content)))
    early = random_.randrange(0, max(1, min(len(content), 2000)))
    flipped, header = bytearray(content), bytearray(content)
    for array, place in ((flipped, at), (header, early)):
        if array:
            array[place] ^= 1 << random_.randrange(8)
    return random_.choice(
        [
            ("empty", b""),
            ("cut short", content[:at]),
            ("cut to a header", content[:early]),
            ("cut by a byte", content[:-1]),
            ("a byte more", content + b"\0"),
            ("pointer", POINTER),
            ("web page", b"<!DOCTYPE html><html>"),
            ("zeros", b"\0" * len(content)),
            ("noise", random_.randbytes(1000)),
            (f"bit flipped at {at}", bytes(flipped)),
            (f"bit flipped at {early}", bytes(header)),
            ("text", b"a red wall\n"),
            ("half zeros", content[:at] + b"\0" * (len(content) - at)),
            ("ones", b"\xff" * 100),
        ]
    )


def safetensors_mutations(content: bytes, random_: random.Random) -> tuple[str, bytes]:
    """Changes the header, or values to what is not finite."""
    length = int.from_bytes(content[:8], "little")
    if random_.random() < 0.2:
        return "NaN in the values", content[: 8 + length] + b"\xff" * (len(content) - 8 - length)
    name, header = json_mutations(content[8 : 8 + length], random_)
    return f"header {name}", len(header).to_bytes(8, "little") + header + content[8 + length :]


def torch_mutations(content: bytes, random_: random.Random) -> tuple[str, bytes]:
    """Other content in a file of torch.save."""
    import io

    import torch

    state = torch.load(io.BytesIO(content), weights_only=True)
    key = random_.choice(sorted(state, key=str))
    value = state[key]
    tensor = value if isinstance(value, torch.Tensor) else torch.zeros(2)
    others: list[tuple[str, Any]] = [
        ("list", [state]),
        ("tensor", torch.zeros(2)),
        ("empty", {}),
        ("number", 7),
        ("missing", {k: v for k, v in state.items() if k != key}),
        ("renamed", {**{k: v for k, v in state.items() if k != key}, f"x.{key}": value}),
        ("more", {**state, "more": tensor}),
        ("other shape", {**state, key: tensor[:1] if tensor.ndim else tensor.view(1)}),
        ("flat", {**state, key: tensor.flatten()}),
        ("string", {**state, key: "word"}),
        ("null", {**state, key: None}),
        ("negative", {**state, key: -1}),
        ("integers", {**state, key: tensor.long()}),
        ("complex", {**state, key: tensor.to(torch.complex64)}),
        ("NaN", {**state, key: torch.full_like(tensor.float(), torch.nan)}),
        ("number key", {**state, 3: tensor}),
        ("empty tensor", {**state, key: tensor[..., :0]}),
        ("nested", {"state_dict": state}),
    ]
    name, new = random_.choice(others)
    stream = io.BytesIO()
    torch.save(new, stream)
    return f"{key}: {name}", stream.getvalue()


def onnx_mutations(content: bytes, random_: random.Random) -> tuple[str, bytes]:
    """Changes the metadata, an attribute, a node, an input, or where a weight lies."""
    import onnx

    model = onnx.load_from_string(content)
    kind = random_.choice(["metadata", "attribute", "node", "input", "weight", "external", "opset", "function"])
    graph = model.graph
    name = ""
    if kind == "metadata":
        entry = next(entry for entry in model.metadata_props if entry.key == "vorta_trt")
        name, changed = random_.choice([json_mutations, json_mutations, text_mutations])(entry.value.encode(), random_)
        entry.value = changed.decode("utf-8", "replace").replace("\0", " ")
    elif kind == "attribute":
        node = random_.choice([node for node in graph.node if node.attribute])
        attribute = random_.choice(node.attribute)
        name = f"{node.op_type}.{attribute.name}"
        if random_.random() < 0.4:
            node.attribute.remove(attribute)
            name += ": missing"
        else:
            value = random_.choice([0, -1, 2**31, 0.5, "word", [1, 2], [-1, 0, 5]])
            attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, value))
            name += f": {value!r}"
    elif kind == "node":
        node = random_.choice(graph.node)
        name = random_.choice(["removed", "other operator", "no inputs", "unknown input"])
        if name == "removed":
            graph.node.remove(node)
        elif name == "other operator":
            node.op_type = "Nonsense"
        elif name == "no inputs":
            del node.input[:]
        else:
            node.input.append("nowhere")
        name = f"{node.op_type} {name}"
    elif kind == "input":
        value = random_.choice([*graph.input, *graph.output])
        name = f"{value.name} {random_.choice(['other type', 'no shape', 'renamed', 'no type'])}"
        if name.endswith("other type"):
            value.type.tensor_type.elem_type = random_.choice([0, 1, 6, 8, 16, 99])
        elif name.endswith("no shape"):
            value.type.tensor_type.ClearField("shape")
        elif name.endswith("renamed"):
            value.name = "other"
        else:
            value.ClearField("type")
    elif kind in ("weight", "external"):
        pick = [t for t in graph.initializer if (t.data_location == t.EXTERNAL) == (kind == "external")]
        tensor = random_.choice(pick or list(graph.initializer))
        name = f"{tensor.name} {random_.choice(['dims', 'type', 'gone', 'entry'])}"
        if name.endswith("dims"):
            tensor.dims.append(random_.choice([0, 2, -1, 2**40]))
        elif name.endswith("type"):
            tensor.data_type = random_.choice([0, 1, 7, 8, 16, 99])
        elif name.endswith("gone"):
            graph.initializer.remove(tensor)
        elif tensor.external_data:
            random_.choice(tensor.external_data).value = random_.choice(
                ["", "-1", "word", "99999999999", "/etc/passwd", ".."]
            )
    elif kind == "opset":
        model.opset_import[0].version = random_.choice([0, 1, 12, 99])
        name = str(model.opset_import[0].version)
    else:
        name = random_.choice(["none", "empty"])
        if name == "none":
            del model.functions[:]
        elif model.functions:
            del model.functions[0].node[:]
    return f"{kind} {name}", model.SerializeToString()


def mutate(file: Path, random_: random.Random) -> str:
    """Damages a file in place; returns what was done."""
    content = file.read_bytes()
    special = {
        ".json": json_mutations,
        ".safetensors": safetensors_mutations,
        ".pt": torch_mutations,
        ".onnx": onnx_mutations,
    }
    general = text_mutations if file.suffix in (".json", ".txt", ".jsonl") else binary_mutations
    draw = random_.random()
    if draw < 0.05:
        file.unlink()
        what = random_.choice(["missing", "a folder", "a dangling link", "a pipe"])
        if what == "a folder":
            file.mkdir()
        elif what == "a dangling link":
            file.symlink_to("nowhere")
        return what if what != "a pipe" else "missing"
    name, new = (special.get(file.suffix, general) if draw < 0.7 else general)(content, random_)
    file.unlink()  # a hard link of the original
    file.write_bytes(new)
    if file.name == "manifest.json" and random_.random() < 0.6:
        name += ", sealed again" if _seal(file) else ""
    return name


def _seal(manifest: Path) -> bool:
    """Gives a changed manifest the right digest, so that what lies behind that check is reached."""
    import hashlib

    try:
        document = json.loads(manifest.read_text())
        document.pop("digest", None)
        plain = {k: v for k, v in document.items() if not (k == "attention_precision" and v == "same")}
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        manifest.write_text(json.dumps({**document, "digest": hashlib.sha256(text.encode()).hexdigest()}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False
    return True


# --- The small model and everything that belongs to it -------------------------------------------------------


def make_subject(folder: Path) -> None:
    """Makes every kind of file that a command reads."""
    import numpy as np
    import onnx
    import torch
    from safetensors.torch import save_file

    from vorta_trt.model import AttentionGeometry
    from vorta_trt.model.families.wan.random import make_checkpoint
    from vorta_trt.model.random_checkpoint import make_router
    from vorta_trt.model.random_pipeline import complete_pipeline
    from vorta_trt.runtime.video_file import write_frames

    folder.mkdir(parents=True)
    os.chdir(folder)
    length, height, width = map(int, SIZE.split("x"))
    size = length, height, width
    sizes: dict[str, Any] = {"layers": 2, "heads": 3, "head_dim": 32}
    make_checkpoint(Path("checkpoint"), ffn_dim=64, text_dim=32, channels=4, freq_dim=32, **sizes)
    complete_pipeline(Path("checkpoint"))
    make_router(Path("router"), AttentionGeometry.for_video(length, height, width, "wan"), "wan", video=size, **sizes)
    for kind, name, shape in (("latents", "latents", (4, 3, 8, 12)), ("prompts", "prompt_embeds", (9, 32))):
        Path("data", kind).mkdir(parents=True)
        for sample in ("cat", "dog"):
            save_file({name: torch.randn(shape)}, f"data/{kind}/{sample}.safetensors")
    samples = [{"name": name, "caption": f"a {name}"} for name in ("cat", "dog")]
    dataset = {"version": 1, "family": "wan", "video_size": list(size), "samples": samples}
    Path("data/dataset.json").write_text(json.dumps(dataset))
    _vorta(EXPORT.replace("new-output.onnx", "whole.onnx"))
    onnx.save(
        onnx.load("whole.onnx"), "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=1024
    )
    Path("whole.onnx").unlink()
    _vorta(CALIBRATE.replace("new-output", "calibration"))
    _vorta(TRAIN.replace("new-output-run", "run"))
    _vorta(
        f"build checkpoint --router router --size {SIZE} --precision fp16 --route-override calibration.json "
        "--keep-onnx -o m.bundle"
    )
    Path("tea.json").write_text(
        json.dumps(
            {"format": 1, "coefficients": [1.0, 2.0, 3.0, 4.0, 5.0], "signal": "embedding", "fitted_range": [0.0, 1.0]}
        )
    )
    Path("profile.json").write_text(json.dumps({"full": 0.1, "coreset": 0.05, "sliding": 0.03, "other": 0.2}))
    Path("prompts.txt").write_text("a red wall\na blue wall\n")
    Path("prompts.json").write_text(json.dumps([{"caption": "a red wall"}, {"caption": "a blue wall"}]))
    Path("videos").mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (size[0], 64, 96, 3), np.uint8)
    write_frames(Path("videos/a.mp4"), frames, 16)
    Path("videos/a.txt").write_text("a red wall\n")
    Path("captions.json").write_text(json.dumps({"a.mp4": "a red wall"}))
    Path("samples").mkdir()
    for name in ("whole.npy", "a.npy", "a.mp4"):
        write_frames(Path("samples", name), frames[:3], 16)
    save_file({"frames": torch.from_numpy(frames[:3].copy())}, "samples/a.safetensors")
    results = Path(__file__).resolve().parents[1] / "benchmarks/results"
    shutil.copyfile(results / "2026-11-26-h100-attention-small.json", "attention.json")
    shutil.copyfile(results / "2026-11-26-h100-step-wan-14b-4-layers.json", "step.json")


def _vorta(command: str) -> None:
    from typer.testing import CliRunner

    from vorta_trt.cli import app

    result = CliRunner().invoke(app, command.split())
    if result.exit_code != 0:
        raise SystemExit(f"vorta-trt {command}: {result.output}")


# --- Running cases -------------------------------------------------------------------------------------------


def cases(first: int, count: int, only: str, quick: bool) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Numbers of cases, with the pattern of the file and the commands that read it."""
    for number in range(first, first + count):
        pattern, commands = TARGETS[number % len(TARGETS)]
        if quick:
            commands = tuple(command for command in commands if not SLOW.search(command))
        if only in pattern and commands:
            yield number, pattern, commands


def run_case(subject: Path, folder: Path, number: int, seed: int, pattern: str, commands: tuple[str, ...]) -> Outcome:
    """Damages a file of a copy and runs a command on it, in a forked child."""
    random_ = random.Random(f"{seed} {number}")
    shutil.copytree(subject, folder, copy_function=os.link, dirs_exist_ok=False)
    file = random_.choice(sorted(path for path in folder.glob(pattern) if path.is_file()))
    mutation = mutate(file, random_)
    command = random_.choice(commands).replace("{suffix}", file.suffix[1:])
    before = _listing(folder)
    began = time.monotonic()
    code, said = _in_child(folder, command)
    seconds = time.monotonic() - began
    finding = _judge(code, said, sorted(_listing(folder) - before))
    name = str(file.relative_to(folder))
    shutil.rmtree(folder)
    return Outcome(
        name, mutation[:200], command, code, round(seconds, 2), finding, said[-1500:] if finding else said[:300]
    )


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "said"}


def _in_child(folder: Path, command: str) -> tuple[int | None, str]:
    said = folder / "said"
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(folder)
        stream = os.open(said, os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = 70
        try:
            from vorta_trt.cli import app

            app(command.split(), prog_name="vorta-trt")
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, said.read_text(errors="replace")
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")


def _judge(code: int | None, said: str, left: list[str]) -> str | None:
    if code is None:
        return "hang"
    if code < 0:
        return f"killed by signal {-code}"
    if "this is a bug of vorta-trt" in said:
        return "called a bug of vorta-trt"
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if code != 0 and not said.strip():
        return "failed in silence"
    allowed = ("new-output-data", "new-output-run", "new-output/", "run/")  # folders that a later run completes
    half = [name for name in left if "unfinished" in name or (code != 0 and not name.startswith(allowed))]
    if half and not (half == ["new-output"]):
        return f"left behind: {', '.join(half[:3])}"
    return None


def main() -> None:
    """Reads the command line, runs the cases, writes the result, and fails if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="A folder for the small model and the copies.")
    parser.add_argument("--count", type=int, default=1000, help="Cases.")
    parser.add_argument("--first", type=int, default=0, help="Number of the first case.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the mutations.")
    parser.add_argument("--only", default="", help="Only targets whose name holds this.")
    parser.add_argument("--quick", action="store_true", help="No command that samples, exports, builds or encodes.")
    parser.add_argument("--results", type=Path, help="Folder of the result; by default, none is written.")
    arguments = parser.parse_args()
    _import_everything()
    subject = (arguments.work / "subject").resolve()
    if not subject.is_dir():
        child = os.fork()  # whatever threads it starts end with it
        if child == 0:
            try:
                make_subject(subject)
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                shutil.rmtree(subject, ignore_errors=True)
                os._exit(1)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise SystemExit("the small model could not be made")
    outcomes: list[Outcome] = []
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))  # ends after the case, with a result
    chosen = cases(arguments.first, arguments.count, arguments.only, arguments.quick)
    for number, pattern, commands in chosen:
        if stop:
            break
        folder = subject.parent / f"case {os.getpid()}"
        outcome = run_case(subject, folder, number, arguments.seed, pattern, commands)
        outcomes.append(outcome)
        if outcome.finding:
            print(f"{number} FINDING {outcome.finding}: {outcome.file} ({outcome.mutation}): {outcome.command}")
            print(outcome.said, flush=True)
        elif number % 25 == 0:
            print(f"{number} {outcome.file} ({outcome.mutation}) {outcome.code} {outcome.seconds} s", flush=True)
    findings = [outcome for outcome in outcomes if outcome.finding]
    result = {
        "question": "does damage of any file that a command reads end in an error that names it?",
        "seed": arguments.seed,
        "quick": arguments.quick,
        "cases": len(outcomes),
        "exit_codes": dict(Counter(str(outcome.code) for outcome in outcomes)),
        "cases_by_file": dict(Counter(outcome.file for outcome in outcomes)),
        "slowest_seconds": max((outcome.seconds for outcome in outcomes), default=0),
        "findings": [asdict(outcome) for outcome in findings],
    }
    print(
        json.dumps({name: result[name] for name in ("cases", "exit_codes", "slowest_seconds")}),
        f"{len(findings)} findings",
    )
    if arguments.results is not None:
        from vorta_trt.benchmarks.harness import write_result

        print(write_result(arguments.results.resolve(), "fuzz-files", result))
    raise SystemExit(1 if findings else 0)


def _import_everything() -> None:
    """Imports what the commands import, so that the children find it there."""
    for name in (
        "diffusers.pipelines.wan",
        "onnx.reference",
        "onnxruntime",
        "transformers.models.umt5.modeling_umt5",
        "vorta_trt.cli",
        "vorta_trt.engines.builder",
        "vorta_trt.export.onnx_export",
        "vorta_trt.model.calibration.calibrate",
        "vorta_trt.model.training.train",
        "vorta_trt.runtime.pipelines.pipeline",
        "vorta_trt.runtime.verification.verify",
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    main()
