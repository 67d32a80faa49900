# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt serve` as a process: the clients that people use, the page in a browser, and what is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image
from running_server import RunningServer, wait_for

from vorta_trt.model.video_reader import read_pictures
from vorta_trt.serving import JobStore, ModelSettings, ServeSettings
from vorta_trt.serving.job import JobError, Status
from vorta_trt.serving.server import serve

from ..tiny import HEIGHT, WIDTH
from . import chromium
from .held_videos import HeldVideos

LONG = 250  # steps, of which a tiny model makes some 100 a second


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> HeldVideos:
    return HeldVideos(tmp_path_factory.mktemp("held"))


@pytest.fixture(scope="module")
def server(
    text_model: Path, image_model: Path, held: HeldVideos, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    models = f"text={text_model}", f"image={image_model}"
    with RunningServer(folder / "jobs", *models, log=folder / "log", environment=held.environment) as running:
        running.wait_until_ready()
        yield running
        assert running.stop() == 0, running.log.read_text()[-2000:]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "first.png"
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, np.uint8)).save(path)
    return path


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
def test_the_client_of_openai(server: RunningServer, held: HeldVideos, picture: Path, tmp_path: Path) -> None:
    """Create, poll, download, list, retrieve, cancel, delete; of text, and with an uploaded image."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        steps = {"num_inference_steps": 3, "seed": 1}
        made = client.videos.create(prompt="a cat", extra_body=steps)
        assert made.status == "queued" and made.object == "video"
        done = client.videos.poll(made.id, poll_interval_ms=100)
        assert done.status == "completed" and done.progress == 100, done
        client.videos.download_content(made.id).write_to_file(tmp_path / "cat.mp4")
        assert len(list(read_pictures(tmp_path / "cat.mp4"))) == 9
        client.videos.download_content(made.id, variant="thumbnail").write_to_file(tmp_path / "cat.webp")
        with Image.open(tmp_path / "cat.webp") as thumbnail:
            assert thumbnail.size == (WIDTH, HEIGHT)

        with picture.open("rb") as file:
            image = client.videos.create_and_poll(
                prompt="a dog",
                model="image",
                input_reference=file,
                size="96x64",
                extra_body=steps,
                poll_interval_ms=100,
            )  # type: ignore[arg-type]
        assert image.status == "completed"
        assert [video.id for video in client.videos.list(limit=2).data] == [image.id, made.id]
        assert [video.id for video in client.videos.list(limit=1)] == [image.id, made.id], "page after page"
        assert [model.id for model in client.models.list()] == ["text", "image"]

        held.at(1)
        long = client.videos.create(prompt="a bird", extra_body=steps)
        wait_for(lambda: client.videos.retrieve(long.id).progress > 0)
        client.post(f"/videos/{long.id}/cancel", cast_to=object)
        held.release()
        assert server.wait_until_over(long.id)["status"] == "cancelled"

        with pytest.raises(openai.BadRequestError, match="makes videos of 96x64 of 9 frames"):
            client.videos.create(prompt="a cat", size="1280x720")
        with pytest.raises(openai.BadRequestError, match="bogus: is no field") as raised:
            client.videos.create(prompt="a cat", extra_body={"bogus": 1})
        assert (raised.value.code, raised.value.param) == ("unknown_field", "bogus")
        for video in (made, image, long):
            assert client.videos.delete(video.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(made.id)
        assert client.videos.list().data == []


def test_curl(server: RunningServer, picture: Path, tmp_path: Path) -> None:
    """As docs/serving.md has it."""

    def curl(*arguments: str) -> str:
        command = ["curl", "--silent", "--show-error", "--fail-with-body", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    url = f"{server.url}/v1/videos"
    form = ("-F", "prompt=a cat", "-F", "num_inference_steps=3")
    asked = [
        json.loads(curl(url, "--json", '{"prompt": "a cat", "num_inference_steps": 3}')),
        json.loads(curl(url, *form)),
        json.loads(curl(url, *form, "-F", "model=image", "-F", f"input_reference=@{picture}")),
    ]
    for made in asked:
        assert server.wait_until_over(made["id"])["status"] == "completed"
        curl("-o", str(tmp_path / "video.mp4"), f"{url}/{made['id']}/content")
        assert len(list(read_pictures(tmp_path / "video.mp4"))) == 9
        assert json.loads(curl("-X", "DELETE", f"{url}/{made['id']}"))["deleted"]


def test_the_page_in_a_browser(server: RunningServer, tmp_path: Path) -> None:
    """Watches the routes of a running step and cancels it; fills the form, plays the video, and deletes both."""
    if chromium.find() is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    with chromium.Chromium(tmp_path / "profile") as browser:
        browser.open(server.url)
        # The longest job that is taken: it runs for a while on a fast machine, too. It is cancelled.
        status, made = server.ask("/v1/videos", {"prompt": "a long walk", "num_inference_steps": 4 * LONG, "n": 4})
        assert status == 200, made
        shown = "document.querySelector('article.in_progress img.routes')"
        browser.wait_for(f"{shown} && {shown}.complete && {shown}.naturalWidth > 0")
        first = browser.run(f"{shown}.src")
        browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "running.png")
        browser.wait_for(f"{shown} && {shown}.src !== {json.dumps(first)}")
        browser.click("article.in_progress form button")
        assert server.wait_until_over(made["id"])["status"] == "cancelled"
        browser.run("document.querySelector('[name=prompt]').value = 'A cat <b>walks</b> on grass'")
        browser.run("document.querySelector('[name=num_inference_steps]').value = 3")
        browser.run("document.querySelector('[name=seed]').value = 5")
        browser.click("#ask button")
        browser.wait_for("document.querySelector('article .prompt').textContent === 'A cat <b>walks</b> on grass'")
        browser.wait_for("document.querySelector('article.completed video')")
        browser.run("document.querySelector('article.completed video').preload = 'auto'")
        browser.wait_for("document.querySelector('video').readyState >= 2")
        assert browser.run(
            "[document.querySelector('video').videoWidth, document.querySelector('video').videoHeight]"
        ) == [
            WIDTH,
            HEIGHT,
        ]
        assert browser.run("fetch(document.querySelector('a[download]').href).then((answer) => answer.ok)")
        browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "completed.png")
        browser.click("article.completed form button")
        browser.click("article.cancelled form button")
        browser.wait_for("document.querySelector('p.empty')")
        browser.wait_for("document.querySelector('#away').hidden")
        browser.run("document.querySelector('[name=model]').value = 'image'")
        browser.run("document.querySelector('[name=model]').dispatchEvent(new Event('change'))")
        assert browser.run("document.querySelector('[name=input_reference]').required")
        browser.run("window.fetch = () => Promise.reject(new TypeError('gone'))")
        browser.wait_for("!document.querySelector('#away').hidden")
        assert browser.errors() == []
        assert all(url.startswith((server.url, "data:")) for url in browser.requested())


def test_clients_that_go_or_dawdle(server: RunningServer) -> None:
    """Gone in an upload, gone in a download, slow in both: the server answers others, and nothing of them is left."""
    made = server.ask("/v1/videos", {"prompt": "a", "num_inference_steps": 3})[1]
    server.wait_until_over(made["id"])
    before = len(os.listdir(server.jobs / "videos"))
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/videos HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    slow = socket.create_connection((host, int(port)))
    slow.sendall(head.encode() + b'{"prompt": ')
    for request in (
        head + '{"prompt":',
        f"GET /v1/videos/{made['id']}/content HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "GET",
    ):
        with socket.create_connection((host, int(port))) as gone:
            gone.sendall(request.encode())
            gone.recv(1) if request.startswith("GET /") else None
    for _ in range(20):
        assert server.ask("/v1/videos")[0] == 200
    slow.close()
    assert len(os.listdir(server.jobs / "videos")) == before
    assert server.ask(f"/v1/videos/{made['id']}", method="DELETE")[0] == 200
    assert "Traceback" not in server.log.read_text()


def test_what_is_killed_goes_on(text_model: Path, tmp_path: Path) -> None:
    """A worker, then the whole server, killed in the middle of videos; then a stop that finishes what runs."""
    model = tmp_path / "own"
    shutil.copytree(text_model.parent, model)
    source, away = model / text_model.name, model / "away.onnx"
    jobs, log, held = tmp_path / "jobs", tmp_path / "log", HeldVideos(tmp_path)

    def start() -> RunningServer:
        return RunningServer(jobs, f"text={source}", log=log, environment=held.environment)

    def wait_for_middle(server: RunningServer, job: str) -> None:
        wait_for(lambda: server.ask(f"/v1/videos/{job}")[1]["step"] == 2)

    held.at(2, prompt="0")
    with start() as server:
        ids = [
            server.ask("/v1/videos", {"prompt": str(number), "num_inference_steps": 4, "seed": number})[1]["id"]
            for number in range(4)
        ]
        wait_for_middle(server, ids[0])
        (worker,) = server.workers()
        source.rename(away)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: source.name in str(server.ask("/ready")[1].get("reasons")))
        assert server.ask("/health")[0] == server.ask(f"/v1/videos/{ids[0]}")[0] == 200
        away.rename(source)
        held.at(2, prompt="1")
        assert server.wait_until_over(ids[0])["status"] == "completed", "its second attempt"
        wait_for_middle(server, ids[1])
        (worker,) = server.workers()
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not _alive(worker))  # it ends with its server
    with start() as server:
        listed = server.ask("/v1/videos?order=asc")[1]["data"]
        assert [video["id"] for video in listed] == ids
        assert [video["status"] for video in listed[2:]] == ["queued"] * 2
        with pytest.raises(JobError, match="has this folder; stop it, or give another one"):
            serve(ServeSettings(models=(ModelSettings(source=source, name="text"),), jobs=jobs), port=0)
        wait_for_middle(server, ids[1])
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.ask("/ready")[1] == {"status": "draining"})
        assert server.ask("/v1/videos", {"prompt": "late"})[0] == 503
        held.release()
        assert server.process.wait(120) == 0
    with closing(JobStore(jobs)) as store:
        found = [store.get(job) for job in ids]
        assert [job.status for job in found] == [Status.COMPLETED] * 2 + [Status.QUEUED] * 2, "one ran at the stop"
        for number, job in enumerate(found[:2]):
            assert job.report is not None and job.report["videos"][0]["seed"] == number
            (result,) = (jobs / "videos" / job.id).glob("result-*")
            assert result.name == "result-2", "of the second attempt"
            assert sorted(path.name for path in result.iterdir()) == ["0.mp4", "0.webp", "result.json"]
        assert sorted(os.listdir(jobs / "videos")) == sorted(ids)


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_port_that_is_taken(text_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [
            sys.executable,
            "-m",
            "vorta_trt.cli",
            "serve",
            str(text_model),
            "--port",
            port,
            "--jobs",
            str(tmp_path),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and f"port {port}" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
