# SPDX-License-Identifier: Apache-2.0
"""Two settings of one model side by side: the same prompts from the same noise, sampled with both, then compared.

A setting is written as parts with commas between them:

    dense                           full attention everywhere
    routed                          as the model is: its router, and the calibrated routes of its bundle
    tau=0.4                         routing threshold
    override=FILE, override=none    calibrated routes, or not those of the bundle
    dense-first=2, dense-last=1     steps at the ends with full attention
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vorta_trt.model.constants import DENSE_TAU
from vorta_trt.model.records import first_error
from vorta_trt.runtime.comparison.compare import Report, compare_samples
from vorta_trt.runtime.comparison.image_quality import load_lpips
from vorta_trt.runtime.comparison.report import CompareReport
from vorta_trt.runtime.frames import SUFFIXES
from vorta_trt.runtime.from_checkpoint import Source
from vorta_trt.runtime.pipelines.experts import BUNDLED
from vorta_trt.runtime.pipelines.experts import Source as ModelSource
from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo, VortaPipeline
from vorta_trt.runtime.pipelines.planned import PlannedRequest
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.pipelines.prompts import output_files
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.video_file import check_encoder

if TYPE_CHECKING:
    from vorta_trt.model.transformer import RoutedTransformer

FRAMES = ".npy"  # of the samples: what is compared has not been through a codec


@dataclass(frozen=True)
class Setting:
    """How to sample; see the module's text.

    Attributes:
        text: as given. params: what it says of `SamplingParams`. route_override: of `RequestPlanner`.
    """

    text: str
    params: dict[str, Any] = field(default_factory=dict)
    route_override: str | Path | None = BUNDLED

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Raises ValueError, naming the part that is none."""
        setting = cls(text)
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            try:
                setting = setting._with(name, value if equals else None)
            except (ValueError, KeyError) as error:
                reason = f" ({error})" if equals and isinstance(error, ValueError) else ""
                raise ValueError(
                    f"setting {text!r}: {part.strip()!r} is none{reason}; use dense, routed, tau=0.4, override=FILE, "
                    f"override=none, dense-first=2 or dense-last=1, with commas between several"
                ) from error
        return setting

    def _with(self, name: str, value: str | None) -> Setting:
        if value is None:
            whole: dict[str, dict[str, Any]] = {"dense": {"tau": DENSE_TAU}, "routed": {}}
            override = None if name == "dense" else self.route_override
            return replace(self, params=self.params | whole[name], route_override=override)
        if name == "override":
            return replace(self, route_override=None if value == "none" else Path(value))
        names = {"tau": "tau", "dense-first": "dense_first", "dense-last": "dense_last"}
        given: dict[str, Any] = {names[name]: float(value) if name == "tau" else int(value)}
        try:
            SamplingParams(**given)
        except ValidationError as error:
            raise ValueError(first_error(error)) from error
        return replace(self, params=self.params | given)


def compare_settings(
    target: Path,
    first: Setting,
    second: Setting,
    prompts: Sequence[str],
    folder: Path,
    report: Report,
    *,
    source: Sequence[Source] | None = None,
    checkpoint: Path | None = None,
    params: SamplingParams | None = None,
    executor: str | None = None,
    video: Path | None = None,
    fps: float | None = None,
    lpips: bool | None = None,
) -> CompareReport:
    """`compare_samples` of what two settings of one model make of the same prompts.

    Args:
        target: A bundle or an exported ONNX file; not looked at with `source`.
        first: One setting.
        second: The other one.
        prompts: Each is sampled with both.
        folder: Where the samples go, as first/000.npy, second/000.npy and so on.
        report: Called with what is done, how much of it, and how much there is.
        source: A checkpoint, which runs in torch; of two experts, both.
        checkpoint: As for `RequestPlanner`.
        params: What is common to both; its seed is 0 unless given.
        executor: As for `Engine`.
        video: As for `compare_samples`.
        fps: As for `compare_samples`; the model's own by default.
        lpips: As for `compare_samples`.

    Raises:
        FileExistsError: Other samples lie in the folder.
        VortaError: What generating and comparing raise.
    """
    if lpips:
        load_lpips()  # what cannot be measured is said before anything is sampled
    if video is not None:
        check_encoder()
    sampled: ModelSource = target
    if source is not None:
        models = [_on_device(each.model(materialize=True)) for each in source]
        sampled = models[0] if len(models) == 1 else (models[0], models[1])
        checkpoint = checkpoint or source[0].checkpoint
    variant = None if source is None else source[0].variant
    planners = [
        RequestPlanner(sampled, checkpoint, route_override=setting.route_override, variant=variant)
        for setting in (first, second)
    ]
    common = (params or SamplingParams()).model_dump(exclude_unset=True)
    requests = [SamplingParams(**({"seed": 0} | common | setting.params)) for setting in (first, second)]
    for planner, request in zip(planners, requests, strict=True):
        planner.plan(request)  # says what is wrong before anything large is loaded
    places = [_sample_files(folder / name, len(prompts)) for name in ("first", "second")]
    for files, planner, request, setting in zip(places, planners, requests, (first, second), strict=True):
        report(f"loading for {setting.text}", 0, 0)
        with VortaPipeline(planner, executor=executor) as pipe:
            _sample(pipe, prompts, files, request, setting.text, report)
    compared = compare_samples(
        folder / "first", folder / "second", report, video=video, fps=fps or planners[0].frames_per_second, lpips=lpips
    )
    return compared.model_copy(update={"first": first.text, "second": second.text})


def _on_device(model: RoutedTransformer) -> RoutedTransformer:
    """On the GPU, if there is one."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


def _sample(
    pipe: VortaPipeline,
    prompts: Sequence[str],
    files: Sequence[Path],
    request: SamplingParams,
    text: str,
    report: Report,
) -> None:
    """A sample of every prompt into its file."""

    def show(number: int, step: int, planned: PlannedRequest) -> None:
        report(f"{text}: sample {number + 1} of {len(prompts)}, step {step + 1}", step, len(planned.steps.compute))

    def write(number: int, video: GeneratedVideo) -> None:
        video.save(files[number])

    pipe.generate_each(prompts, write, params=request, on_step=show, on_stage=report)


def _sample_files(folder: Path, count: int) -> list[Path]:
    """The files of one setting's samples; refuses a folder with others, which would be compared, too."""
    files = output_files(folder, count, FRAMES)
    if others := sorted(
        path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path not in files
    ):
        raise FileExistsError(
            f"{folder}: holds {others[0]}, which is not of these {count} prompts and would be compared, too; give "
            f"another folder, or empty this one"
        )
    return files
