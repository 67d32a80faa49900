# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vorta_trt.commands.app import Debug, command
from vorta_trt.commands.expand import Options
from vorta_trt.commands.generate import EngineOptions
from vorta_trt.runtime.sampling.presets import PRESETS

if TYPE_CHECKING:
    from vorta_trt.serving.settings import ServeSettings

KEYS = "VORTA_TRT_API_KEYS"  # the environment variable
MIB = 1 << 20
MINUTE, HOUR = 60.0, 3600.0


@dataclass(frozen=True)
class Limits(Options):
    """Options of a server's limits."""

    queue: Annotated[int, typer.Option(min=1, help="How many jobs may wait; one more is refused with 429.")] = 64
    queue_per_key: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many jobs of one API key may wait [default: half of --queue where there are several keys]."
        ),
    ] = None
    max_videos: Annotated[int, typer.Option(min=1, max=64, help="The most videos of one request (n).")] = 4
    max_upload: Annotated[
        float, typer.Option(metavar="MIB", min=0.01, max=1 << 20, help="The largest body of a request.")
    ] = 32
    max_pixels: Annotated[int, typer.Option(min=1, help="The most pixels of an image in a request.")] = 40_000_000
    keep: Annotated[
        float, typer.Option(metavar="HOURS", min=0.001, max=1_000_000, help="How long results stay after completion.")
    ] = 168
    stall: Annotated[
        float,
        typer.Option(
            metavar="MINUTES",
            min=0.01,
            max=1_000_000,
            help="A worker that begins no step or stage for this long is killed.",
        ),
    ] = 30
    attempts: Annotated[
        int, typer.Option(min=1, help="How often a job is begun, at most, if its worker or server is lost.")
    ] = 3


@command(
    "vorta-trt serve model.bundle",
    "vorta-trt serve model.bundle --checkpoint CHECKPOINT --port 8080 --jobs /var/lib/vorta-trt",
    "vorta-trt serve small=model.bundle large=other.bundle --host 0.0.0.0 --api-key-file keys.txt",
)
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]BUNDLE|ONNX...",
            help="A bundle or an exported ONNX file, and its name in requests [default: the file's]. Requests without "
            "a name get the first one.",
        ),
    ],
    engine: EngineOptions,
    limits: Limits,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The pipeline folder of all models [default: for each, the one that it was made from, if it lies "
            "beside it or here]."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="|".join(PRESETS), help="Sampling settings of requests that do not say [default: none]."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 is any free one.")] = 8000,
    jobs: Annotated[Path, typer.Option(help="The folder of jobs and results; a restart goes on with it.")] = Path(
        "vorta-trt-jobs"
    ),
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A key that requests must have; may be given several times. Others see it in the list of processes: "
            f"better {KEYS}, keys separated by commas, or --api-key-file."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file with a key on every line; lines that begin with # are comments."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name under which clients may ask for this server [default: at a loopback address, its names; else "
            "any]."
        ),
    ] = None,
    allow_image_host: Annotated[
        list[str] | None,
        typer.Option(help="A server from which images may be fetched over HTTPS [default: no URL is opened]."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes that make videos side by side, each with the models loaded.")
    ] = 1,
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="P",
            min=1,
            help="How many GPUs of each worker make a video together [default: as many as the bundle is built for].",
        ),
    ] = None,
    log: Annotated[str, typer.Option(metavar="json|text", help="The format of the log on stderr.")] = "json",
    debug: Debug = False,
) -> None:
    """Serve videos over HTTP, as OpenAI's video API does.

    There is a page at /, and /metrics for Prometheus. A job is on the disk before its request is answered: after a
    crash, a restart with the same --jobs goes on. SIGTERM or Ctrl-C finishes the running jobs first; a second one stops
    at the next step.
    """
    if preset is not None and preset not in PRESETS:
        raise typer.BadParameter(f"{preset!r}: must be one of {', '.join(PRESETS)}", param_hint="--preset")
    if log not in ("json", "text"):
        raise typer.BadParameter(f"{log!r}: must be json or text", param_hint="--log")
    from vorta_trt.plugins.extras import import_extra

    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        import_extra(package, "serve")
    from vorta_trt.runtime.video_file import check_encoder
    from vorta_trt.serving.access import LOOPBACK
    from vorta_trt.serving.logs import set_up_logs
    from vorta_trt.serving.server import serve as run

    check_encoder()
    set_up_logs(debug, as_json=log == "json")
    keys = _keys(api_key or [], api_key_file)
    if not keys and host not in LOOPBACK:
        typer.echo(f"warning: whoever reaches {host} may use this server; give --api-key-file", err=True)
    settings = _settings(models, engine, limits, checkpoint, preset, jobs, gpus)
    settings = settings.model_copy(
        update={
            "api_keys": keys,
            "hosts": _hosts(host, allow_host),
            "image_hosts": tuple(allow_image_host or ()),
            "workers": workers,
        }
    )
    run(settings, host, port, debug=debug, as_json=log == "json", on_start=lambda url: typer.echo(f"serving at {url}"))


