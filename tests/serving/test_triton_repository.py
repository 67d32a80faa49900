# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt triton`: what is written, what is refused, and how the tensors of a request become its fields."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.serving.triton.request import read_request
from vorta_trt.serving.triton.tensors import INPUTS, OUTPUTS
from vorta_trt.serving.video_request import RequestError

from ..tiny import Tiny


def triton(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["triton", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def config_of(folder: Path) -> Any:
    """The configuration as Triton reads it."""
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), messages.ModelConfig())


def test_a_bundle(tiny_wan: Tiny, tmp_path: Path) -> None:
    repository = tmp_path / 'a "repository" é'
    options = ("--checkpoint", tiny_wan.checkpoint, "--gpus", "0,1", "--queue", 3, "--cpu-offload", "--json")
    said = json.loads(triton(tiny_wan.bundle, "-o", repository, *options))
    assert said == {"model": "with_onnx", "folder": str(repository / "with_onnx")}
    folder = repository / "with_onnx"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["1", "1/model.py", "config.pbtxt"]
    config = config_of(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("with_onnx", "python", 0)
    assert [list(group.gpus) for group in config.instance_group] == [[0], [1]]
    assert config.model_transaction_policy.decoupled
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 3
    assert [(each.name, list(each.dims), each.optional) for each in config.input] == [
        (each.name, list(each.dims), each.optional) for each in INPUTS
    ]
    assert [(each.name, list(each.dims)) for each in config.output] == [
        (each.name, list(each.dims)) for each in OUTPUTS
    ]
    model = json.loads(config.parameters["model"].string_value)
    assert model == {
        "name": "with_onnx",
        "source": str(tiny_wan.bundle),
        "checkpoint": str(tiny_wan.checkpoint),
        "pipeline": {"residency": "auto", "cpu_offload": True},
    }


@pytest.mark.parametrize(
    ("options", "written"),
    [((), None), (("--vae-tiling",), "true"), (("--no-vae-tiling",), "false"), (("--vae-precision", "bf16"), "bf16")],
)
def test_the_vae_is_as_was_said(tiny_wan: Tiny, tmp_path: Path, options: tuple[str, ...], written: str | None) -> None:
    """Some families decode in tiles unless told otherwise."""
    triton(tiny_wan.onnx, "-o", tmp_path / "models", "--checkpoint", tiny_wan.checkpoint, *options)
    (config,) = (tmp_path / "models").glob("*/config.pbtxt")
    found = re.search(r"vae_\w+\W+(true|false|bf16)", config.read_text(encoding="utf-8"))
    assert (None if found is None else found[1]) == written


def test_a_copy_that_moves(tiny_wan: Tiny, tmp_path: Path) -> None:
    shutil.copy(tiny_wan.onnx, tmp_path / "wan.onnx")
    (tmp_path / "wan.onnx.data").write_bytes(b"weights")
    (tmp_path / "wan.2.txt").write_text("another file")
    archive = tmp_path / "packed.tar.gz"
    archive.write_bytes(b"an archive")
    options = ("--checkpoint", tiny_wan.checkpoint, "--copy", "--environment", archive, "--no-progress")
    assert "next: tritonserver --model-repository" in triton(tmp_path / "wan.onnx", "-o", tmp_path / "models", *options)
    folder = tmp_path / "models" / "wan"
    assert {path.name for path in folder.iterdir()} == {
        *("1", "config.pbtxt", "checkpoint", "wan.onnx", "wan.onnx.data", "environment.tar.gz"),
    }
    config = config_of(folder)
    assert not config.model_transaction_policy.decoupled
    assert config.parameters["EXECUTION_ENV_PATH"].string_value == "$$TRITON_MODEL_DIRECTORY/environment.tar.gz"
    model = json.loads(config.parameters["model"].string_value)
    assert (model["source"], model["checkpoint"]) == ("wan.onnx", "checkpoint")
    before = config.SerializeToString()
    triton(tmp_path / "wan.onnx", "-o", tmp_path / "models", *options)  # in the place of the one before
    assert config_of(folder).SerializeToString() == before


def test_refusals(tiny_wan: Tiny, tmp_path: Path) -> None:
    wan = (tiny_wan.onnx, "--checkpoint", tiny_wan.checkpoint, "-o", tmp_path / "models")
    cases: dict[tuple[object, ...], tuple[int, str]] = {
        (*wan, "--name", "../up"): (1, "name '../up': must be letters, digits"),
        (*wan, "--environment", tmp_path / "absent"): (1, "absent: no such archive or folder"),
        (*wan, "--environment", tiny_wan.onnx): (1, "is no .tar.gz"),
        (*wan, "--environment", tmp_path): (1, "has no bin/activate"),
        (*wan, "--preset", "nonsense"): (1, "preset 'nonsense'"),
        (*wan, "--preset", "mlperf"): (1, "preset 'mlperf': is for models with two experts"),
        (*wan, "--gpus", "first"): (2, "must be a whole number"),
        (*wan, "--device", "cuda:1"): (2, "use --gpus"),
        (tmp_path / "absent.bundle", "-o", tmp_path / "models"): (1, "no such bundle or ONNX file"),
        (tiny_wan.onnx, "--checkpoint", tmp_path / "no folder", "-o", tmp_path / "models"): (1, "is no folder"),
    }
    for arguments, (code, message) in cases.items():
        assert message in " ".join(triton(*arguments, code=code).split()), arguments
    assert not (tmp_path / "models").exists(), "something half-made is left"
    other = tmp_path / "models" / "wan"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("mine")
    assert "holds no config.pbtxt" in triton(*wan, "--name", "wan", code=1)
    assert (other / "notes.txt").read_text() == "mine"


def request_of(**values: Any) -> Any:
    arrays = {
        name: np.array([value], object) if isinstance(value, str | bytes) else np.array(value)
        for name, value in values.items()
    }
    return read_request(arrays.get, most_pixels=100)


def picture(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.frombytes("RGB", (width, height), np.random.default_rng(0).bytes(3 * width * height)).save(content, "PNG")
    return content.getvalue()


def test_a_request() -> None:
    parameters = json.dumps({"dense_first": 2, "cache": "tea", "fps": 8})
    request, images = request_of(
        PROMPT="ein Käse".encode(),
        SEED=np.uint64([2**64 - 1]),
        STEPS=np.int32([7]),
        GUIDANCE_SCALE=np.float32([1.5]),
        SIZE=b"96x64",
        NUM_FRAMES=np.int32([9]),
        IMAGE=picture(10, 10),
        PARAMETERS=parameters.encode(),
    )
    assert (request.prompt, request.seed, request.num_inference_steps) == ("ein Käse", 2**64 - 1, 7)
    assert (request.guidance_scale, request.size, request.num_frames, request.fps) == (1.5, "96x64", 9, 8)
    assert (request.dense_first, request.cache.method) == (2, "tea")
    assert {name: image.size for name, image in images.items()} == {"image": (10, 10)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "prompt: is missing"),
        ({"PROMPT": b"\xff"}, "PROMPT: is no UTF-8 text"),
        ({"PROMPT": b"a", "STEPS": np.int32([0])}, "num_inference_steps 0: .*greater than or equal to 1"),
        ({"PROMPT": b"a", "STEPS": np.int32([1, 2])}, r"STEPS of shape \[2\]: must hold one element"),
        ({"PROMPT": b"a", "STEPS": np.zeros(0, np.int32)}, r"STEPS of shape \[0\]: must hold one element"),
        ({"PROMPT": b"a", "GUIDANCE_SCALE": np.float32([np.nan])}, "guidance_scale nan"),
        ({"PROMPT": b"a", "SIZE": b"large"}, "size large"),
        ({"PROMPT": b"a", "IMAGE": b"GIF89a"}, "IMAGE: is no PNG, JPEG or WebP image"),
        ({"PROMPT": b"a", "IMAGE": picture(11, 10)}, "IMAGE: has 11x10 pixels, and no more than 100"),
        ({"PROMPT": b"a", "IMAGE": picture(10, 10)[:200]}, "IMAGE: is damaged"),
        ({"PROMPT": b"a", "PARAMETERS": b"{"}, "PARAMETERS: is no JSON"),
        ({"PROMPT": b"a", "PARAMETERS": b"[" * 100_000}, "PARAMETERS: is no JSON"),
        ({"PROMPT": b"a", "PARAMETERS": b"[1]"}, r"PARAMETERS \[1\]: must be a JSON object"),
        ({"PROMPT": b"a", "PARAMETERS": b'{"stepz": 3}'}, "stepz: is no field of a request"),
        ({"PROMPT": b"a", "PARAMETERS": b'{"n": 3}'}, "n has no place there; use one request for each video"),
        ({"PROMPT": b"a", "PARAMETERS": b'{"reference_url": "file:///etc/passwd"}'}, "use IMAGE"),
        (
            {"PROMPT": b"a", "SEED": np.uint64([1]), "PARAMETERS": b'{"seed": 3}'},
            "SEED: seed stands in PARAMETERS, too",
        ),
    ],
)
def test_a_request_that_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request_of(**values)


def test_a_model_that_would_replace_what_it_serves(tiny_wan: Tiny, tmp_path: Path) -> None:
    own = tmp_path / "video"
    own.mkdir()
    (own / "config.pbtxt").write_text("")
    shutil.copytree(tiny_wan.bundle, own / "wan.bundle")
    options = ("--checkpoint", tiny_wan.checkpoint, "-o", tmp_path, "--name", "video")
    said = triton(own / "wan.bundle", *options, "--copy", code=1)
    assert re.search("would be replaced, and .*wan.bundle, from which it is to be made, lies in it", said)
    inside = ("--checkpoint", tiny_wan.checkpoint, "-o", own / "wan.bundle/repository", "--copy")
    assert "lies in" in triton(own / "wan.bundle", *inside, code=1)
    assert (own / "wan.bundle/manifest.json").is_file()
