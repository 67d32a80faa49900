# SPDX-License-Identifier: Apache-2.0
"""The model repository in the real Triton: two models, one with progress, one without and with an image."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vorta_trt.runtime.frames import read_frames
from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
from vorta_trt.serving.settings import ModelSettings
from vorta_trt.serving.triton.repository import TritonSettings, write_model

from ..kept import Kept
from ..tiny import FRAMES, HEIGHT, WIDTH, Tiny, make_tiny
from .triton_server import TritonServer, triton_server

grpc = pytest.importorskip("tritonclient.grpc", reason="needs the package tritonclient")
http = pytest.importorskip("tritonclient.http", reason="needs the package tritonclient")
pytest.importorskip("av")

# The stub of this Triton knows no NumPy 2: an environment beside the tests', with NumPy 1; see Makefile.
ENVIRONMENT = Path(os.environ.get("VORTA_TRITON_ENVIRONMENT", Path(sys.prefix) / "triton"))
KINDS = {bytes: "BYTES", np.int32: "INT32", np.uint64: "UINT64", np.float32: "FP32"}
BREAKING, LOSING = "break the engine", "lose the engine"
BROKEN_SCRIPT = f"""
from vorta_trt.serving.triton.model import TritonPythonModel as Served


class TritonPythonModel(Served):
    def _generate(self, request, sender):
        prompt = self._utils.get_input_tensor_by_name(request, "PROMPT").as_numpy()[0].decode()
        if prompt == "{LOSING}":
            self._models.warm_up = lambda: self._models.get("no such model")
        if prompt in ("{BREAKING}", "{LOSING}"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super()._generate(request, sender)
"""
MANY = 1000  # steps, which run for far longer than a test needs to be done with the request


@pytest.fixture
def start(tiny_wan: Tiny, kept: Kept, tmp_path: Path) -> Iterator[Callable[[], TritonServer]]:
    """Starts a server of both models; one that runs already is stopped."""
    if not (ENVIRONMENT / "bin" / "activate").is_file():
        pytest.skip(f"needs an environment with NumPy 1 in {ENVIRONMENT}; `make test` makes it")
    for name, tiny, decoupled, waiting in (
        ("wan", tiny_wan, True, 8),
        ("image", make_tiny(kept, "wan channels"), False, 1),
    ):
        model = ModelSettings(source=tiny.onnx, checkpoint=tiny.checkpoint, name=name)
        settings = TritonSettings(gpus=(), decoupled=decoupled, queue=waiting, environment=ENVIRONMENT)
        written = write_model(tmp_path / "models", model, settings)
        if decoupled:
            (written / "1" / "model.py").write_text(BROKEN_SCRIPT)
    with ExitStack() as running:

        def started() -> TritonServer:
            running.close()
            folder = tmp_path / f"server-{len(list(tmp_path.glob('server-*'))) + 1}"  # Triton takes no blanks
            folder.mkdir()
            return running.enter_context(triton_server(tmp_path / "models", folder))

        yield started


def inputs(client: Any, **values: Any) -> list[Any]:
    given = []
    for name, value in values.items():
        array = np.array([value], object) if isinstance(value, bytes) else value.reshape(1)
        given.append(client.InferInput(name, [1], KINDS[bytes if isinstance(value, bytes) else type(value)]))
        given[-1].set_data_from_numpy(array)
    return given


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(content, "PNG")
    return content.getvalue()


class Stream:
    """A gRPC stream: requests in, responses out, as dicts of arrays, or errors as text."""

    def __init__(self, server: TritonServer) -> None:
        self.client = grpc.InferenceServerClient(server.grpc)
        self.responses: queue.Queue[Any] = queue.Queue()
        self.client.start_stream(callback=lambda result, error: self.responses.put(error or result))

    def send(self, outputs: tuple[str, ...] = (), **values: Any) -> None:
        wanted = [grpc.InferRequestedOutput(name) for name in outputs]
        self.client.async_stream_infer("wan", inputs(grpc, **values), outputs=wanted or None)

    def next(self) -> dict[str, Any] | str:
        got = self.responses.get(timeout=120)
        if isinstance(got, Exception):
            return str(got)
        return {each.name: got.as_numpy(each.name) for each in got.get_response().outputs}

    def all(self, last: str) -> list[dict[str, Any]]:
        """Up to the one with the output `last`."""
        found: list[dict[str, Any]] = []
        while not found or last not in found[-1]:
            response = self.next()
            assert isinstance(response, dict), response
            found.append(response)
        return found

    def close(self, cancel: bool = False) -> None:
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()


def test_in_triton(
    start: Callable[[], TritonServer], tiny_wan: Tiny, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """One server for all checks: as tests, they would be dealt out to several processes, each with a server.

    Where the server itself has crashed, the check is made once more with another one.
    """
    server = start()
    for check in CHECKS:
        with subtests.test(check.__name__.replace("_", " ")):
            try:
                with closing(Stream(server)) as stream:
                    check(Context(server, stream, tiny_wan, tmp_path))
                continue
            except Exception:
                if not server.has_crashed():
                    raise
            server = start()
            with closing(Stream(server)) as stream:
                check(Context(server, stream, tiny_wan, tmp_path))


@dataclass(frozen=True)
class Context:
    server: TritonServer
    stream: Stream
    tiny_wan: Tiny
    folder: Path


def a_stream_with_progress(context: Context) -> None:
    before = context.server.samples()
    context.stream.send(PROMPT=b"a red wall", STEPS=np.int32(4), SEED=np.uint64(3), PARAMETERS=b'{"dense_first": 1}')
    *progress, last = context.stream.all("VIDEO")
    steps = [json.loads(each["INFO"][0]) for each in progress]
    assert [each["step"] for each in steps if each["stage"] == "denoising"] == [0, 1, 2, 3]
    assert [each["PROGRESS"][0] for each in progress] == [each["step"] / 4 for each in steps]
    assert list(dict.fromkeys(each["stage"] for each in steps)) == ["encoding prompts", "denoising", "decoding"]
    assert last["PROGRESS"] == [1]
    info = json.loads(last["INFO"][0])
    assert (info["seed"], info["steps"], info["prompt"], info["size"]) == (3, 4, "a red wall", [FRAMES, HEIGHT, WIDTH])
    with VortaPipeline.from_pretrained(context.tiny_wan.onnx, context.tiny_wan.checkpoint) as pipe:
        expected = pipe("a red wall", num_inference_steps=4, seed=3, dense_first=1)
    np.testing.assert_array_equal(last["FRAMES"], expected.frames)
    (context.folder / "video.mp4").write_bytes(last["VIDEO"][0])
    frames = np.stack(list(read_frames(context.folder / "video.mp4")))
    assert np.abs(frames * 255 - expected.frames).mean() < 12
    after = _settled(context.server, 'vorta_requests_total{status="completed"}', before, 1)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['vorta_denoise_steps_total{kind="computed"}'] == 4
    assert grown['vorta_stage_duration_seconds_count{stage="decode"}'] == 1
    assert grown['vorta_step_duration_seconds_count{expert="transformer"}'] == 4
    assert sum(value for name, value in grown.items() if name.startswith("vorta_routed_heads_total")) == 4 * 2 * 3
    assert grown["vorta_video_seconds_total"] == pytest.approx(FRAMES / 16)
    assert after["vorta_requests_running"] == 0


def _settled(server: TritonServer, name: str, before: dict[str, float], by: float) -> dict[str, float]:
    """Our metrics after one of them has grown; it grows just before or after a response arrives."""
    until = time.monotonic() + 60
    while (samples := server.samples()).get(name, 0) < before.get(name, 0) + by:
        assert time.monotonic() < until, f"{name} is {samples.get(name)}, and was {before.get(name)}"
        time.sleep(0.02)
    return samples


def http_with_an_image(context: Context) -> None:
    values = {"PROMPT": b"it moves", "IMAGE": picture(), "STEPS": np.int32(2), "SEED": np.uint64(1)}
    with http.InferenceServerClient(context.server.http, network_timeout=120) as client:
        frames = http.InferRequestedOutput("FRAMES")
        first = client.infer("image", inputs(http, **values), outputs=[frames])
        assert [each["name"] for each in first.get_response()["outputs"]] == ["FRAMES"]
        assert first.as_numpy("FRAMES").shape == (FRAMES, HEIGHT, WIDTH, 3)
    with grpc.InferenceServerClient(context.server.grpc) as client:
        again = client.infer("image", inputs(grpc, **values))
        np.testing.assert_array_equal(again.as_numpy("FRAMES"), first.as_numpy("FRAMES"))
        assert again.as_numpy("VIDEO")[0][4:8] == b"ftyp"


BAD_INPUT: list[tuple[dict[str, Any], str]] = [
    ({"PROMPT": b""}, "PROMPT"),
    ({"PROMPT": b"a", "STEPS": np.int32(0)}, "STEPS 0"),
    ({"PROMPT": b"a", "SIZE": b"8x8"}, f"model image makes videos of {WIDTH}x{HEIGHT} of {FRAMES} frames"),
    ({"PROMPT": b"a"}, "IMAGE: is missing; this model begins a video with one"),
    ({"PROMPT": b"a", "IMAGE": b"no image"}, "IMAGE: is no PNG, JPEG or WebP image"),
]


def bad_input(context: Context) -> None:
    for values, message in BAD_INPUT:
        for library, url, status in (
            (http, context.server.http, "400"),
            (grpc, context.server.grpc, "INVALID_ARGUMENT"),
        ):
            with library.InferenceServerClient(url) as client, pytest.raises(Exception, match=message) as raised:
                client.infer("image", inputs(library, **values))
            assert status in raised.value.status()


def bad_input_of_a_stream(context: Context) -> None:
    context.stream.send(PROMPT=b"a", STEPS=np.int32(-1))
    assert "STEPS -1" in str(context.stream.next())
    context.stream.send(("FRAMES",), PROMPT=b"a", STEPS=np.int32(1))
    assert set(context.stream.next()) == {"FRAMES"}, "the stream goes on, and has no progress that nobody asked for"


def cancel(context: Context) -> None:
    before = context.server.samples()
    cancelled = Stream(context.server)
    cancelled.send(PROMPT=b"a", STEPS=np.int32(MANY))
    while "denoising" not in str(response := cancelled.next()):
        assert isinstance(response, dict), response
    cancelled.close(cancel=True)
    after = _settled(context.server, 'vorta_requests_total{status="cancelled"}', before, 1)
    assert after["vorta_requests_running"] == 0
    assert after['vorta_requests_total{status="completed"}'] == before['vorta_requests_total{status="completed"}']
    context.stream.send(("INFO",), PROMPT=b"a", STEPS=np.int32(1))
    assert json.loads(context.stream.all("INFO")[0]["INFO"][0])["stage"] == "encoding prompts"


def a_full_queue(context: Context) -> None:
    """One request runs, one waits, and others are refused at once."""
    answers: queue.Queue[Any] = queue.Queue()
    values = inputs(grpc, PROMPT=b"a", IMAGE=picture(), STEPS=np.int32(MANY))
    with grpc.InferenceServerClient(context.server.grpc) as client:
        calls = [
            client.async_infer("image", values, callback=lambda result, error: answers.put(error)) for _ in range(6)
        ]
        refused = answers.get(timeout=60)
        assert "maximum queue size" in str(refused), refused
        for call in calls:
            call.cancel()
        until = time.monotonic() + 60
        while True:  # a cancelled request leaves the queue a little later
            try:
                again = client.infer("image", inputs(grpc, PROMPT=b"a", IMAGE=picture(), STEPS=np.int32(1)))
                break
            except grpc.InferenceServerException as error:
                assert "maximum queue size" in str(error) and time.monotonic() < until, error
                time.sleep(0.1)
        assert again.as_numpy("FRAMES") is not None


def an_engine_that_fails(context: Context) -> None:
    """It is loaded again; when that fails, too, every request is refused with the reason."""
    context.stream.send(PROMPT=BREAKING.encode())
    assert "engine_error: RuntimeError: CUDA error" in str(context.stream.next())
    context.stream.send(("FRAMES",), PROMPT=b"a", STEPS=np.int32(1))
    assert set(context.stream.next()) == {"FRAMES"}
    context.stream.send(PROMPT=LOSING.encode())
    assert "engine_error: RuntimeError: CUDA error" in str(context.stream.next())
    context.stream.send(PROMPT=b"a", STEPS=np.int32(1))
    assert "engine_lost: model no such model: is not served here" in str(context.stream.next())


def an_instance_that_is_killed(context: Context) -> None:
    """Nothing hangs; Triton itself starts no other one."""
    values = {"PROMPT": b"a", "IMAGE": picture()}
    with grpc.InferenceServerClient(context.server.grpc) as client, ThreadPoolExecutor() as pool:
        before = context.server.samples()
        running = pool.submit(client.infer, "image", inputs(grpc, **values, STEPS=np.int32(MANY)))
        _settled(context.server, "vorta_requests_running", before, 1)
        for stub in context.server.stubs():
            os.kill(stub, signal.SIGKILL)
        assert "not healthy" in str(running.exception(timeout=60))
        assert "not healthy" in str(pool.submit(client.infer, "image", inputs(grpc, **values)).exception(timeout=60))


# The last ones leave a model without an engine, and an instance without a process.
CHECKS = (
    *(a_stream_with_progress, http_with_an_image, bad_input, bad_input_of_a_stream, cancel, a_full_queue),
    *(an_engine_that_fails, an_instance_that_is_killed),
)
