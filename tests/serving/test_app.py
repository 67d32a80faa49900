# SPDX-License-Identifier: Apache-2.0
"""The routes of the application over a store, without a worker: what is answered, and what is refused and how."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from running_server import wait_for

from vorta_trt.serving import Catalogue, JobStore, ServeSettings, create_app
from vorta_trt.serving.job import Status
from vorta_trt.serving.logs import JsonFormatter, TextFormatter
from vorta_trt.serving.metric_table import METRICS

from .test_job_store import finish

Client = Callable[..., TestClient]
# SERVING.md's list.
OBJECT = (
    "id object model status progress created_at completed_at expires_at size seconds prompt error url num_outputs "
    "peak_memory_mb inference_time_s"
).split()


@pytest.fixture
def client(catalogue: Catalogue, store: JobStore) -> Any:
    """Makes clients of applications with these settings."""
    opened: list[TestClient] = []

    def make(
        draining: threading.Event | None = None, on_queued: Callable[[], None] = lambda: None, **values: Any
    ) -> TestClient:
        settings = ServeSettings(
            models=tuple(model.settings for model in catalogue.models.values()), jobs=store.folder, **values
        )
        app = create_app(settings, store, catalogue, draining=draining, on_queued=on_queued)
        made = TestClient(app, base_url="http://localhost")
        opened.append(made.__enter__())
        return made

    yield make
    for each in opened:
        each.__exit__(None, None, None)


def png(width: int = 96, height: int = 64) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 128, np.uint8)).save(file, "PNG")
    return file.getvalue()


def part(name: str, value: str) -> bytes:
    """Of a multipart body with the boundary x; the last boundary is b"--x--"."""
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def error_of(answer: Any, status: int, code: str, field: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, field)
    assert error["type"] and error["message"].isprintable()
    return str(error["message"])


def test_a_job_over_its_life(client: Client, store: JobStore) -> None:
    web = client()
    made = web.post("/v1/videos", json={"prompt": "a cat", "num_inference_steps": 4, "seed": 1}).json()
    assert set(OBJECT) <= set(made)
    expected = {
        "object": "video",
        "model": "text",
        "status": "queued",
        "progress": 0,
        "size": "96x64",
        "prompt": "a cat",
    }
    assert {name: made[name] for name in expected} == expected
    assert made["seconds"] == "0.5625" and made["queue_position"] == 0 and made["num_outputs"] == 1
    error_of(web.get(f"/v1/videos/{made['id']}/content"), 409, "not_completed")

    job = store.claim("w", ["text"])
    assert job is not None
    store.report_progress(job, stage="denoising", step=1)
    running = web.get(f"/v1/videos/{made['id']}").json()
    assert (running["status"], running["progress"], running["stage"]) == ("in_progress", 25, "denoising")
    with store.files.new_result(job.id, 1) as folder:
        (folder / "0.mp4").write_bytes(b"0123456789")
    video = {"seed": 1, "file": "0.mp4", "thumbnail": "0.webp", "size": [9, 64, 96], "length": 0.5625}
    steps = {"computed": 4, "reused": 0, "seconds": {"transformer": [0.5] * 4}, "routed_heads": {"full": 24}}
    stages = {"text": 0.1, "denoise": 2.0, "decode": 0.2, "encode": 0.1}
    report = {"seconds": 2.5, "videos": [{**video, "stages": stages}], "steps": steps, "peak_memory_mb": 5.0}
    store.complete(job, {**report, "flops": job.flops})
    done = web.get(f"/v1/videos/{made['id']}").json()
    assert (done["status"], done["progress"], done["seeds"]) == ("completed", 100, [1])
    assert (done["inference_time_s"], done["peak_memory_mb"]) == (2.5, 5.0)
    assert done["expires_at"] - done["completed_at"] == 7 * 24 * 3600
    content = web.get(done["url"])
    assert (content.content, content.headers["content-type"]) == (b"0123456789", "video/mp4")
    part = web.get(done["url"], headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    for meaningless in ("bytes=4-2", "bytes=a-b", "lines=1-2"):
        whole = web.get(done["url"], headers={"Range": meaningless})
        assert (whole.status_code, whole.content) == (200, b"0123456789")
    behind = web.get(done["url"], headers={"Range": "bytes=10-"})
    error_of(behind, 416, "range_not_satisfiable", "Range")
    assert behind.headers["content-range"] == "bytes */10"
    for path in (done["url"], "/health"):
        head = web.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == web.get(path).headers["content-length"]
    error_of(web.get(f"{done['url']}?index=1"), 404, "video_not_found", "index")
    error_of(web.get(f"{done['url']}?variant=thumbnail"), 404, "video_not_found")

    text = web.get("/metrics").text
    for sample in (
        'vorta_requests_total{status="completed"} 1.0',
        "vorta_requests_running 0.0",
        'vorta_stage_duration_seconds_sum{stage="denoise"} 2.0',
        'vorta_step_duration_seconds_count{expert="transformer"} 4.0',
        'vorta_denoise_steps_total{kind="computed"} 4.0',
        'vorta_routed_heads_total{branch="full"} 24.0',
        "vorta_video_seconds_total 0.5625",
        "vorta_queue_time_seconds_count 1.0",
    ):
        assert f"\n{sample}\n" in text

    waiting = web.post("/v1/videos", json={"prompt": "b", "num_inference_steps": 8}).json()
    assert waiting["eta_seconds"] == pytest.approx(8 * 0.5 + 0.4, rel=0.2), "from what the first one took"
    assert web.delete(f"/v1/videos/{made['id']}").json() == {
        "id": made["id"],
        "object": "video.deleted",
        "deleted": True,
    }
    error_of(web.get(done["url"]), 404, "video_not_found")


def test_a_download_goes_on_when_its_job_is_deleted(client: Client, store: JobStore) -> None:
    from vorta_trt.serving.videos_api import HeldFile

    web = client()
    made = web.post("/v1/videos", json={"prompt": "a"}).json()
    job = store.claim("w", ["text"])
    assert job is not None
    finish(store, job)
    answer = HeldFile(store.files.result(job.id, 1) / "0.mp4", media_type="video/mp4", filename="a.mp4")
    store.delete(made["id"])
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    import asyncio

    scope = {"type": "http", "method": "GET", "headers": [], "path": "/", "asgi": {"spec_version": "2.4"}}
    asyncio.run(answer(scope, receive, send))
    assert b"".join(message.get("body", b"") for message in sent) == b"video"


def test_lists(client: Client) -> None:
    web = client()
    ids = [web.post("/v1/videos", json={"prompt": str(number)}).json()["id"] for number in range(3)]
    page = web.get("/v1/videos?limit=2").json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    assert (page["first_id"], page["last_id"]) == (ids[2], ids[1])
    assert [each["id"] for each in web.get(f"/v1/videos?after={ids[1]}").json()["data"]] == ids[:1]
    assert [each["id"] for each in web.get("/v1/videos?order=asc").json()["data"]] == ids
    error_of(web.get("/v1/videos?limit=0"), 400, "invalid_value", "limit")
    error_of(web.get("/v1/videos?after=video_x"), 404, "video_not_found")
    models = web.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["text", "image"]
    assert models[0]["sizes"] == [{"size": "96x64", "num_frames": 9, "seconds": 0.5625}]
    assert models[1]["images"] == ["image"] == web.get("/v1/models/image").json()["images"]
    error_of(web.get("/v1/models/other"), 404, "model_not_found", "model")


def test_cancelling_a_job_that_waits(client: Client) -> None:
    web = client()
    made = web.post("/v1/videos", json={"prompt": "a"}).json()
    cancelled = web.post(f"/v1/videos/{made['id']}/cancel").json()
    assert cancelled["status"] == "cancelled" and cancelled["completed_at"]
    assert web.get(f"/v1/videos/{made['id']}").json()["status"] == "cancelled"
    error_of(web.post("/v1/videos/video_x/cancel"), 404, "video_not_found")


def test_images_in_all_three_ways(client: Client, store: JobStore) -> None:
    web, content = client(), png()
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    asked = {"prompt": "a", "model": "image"}
    answers = [
        web.post("/v1/videos", data=asked, files={"input_reference": ("../../etc/passwd", content, "image/png")}),
        web.post("/v1/videos", json={**asked, "reference_url": url}),
        web.post("/v1/videos", json={**asked, "input_reference": {"image_url": url}}),
        web.post("/v1/videos", data={**asked, "input_reference[image_url]": url}, files={"n": (None, b"1")}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        folder = store.files.folder(answer.json()["id"])
        assert sorted(path.name for path in folder.iterdir()) == ["image.png", "request.json"]
        assert (folder / "image.png").read_bytes() == content
        assert "passwd" not in (folder / "request.json").read_text()


def test_an_image_is_decoded_after_all_other_checks_and_few_at_a_time(
    client: Client, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from vorta_trt.serving.image_bytes import SentImage
    from vorta_trt.serving.service import MOST_DECODED

    now, most, lock, real = 0, 0, threading.Lock(), SentImage.load
    all_places = threading.Event()

    def load(self: SentImage) -> Image.Image:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == MOST_DECODED:
                all_places.set()
        assert all_places.wait(60)
        time.sleep(0.05)  # in which one more would come
        with lock:
            now -= 1
        return real(self)

    monkeypatch.setattr(SentImage, "load", load)
    web, content = client(), png()

    def ask(**fields: str) -> Any:
        return web.post("/v1/videos", data={"prompt": "a", **fields}, files={"input_reference": content})

    for refused in ({"model": "text"}, {"model": "image", "n": "9"}, {"model": "image", "size": "9x9"}):
        assert ask(**refused).status_code == 400
    assert most == 0
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(model="image"), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert most == MOST_DECODED


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(7501 * 100)))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"GIF89a", "invalid_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image"),
        (png()[:60], "invalid_image"),
        (bomb(), "image_too_large"),
        (png(2000, 2000), "image_too_large"),
        (png(10, 640), "invalid_value"),
    ],
    ids=["gif", "svg", "cut", "bomb", "large", "stretched"],
)
def test_images_that_are_refused(client: Client, store: JobStore, content: bytes, code: str) -> None:
    web = client(most_image_pixels=1_000_000)
    answer = web.post("/v1/videos", data={"prompt": "a", "model": "image"}, files={"input_reference": content})
    error_of(answer, 400, code, "input_reference")
    assert list(store.files.root.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http://127.0.0.1/a.png", "https://example.com/a.png", "/etc/passwd", "../image.png"]
)
def test_nothing_that_a_request_names_is_opened(client: Client, url: str) -> None:
    web = client()
    for field, value in (("reference_url", url), ("input_reference", url), ("input_reference", {"image_url": url})):
        told = error_of(web.post("/v1/videos", json={"prompt": "a", field: value}), 400, "url_not_allowed", field)
        assert "opens neither URLs nor paths" in told


def test_images_of_hosts_that_are_allowed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from vorta_trt.serving.remote_images import RemoteImages

    fetched: list[str] = []
    monkeypatch.setattr(RemoteImages, "fetch", lambda self, url, field: fetched.append(url) or png())
    web = client(image_hosts=("images.example.com",))
    asked = {"prompt": "a", "model": "image"}
    assert (
        web.post("/v1/videos", json={**asked, "reference_url": "https://images.example.com/a.png"}).status_code == 200
    )
    for url in (
        "http://images.example.com/a.png",
        "https://images.example.com:8443/a.png",
        "https://images.example.com@localhost/a.png",
        "https://a.images.example.com/a.png",
    ):
        error_of(web.post("/v1/videos", json={**asked, "reference_url": url}), 400, "url_not_allowed", "reference_url")
    assert fetched == ["https://images.example.com/a.png"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b"[1]", "application/json", 400, "invalid_json"),
        (b'{"prompt": "\xff"}', "application/json", 400, "invalid_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_json"),
        (b"prompt=a", "text/plain", 415, "unsupported_media_type"),
        (b"", "multipart/form-data", 400, "invalid_form"),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x", 400, "invalid_form"),
        (part("prompt", "a"), "multipart/form-data; boundary=x", 400, "invalid_form"),
        (part("prompt", "a") + part("seed", "77")[:-3], "multipart/form-data; boundary=x", 400, "invalid_form"),
        (
            part("prompt", "a") + part('input_reference"; filename="a', "x") + b"--x",
            "multipart/form-data; boundary=x",
            400,
            "invalid_form",
        ),
        (b"prompt=a&prompt=b", "application/x-www-form-urlencoded", 400, "invalid_value"),
        (b"prompt=a&lora=b&lora[]=c", "application/x-www-form-urlencoded", 400, "invalid_value"),
        (b"prompt=a&bogus=b", "application/x-www-form-urlencoded", 400, "unknown_field"),
    ],
)
def test_bodies_that_are_refused(client: Client, body: bytes, kind: str, status: int, code: str) -> None:
    answer = client().post("/v1/videos", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status and answer.json()["error"]["code"] == code, answer.text


def test_messages_are_one_line_of_text(client: Client) -> None:
    answer = client().post("/v1/videos", json={"prompt": "a", "cache": "\u202e\x00\n"})
    assert "\\u202e" in error_of(answer, 400, "invalid_value", "cache")


def test_bodies_that_are_too_long(client: Client) -> None:
    web = client(most_upload_bytes=1000)
    large = b'{"prompt": "' + b"a" * 100_000 + b'"}'
    error_of(web.post("/v1/videos", content=large), 413, "body_too_large")

    def pieces() -> Any:  # without a Content-Length
        for _ in range(100):
            yield b"a" * 1000

    error_of(web.post("/v1/videos", content=pieces()), 413, "body_too_large")


def test_a_body_is_read_only_for_who_has_a_key(client: Client) -> None:
    web = client(api_keys=("first",))
    error_of(web.post("/login", content=b"a" * 10_000), 413, "body_too_large")
    error_of(web.post("/login", content=iter([b"a" * 1000] * 10)), 413, "body_too_large")  # no Content-Length
    for path in ("/v1/videos", "/"):
        error_of(web.post(path, content=b"{"), 401, "invalid_api_key")


def test_a_full_queue(client: Client, store: JobStore) -> None:
    store.most_queued = 1
    web = client()
    web.post("/v1/videos", json={"prompt": "a"})
    answer = web.post("/v1/videos", json={"prompt": "b"})
    error_of(answer, 429, "queue_full")
    assert int(answer.headers["Retry-After"]) >= 1


def test_it_is_told_that_a_job_was_queued(client: Client) -> None:
    told: list[str] = []
    web = client(on_queued=lambda: told.append("queued"))
    for key, count in (("k", 1), ("k", 1), ("another", 2)):  # the second one is the first one again
        answer = web.post("/v1/videos", json={"prompt": "a"}, headers={"Idempotency-Key": key})
        assert (answer.status_code, len(told)) == (200, count)
    assert web.post("/v1/videos", json={"prompt": "a", "model": "none"}).status_code >= 400
    assert len(told) == 2


def test_idempotency_keys(client: Client) -> None:
    web = client()
    key = {"Idempotency-Key": "k"}
    first = web.post("/v1/videos", json={"prompt": "a"}, headers=key).json()["id"]
    assert web.post("/v1/videos", json={"prompt": "a"}, headers=key).json()["id"] == first
    form = {"prompt": (None, b"a"), "model": (None, b"text"), "seed": (None, b"")}
    assert web.post("/v1/videos", files=form, headers=key).json()["id"] == first, "it asks for the same"
    error_of(
        web.post("/v1/videos", json={"prompt": "b"}, headers=key), 422, "idempotency_key_reused", "Idempotency-Key"
    )
    error_of(
        web.post("/v1/videos", json={"prompt": "b"}, headers={"Idempotency-Key": "k" * 300}),
        400,
        "invalid_value",
        "Idempotency-Key",
    )


def test_a_server_that_stops_takes_nothing_new(client: Client) -> None:
    draining = threading.Event()
    web = client(draining)
    made = web.post("/v1/videos", json={"prompt": "a"}).json()
    draining.set()
    answer = web.post("/v1/videos", json={"prompt": "b"})
    error_of(answer, 503, "draining")
    assert answer.headers["Retry-After"]
    assert web.get(f"/v1/videos/{made['id']}").status_code == 200
    assert (web.get("/ready").status_code, web.get("/health").status_code) == (503, 200)


def test_readiness_is_that_of_the_workers(client: Client, store: JobStore) -> None:
    web = client()
    assert web.get("/ready").json() == {"status": "starting"}
    store.say("w", "ready", {"reason": "", "engines": [{"bundle": "b", "flavour": "rtx", "sm": "89"}]})
    assert (web.get("/ready").status_code, web.get("/ready").json()["status"]) == (200, "ready")
    assert 'vorta_engine_info{bundle="b",flavour="rtx",sm="89"} 1.0' in web.get("/metrics").text
    store.say("w", "failed", {"reason": "values are not finite"})
    answer = web.get("/ready")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["values are not finite"])
    store.say("w", "hung", {"reason": "no step has begun"})
    answer = web.get("/ready")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["no step has begun"])


def test_a_worker_that_gives_no_sign_of_life_is_not_ready(
    client: Client, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = client()
    store.say("w", "ready", {"reason": ""})
    now = time.monotonic()
    monkeypatch.setattr("vorta_trt.serving.worker_states.time.monotonic", lambda: now + 1.5 * store.lease_seconds)
    answer = web.get("/ready")
    assert answer.status_code == 503 and "no sign of life for" in answer.json()["reasons"][0]


def test_api_keys(client: Client) -> None:
    web = client(api_keys=("first", "second"))
    for path in ("/v1/videos", "/v1/models", "/v1/videos/video_x", "/page/videos"):
        error_of(web.get(path), 401, "invalid_api_key")
        error_of(web.get(path, headers={"Authorization": "Bearer other"}), 401, "invalid_api_key")
    error_of(web.post("/v1/videos", content=b"{"), 401, "invalid_api_key")
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("first", "second"))
    made = web.post("/v1/videos", json={"prompt": "a"}, headers=one).json()["id"]
    assert web.get(f"/v1/videos/{made}", headers=one).status_code == 200
    for answer in (
        web.get(f"/v1/videos/{made}", headers=two),
        web.delete(f"/v1/videos/{made}", headers=two),
        web.get(f"/v1/videos/{made}/content", headers=two),
        web.get(f"/v1/videos/{made}/routes", headers=two),
    ):
        error_of(answer, 404, "video_not_found")
    assert web.get("/v1/videos", headers=two).json()["data"] == []
    for path in ("/health", "/metrics"):
        assert web.get(path).status_code == 200


def test_the_page_asks_for_a_key(client: Client) -> None:
    web = client(api_keys=("first",))
    assert "API key" in web.get("/").text and "<textarea" not in web.get("/").text
    assert web.post("/login", data={"key": "wrong"}).status_code == 401
    answer = web.post("/login", data={"key": "first"}, follow_redirects=False)
    assert answer.status_code == 303
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    assert "<textarea" in web.get("/").text
    assert "<textarea" not in web.post("/logout").text


def test_other_sites_and_names(client: Client) -> None:
    web = client(hosts=("localhost",))
    error_of(web.get("/health", headers={"Host": "rebound.example.com"}), 403, "forbidden")
    asked = {"json": {"prompt": "a"}}
    error_of(web.post("/v1/videos", headers={"Origin": "https://evil.example.com"}, **asked), 403, "forbidden")
    error_of(web.post("/v1/videos", headers={"Origin": "null"}, **asked), 403, "forbidden")
    assert web.post("/v1/videos", headers={"Origin": "http://localhost"}, **asked).status_code == 200


def test_what_a_client_writes_is_text_on_the_page(client: Client) -> None:
    web = client()
    web.post("/v1/videos", json={"prompt": "<script>alert(1)</script>\" onload='x"})
    page = web.get("/")
    assert "<script>alert" not in page.text and "&lt;script&gt;" in page.text
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"(src|href)=\"https?:", page.text)


def test_the_form_of_the_page(client: Client) -> None:
    web = client()
    form = {"prompt": "a dog", "model": "text", "page_size": "96x64 9", "num_inference_steps": "", "seed": "3"}
    answer = web.post("/", data=form, files={"input_reference": ("", b"")}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    (job,) = web.get("/v1/videos").json()["data"]
    assert (job["prompt"], job["status"]) == ("a dog", "queued")
    wrong = web.post("/", data={**form, "seed": "x"})
    assert wrong.status_code == 400 and 'role="alert"' in wrong.text and "seed" in wrong.text
    wrong = web.post("/", data={**form, "prompt": "a <dog>", "model": "image", "num_inference_steps": "7"})
    assert wrong.status_code == 400 and "input_reference: is missing" in wrong.text
    assert ">\na &lt;dog&gt;</textarea>" in wrong.text and 'value="7"' in wrong.text and 'value="3"' in wrong.text
    assert '<option data-images="image" selected>image</option>' in wrong.text
    half = json.dumps({**form, "prompt": "a \ud800 dog", "seed": "x"})
    wrong = web.post("/", content=half, headers={"Content-Type": "application/json"})
    assert wrong.status_code == 400 and ">\na ? dog</textarea>" in wrong.text
    web.post(f"/page/cancel/{job['id']}")
    assert "cancelled" in web.get("/page/videos").text
    web.post(f"/page/delete/{job['id']}")
    assert "No videos yet" in web.get("/page/videos").text
    assert web.get("/page/page.js").headers["content-type"].startswith("text/javascript")
    error_of(web.get("/page/markup.py"), 404, "not_found")


def test_the_picture_of_the_routes(client: Client, store: JobStore, catalogue: Catalogue) -> None:
    from vorta_trt.model.geometry import Branch
    from vorta_trt.serving.accepted import Accepted
    from vorta_trt.serving.routes_picture import CELL, COLOURS

    web = client()
    made = web.post("/v1/videos", json={"prompt": "a", "num_inference_steps": 4, "dense_first": 1}).json()
    job = store.get(made["id"])
    accepted = Accepted.from_dict(job.request)
    routes = catalogue.get("text").plan(accepted.params, accepted.size).steps.routes
    assert routes is not None
    pictures = []
    for step in range(4):
        answer = web.get(f"/v1/videos/{made['id']}/routes?step={step}")
        pixels = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
        pictures.append(answer.content)
        for layer, head in np.ndindex(2, 3):
            branch = Branch(int(routes.routes[step, layer, head]))
            assert tuple(pixels[layer * CELL, head * CELL]) == COLOURS[branch]
    running = store.claim("w", ["text"])
    assert running is not None
    store.report_progress(running, step=2)
    assert web.get(f"/v1/videos/{made['id']}/routes").content == pictures[2]
    error_of(web.get(f"/v1/videos/{made['id']}/routes?step=4"), 404, "step_not_found", "step")


def test_random_requests(client: Client) -> None:
    """studies/serving_fuzz.py sends a hundred thousand of them to a running server."""
    import random

    from serving_fuzz import make, verdict

    web = client()
    web.raise_server_exceptions = False  # type: ignore[attr-defined]
    wrong = []
    for number in range(300):
        sent = make(random.Random(f"1 {number}"))
        headers = {name: value.encode("latin-1", "replace") for name, value in sent.headers.items()}
        answer = web.request(sent.method, sent.path, content=sent.body, headers=headers)
        told = verdict(sent, answer.status_code, answer.headers.get("Content-Type", ""), answer.content)
        if told is not None:
            wrong.append((number, sent.method, sent.path, told, answer.text[:200]))
    assert wrong == []


def test_errors_of_routing_have_the_same_form(client: Client) -> None:
    web = client()
    error_of(web.get("/v1/nothing"), 404, "not_found")
    error_of(web.put("/v1/videos"), 405, "method_not_allowed")
    error_of(web.get("/v1/videos/..%2f..%2fetc%2fpasswd/content"), 404, "not_found")
    error_of(web.get("/v1/videos/%00/content"), 404, "video_not_found")


def test_metrics_are_those_of_the_table_and_no_label_is_of_a_request(client: Client) -> None:
    web = client()
    web.post("/v1/videos", json={"prompt": 'a"} evil 1\nvorta_fake 1'})
    text = web.get("/metrics").text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert {*names} == {*METRICS}
    assert "evil" not in text and "fake" not in text


def test_every_job_that_was_computed_is_in_the_duration_however_it_ended(client: Client, store: JobStore) -> None:
    web = client()
    for _ in range(4):
        web.post("/v1/videos", json={"prompt": "a"})
    for number in range(3):
        job = store.claim("w", ["text"])
        assert job is not None
        if number == 0:
            store.fail(job, "not_finite", "values are not finite")
        elif number == 1:
            store.finish_cancelled(job)
        else:
            steps = {"computed": 1, "reused": 0, "seconds": {}, "routed_heads": {}}
            store.complete(job, {"seconds": 1.0, "videos": [], "steps": steps})
    (waiting,) = store.unfinished()
    store.cancel(waiting.id)
    text = web.get("/metrics").text
    assert "vorta_request_duration_seconds_count 3.0" in text
    assert 'vorta_requests_total{status="cancelled"} 2.0' in text, "one of them was never computed"


def test_a_log_line_of_text_has_the_job_and_the_request() -> None:
    def line(**values: object) -> str:
        record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": "told", **values})
        return TextFormatter().format(record)

    assert line(job="video_1").endswith("INFO n: told job=video_1")
    asked = line(method="GET", path="/a b\nfake", status=200, milliseconds=1.5)
    assert asked.endswith(r'told method=GET path="/a b\nfake" status=200 milliseconds=1.5')


def test_a_log_line_is_json_with_the_job(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vorta_trt.serving"):
        made = client().post("/v1/videos", json={"prompt": "a"}).json()
    (record,) = [record for record in caplog.records if record.name == "vorta_trt.serving.service"]
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["job"], entry["message"], entry["level"]) == (made["id"], "queued", "info")
    record.msg, record.args = "a\nb\x1b[31m", ()
    assert JsonFormatter().format(record).isprintable()


def test_jobs_of_lost_workers_are_taken_back_without_a_request(client: Client, store: JobStore) -> None:
    store.lease_seconds = 0.01
    web = client()
    made = web.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    store.claim("lost", ["text"])
    wait_for(lambda: store.get(made).status is Status.QUEUED)


def test_the_store_is_full(client: Client, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    web = client()
    monkeypatch.setattr(Path, "write_text", full)
    answer = web.post("/v1/videos", json={"prompt": "a"})
    error_of(answer, 507, "disk_full")
    assert store.page()[0] == []