def _settings(
    models: list[str],
    engine: EngineOptions,
    limits: Limits,
    checkpoint: Path | None,
    preset: str | None,
    jobs: Path,
    gpus: int | None,
) -> ServeSettings:
    from vorta_trt.serving.settings import ModelSettings, ServeSettings

    if (gpus or 1) > 1 and engine.device is not None:
        raise typer.BadParameter(
            f"{engine.device}: each of several processes has the GPU of its number; choose GPUs with "
            f"CUDA_VISIBLE_DEVICES",
            param_hint="--device",
        )
    pipeline = {name: value for name, value in engine.arguments().items() if value is not None}
    return ServeSettings(
        models=tuple(
            ModelSettings(**_named(model), checkpoint=checkpoint, preset=preset, pipeline=pipeline, gpus=gpus)
            for model in models
        ),
        jobs=jobs,
        most_queued=limits.queue,
        most_queued_per_key=limits.queue_per_key,
        most_videos=limits.max_videos,
        most_upload_bytes=int(limits.max_upload * MIB),
        most_image_pixels=limits.max_pixels,
        keep_seconds=limits.keep * HOUR,
        stall_seconds=limits.stall * MINUTE,
        most_attempts=limits.attempts,
    )


def _named(model: str) -> dict[str, Any]:
    """Parses NAME=PATH or a path; an existing path that contains "=" is taken as a path."""
    name, equals, path = model.partition("=")
    if not equals or Path(model).exists():
        return {"source": Path(model)}
    if not name or not path:
        raise typer.BadParameter(f"{model!r}: must be a path, or NAME=PATH", param_hint="MODELS")
    return {"source": Path(path), "name": name}


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """All API keys. An option, variable or file without any key is refused: the server would be open to everyone."""
    places = [("--api-key", [key]) for key in given]
    if environment := os.environ.get(KEYS):  # an empty variable counts as not given
        places.append((KEYS, environment.split(",")))
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{file}: cannot be read ({error})", param_hint="--api-key-file") from None
        places.append(("--api-key-file", [line for line in lines if not line.lstrip().startswith("#")]))
    keys: list[str] = []
    for place, written in places:
        found = [key.strip() for key in written if key.strip()]
        if not found:
            raise typer.BadParameter("has no key; give one, or leave it out", param_hint=place)
        if not all(key.isascii() and key.isprintable() and " " not in key for key in found):
            raise typer.BadParameter(
                "a key has other letters than printable ASCII without spaces, which HTTP headers do not carry; "
                "choose another one",
                param_hint=place,
            )
        keys += found
    return tuple(dict.fromkeys(keys))


def _hosts(host: str, allowed: list[str] | None) -> tuple[str, ...]:
    from vorta_trt.serving.access import LOOPBACK

    if allowed:
        return (*allowed, *LOOPBACK)
    return LOOPBACK if host in LOOPBACK else ()
