# SPDX-License-Identifier: Apache-2.0
"""Does any request make `vorta-trt serve` crash, answer with a 500, or touch what it must not? Random requests.

    python studies/serving_fuzz.py demo/wan-fp32.onnx                      # 100,000 requests over two connections

Requests are made of the fields of the OpenAPI schema with values of every kind, of damaged JSON, forms and images, of
paths that try to leave their folder, and of headers that try to begin another one. A seed and a number make each again.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from running_server import RunningServer

from vorta_trt.benchmarks.harness import write_result
from vorta_trt.serving.video_request import VideoRequest

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
ALLOWED = (503, 507)  # of answers from 500 on: the server stops, the disk is full
FIELDS = [*VideoRequest.model_fields, "bogus", "", "prompt[x]", "input_reference[image_url]", "lora[]", "__proto__"]
TEXTS = ["", "a cat", "\x00", "\r\nX-Evil: 1", "../../etc/passwd", "file:///etc/passwd", "http://169.254.169.254/"]
TEXTS += ["<script>alert(1)</script>", "'; DROP TABLE jobs; --", "\ud800", "\u202e", "é" * 300, "x" * 5000, "NaN", "[1"]
TEXTS += [
    "data:image/png;base64,AAAA",
    "data:,",
    "data:image/png;base64,%%%",
    "96x64",
    "0x0",
    "99999x99999",
    "tea",
    "{",
]
TEXTS += ["broadcast", "%00"]
NUMBERS: list[Any] = [0, -1, 1, 2, 9, 1e308, -1e308, 2**63, 2**64, 10**400, 0.5, float("nan"), float("inf"), True, None]
IDS = [
    "video_" + "0" * 32,
    "video_x",
    "..",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%00",
    "a" * 3000,
    "😀",
    "video_'or'1'='1",
]
IDS += ["page.js", "text"]
PATHS = ["/v1/videos", "/v1/videos/{}", "/v1/videos/{}/content", "/v1/videos/{}/cancel", "/v1/videos/{}/routes"]
PATHS += ["/v1/models", "/v1/models/{}", "/health", "/ready", "/metrics", "/", "/page/{}", "/page/videos", "/login"]
PATHS += ["/page/cancel/{}", "/page/delete/{}", "/openapi.json", "/{}", "//{}", "/v1/../{}"]
METHODS = ["GET", "POST", "DELETE", "PUT", "HEAD", "PATCH", "OPTIONS", "BREW"]
QUERIES = ["limit", "after", "order", "variant", "index", "step", "bogus"]


@dataclass(frozen=True)
class Sent:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None


def make(chance: random.Random) -> Sent:
    """A random request; more than half of them ask for a video."""
    headers = {}
    if chance.random() < 0.1:
        name = chance.choice(["Range", "Origin", "Idempotency-Key", "Authorization", "Cookie", "If-Range", "Accept"])
        value = chance.choice(["bytes=0-", "bytes=9-1", "bytes=a", "null", "x" * 300, "Bearer x", "é", "a=x"])
        headers[name] = value
    if chance.random() < 0.6:
        body, kind = chance.choice((_json, _form, _multipart))(chance)
        if chance.random() < 0.2:
            body = _damaged(chance, body)
        return Sent("POST", chance.choice(["/v1/videos", "/v1/videos", "/v1/videos", "/"]), headers | kind, body)
    path = chance.choice(PATHS).format(chance.choice(IDS))
    if chance.random() < 0.4:
        value = urllib.parse.quote(str(_value(chance)).encode("utf-8", "surrogatepass"))[:2000]
        path += f"?{chance.choice(QUERIES)}={value}"
    content = None if chance.random() < 0.7 else _damaged(chance, b'{"key": "value"}')
    return Sent(chance.choice(METHODS), urllib.parse.quote(path, safe="/%?=&'"), headers, content)


def _value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if kind < 0.45:
        return chance.choice(TEXTS)
    if kind < 0.85 or depth > 2:
        return chance.choice(NUMBERS)
    if kind < 0.93:
        return [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    keys = ["image_url", "method", "skip", "threshold", "x"]
    return {chance.choice(keys): _value(chance, depth + 1) for _ in range(chance.randrange(3))}


def _fields(chance: random.Random) -> dict[str, Any]:
    given = {chance.choice(FIELDS): _value(chance) for _ in range(chance.randrange(5))}
    return {"prompt": "a cat", "num_inference_steps": 1, **given} if chance.random() < 0.8 else given


def _json(chance: random.Random) -> tuple[bytes, dict[str, str]]:
    return json.dumps(_fields(chance)).encode(), {"Content-Type": "application/json"}


def _form(chance: random.Random) -> tuple[bytes, dict[str, str]]:
    pairs = {name: str(value).encode("utf-8", "surrogatepass") for name, value in _fields(chance).items()}
    return urllib.parse.urlencode(pairs).encode(), {"Content-Type": "application/x-www-form-urlencoded"}


def _multipart(chance: random.Random) -> tuple[bytes, dict[str, str]]:
    boundary = chance.choice(["x", "-" * 40, "a b", "é"])
    parts = []
    for name, value in _fields(chance).items():
        head = f'Content-Disposition: form-data; name="{name}"'
        content = str(value).encode("utf-8", "surrogatepass")
        if name.endswith("reference") or chance.random() < 0.1:
            head += f'; filename="{chance.choice(TEXTS)}"\r\nContent-Type: image/png'
            content = _image(chance)
        parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode("utf-8", "surrogatepass") + content + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def _image(chance: random.Random) -> bytes:
    file = io.BytesIO()
    size = chance.choice([(96, 64), (1, 1), (960, 640), (64, 96)])
    Image.new(chance.choice(["RGB", "L", "P"]), size).save(file, chance.choice(["PNG", "WEBP", "GIF", "BMP"]))
    return file.getvalue() if chance.random() < 0.5 else _damaged(chance, file.getvalue())


def _damaged(chance: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(damaged) + 1)
        if chance.random() < 0.3:
            del damaged[at : at + chance.randrange(20)]
        else:
            damaged[at : at + 1] = chance.randbytes(chance.randrange(1, 4))
    return bytes(damaged)


def verdict(sent: Sent, status: int, kind: str, content: bytes) -> str | None:
    """What is wrong with an answer, or None."""
    if status >= 500 and status not in ALLOWED:
        return f"status {status}"
    if status >= 400 and sent.method != "HEAD" and "json" in kind and sent.path.partition("?")[0] != "/ready":
        error = json.loads(content).get("error")
        if error is None:
            return "no error in the answer"
        if not error["message"] or not error["message"].isprintable():
            return f"message {error['message']!r}"
    return "a file of the machine" if b"root:x:0:0" in content else None


def ask(connection: http.client.HTTPConnection, sent: Sent) -> tuple[int, str, bytes]:
    headers = {name: value.encode("latin-1", "replace") for name, value in sent.headers.items()}
    connection.request(sent.method, sent.path, sent.body, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers.get("Content-Type", ""), answer.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="bundle or ONNX file")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="serving-fuzz", help="of the result")
    arguments = parser.parse_args()
    statuses: Counter[int] = Counter()
    wrong: list[dict[str, Any]] = []
    broken = Counter[str]()

    def run(address: str, numbers: range) -> None:
        connection = http.client.HTTPConnection(address, timeout=120)
        for number in numbers:
            sent = make(random.Random(f"{arguments.seed} {number}"))
            try:
                status, kind, content = ask(connection, sent)
            except (OSError, http.client.HTTPException) as error:
                broken[type(error).__name__] += 1
                connection.close()
                continue
            statuses[status] += 1
            if (what := verdict(sent, status, kind, content)) is not None:
                wrong.append({"number": number, "method": sent.method, "path": sent.path[:100], "what": what[:200]})
            if number % 5000 == 0:
                print(f"{number:6} requests, {len(wrong)} wrong", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        jobs, log = Path(folder) / "jobs", Path(folder) / "log"
        with RunningServer(jobs, str(arguments.target), "--queue", "4", log=log) as server:
            server.wait_until_ready()
            began = time.monotonic()
            address = server.url.removeprefix("http://")
            halves = [range(first, arguments.requests, 2) for first in (0, 1)]
            threads = [threading.Thread(target=run, args=(address, numbers)) for numbers in halves]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds = time.monotonic() - began
            alive, ready = server.ask("/health")[0], server.ask("/ready")[0]
            code = server.stop()
            text = log.read_text()
    figures = {
        "target": arguments.target.name,
        "requests": arguments.requests,
        "seed": arguments.seed,
        "seconds": round(seconds, 1),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "connections_closed": dict(broken),
        "wrong": wrong[:50],
        "wrong_in_all": len(wrong),
        "health_after": alive,
        "ready_after": ready,
        "exit_code": code,
        "bugs_in_log": text.count("a bug of vorta-trt"),
        "exceptions_of_the_server_in_log": text.count("Exception in ASGI application"),
    }
    print(json.dumps(figures, indent=2))
    print(f"wrote {write_result(RESULTS, arguments.name, figures)}")


if __name__ == "__main__":
    main()
