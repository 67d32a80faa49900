# SPDX-License-Identifier: Apache-2.0
"""The HTML of the page. Whatever a client sent is escaped, and the page loads nothing from other servers."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from vorta_trt.serving.catalogue import ServedModel
from vorta_trt.serving.job import Status
from vorta_trt.serving.routes_picture import COLOURS
from vorta_trt.serving.video_view import VideoObject

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vorta-trt</title>
<link rel="stylesheet" href="/page/page.css">
<link rel="icon" href="data:,">
</head>
<body>
<header><h1>vorta-trt</h1><p>{about}</p></header>
"""
_FOOT = '<script src="/page/page.js"></script>\n</body>\n</html>\n'


def login_page(wrong: bool = False) -> str:
    """The login page of a server with API keys."""
    told = '<p class="error" role="alert">This key is not known here.</p>' if wrong else ""
    return (
        _HEAD.format(about="This server asks for an API key.")
        + f"""<main class="narrow">{told}
<form method="post" action="/login" class="card">
<label>API key <input type="password" name="key" required autocomplete="current-password"></label>
<button>Go on</button>
</form></main>
"""
        + "</body>\n</html>\n"
    )


def main_page(
    models: Sequence[ServedModel],
    videos: Sequence[VideoObject],
    *,
    logout: bool,
    error: str | None = None,
    sent: Mapping[str, Any] | None = None,
) -> str:
    """The form, and the caller's jobs.

    Args:
        models: Models that the form offers.
        videos: The caller's jobs, the newest first.
        logout: Whether there is a key to forget.
        error: Message about what is wrong with the form that was sent; None if nothing is.
        sent: Values of that form, which are filled in again; a browser does not let a page fill in files.
    """
    told = "" if error is None else f'<p class="error" role="alert">{_text(error)}</p>'
    leave = (
        '<form method="post" action="/logout"><button class="quiet">Forget the key</button></form>' if logout else ""
    )
    cards = "\n".join(video_card(video) for video in videos)
    empty = '<p class="empty">No videos yet.</p>'
    return (
        _HEAD.format(about="Describe a video; it is queued, made, and kept here.")
        + f"<main>\n<section>{told}\n{_form(models, sent or {})}\n{leave}</section>\n"
        + '<p class="error" id="away" role="alert" hidden>The server does not answer; what is shown is old.</p>\n'
        + f'<section id="videos" aria-live="polite">\n{cards or empty}\n</section>\n</main>\n'
        + _FOOT
    )


def _form(models: Sequence[ServedModel], sent: Mapping[str, Any]) -> str:
    def text(name: str) -> str:
        value = sent.get(name, "")
        return _text(value) if isinstance(value, str) else ""

    def chosen(name: str, value: str) -> str:
        return " selected" if sent.get(name) == value else ""

    choices = "".join(
        f'<option data-images="{" ".join(model.images)}"{chosen("model", model.name)}>{_text(model.name)}</option>'
        for model in models
    )
    sizes = "".join(
        f'<option value="{size.width}x{size.height} {size.frames}" data-model="{_text(model.name)}"'
        f"{chosen('page_size', f'{size.width}x{size.height} {size.frames}') * (sent.get('model') == model.name)}>"
        f"{size.width}×{size.height}, {size.frames} frames ({size.frames / model.planner.frames_per_second:.1f} s)"
        "</option>"
        for model in models
        for size in model.sizes
    )
    return f"""<form method="post" action="/" enctype="multipart/form-data" class="card" id="ask">
<label>Prompt <textarea name="prompt" rows="4" required placeholder="A cat walks on grass">
{text("prompt")}</textarea></label>
<label>Model <select name="model">{choices}</select></label>
<label>Size <select name="page_size">{sizes}</select></label>
<div class="row">
<label>Steps <input type="number" name="num_inference_steps" min="1" max="1000" placeholder="default"
 value="{text("num_inference_steps")}"></label>
<label>Seed <input type="number" name="seed" min="0" placeholder="random" value="{text("seed")}"></label>
</div>
<label>First image <input type="file" name="input_reference" accept="image/png,image/jpeg,image/webp"></label>
<button>Make the video</button>
</form>"""


def video_card(video: VideoObject) -> str:
    """The card of one job."""
    content = f"/v1/videos/{video.id}/content"
    parts = [f'<p class="prompt">{_text(video.prompt)}</p>', f'<p class="state">{_text(state_line(video))}</p>']
    if video.status in (Status.QUEUED, Status.IN_PROGRESS):
        parts.append(f'<progress max="100" value="{video.progress}">{video.progress} %</progress>')
    if video.status is Status.IN_PROGRESS:
        keys = "".join(
            f'<span class="key" style="--colour: rgb{colour}">{branch.name.lower()}</span>'
            for branch, colour in COLOURS.items()
        )
        step = min(video.step, video.steps - 1)
        parts.append(
            f'<figure><img class="routes" alt="Routes of step {step}: a row for each layer, a column for each head" '
            f'src="/v1/videos/{video.id}/routes?shown={step}">'
            f"<figcaption>Routes of this step, layers down, heads across: {keys}</figcaption></figure>"
        )
    if video.status is Status.COMPLETED:
        for number in range(video.num_outputs):
            query = f"index={number}"
            parts.append(
                f'<video controls loop muted playsinline preload="none" '
                f'poster="{content}?variant=thumbnail&amp;{query}" '
                f'src="{content}?{query}"></video>'
            )
            parts.append(f'<a class="button" download="{video.id}-{number}.mp4" href="{content}?{query}">Download</a>')
    action = ("cancel", "Cancel") if video.status in (Status.QUEUED, Status.IN_PROGRESS) else ("delete", "Delete")
    parts.append(
        f'<form method="post" action="/page/{action[0]}/{video.id}"><button class="quiet">{action[1]}</button></form>'
    )
    body = "\n".join(parts)
    return (
        f'<article class="card {video.status.value}" id="{video.id}" data-state="{_state(video)}">\n{body}\n</article>'
    )


def state_line(video: VideoObject) -> str:
    """Where a job is, in words."""
    what = f"{video.model}, {video.size}, {video.num_frames} frames"
    eta = "" if video.eta_seconds is None else f", about {duration(video.eta_seconds)} left"
    if video.status is Status.QUEUED:
        return f"{what}: waits, {video.queue_position} before it{eta}"
    if video.status is Status.IN_PROGRESS:
        return f"{what}: {video.stage or 'begins'}, step {video.step} of {video.steps}{eta}"
    if video.status is Status.COMPLETED:
        seeds = ", ".join(map(str, video.seeds or []))
        return f"{what}: made in {duration(video.inference_time_s or 0)}, seed {seeds}"
    if video.error is not None:
        return f"{what}: failed: {video.error.message}"
    return f"{what}: {video.status.value}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _state(video: VideoObject) -> str:
    """A text that changes when the card has to be drawn again."""
    return f"{video.status.value}-{video.progress}-{video.step}-{_text(video.stage)}-{video.queue_position}"


def _text(text: str) -> str:
    """Text from a client, escaped for HTML; lone surrogates, which cannot be encoded, become question marks."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))
