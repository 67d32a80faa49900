# SPDX-License-Identifier: Apache-2.0
"""Two settings of one model side by side: the same prompts from the same noise, sampled with both, then compared.

A setting is written as parts with commas between them:

    dense                           full attention everywhere
    routed                          the model's default: its router, and the calibrated routes of its bundle
    tau=0.4                         routing threshold
    override=FILE, override=none    calibrated routes of a file, or none, even if the bundle has some
    dense-first=2, dense-last=1     steps at the ends with full attention

Three more parts change only the order of floating-point sums. Two settings that differ in these alone show the noise
floor:

    kernels=sm80                    attention kernels, as `PluginLibrary.force_kernels` takes them; on a GPU
    compile                         torch.compile, for a checkpoint in torch
    executor=reference              the executor that runs a bundle or an ONNX file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vorta_trt.model.constants import DENSE_TAU
from vorta_trt.model.images import ImageLike
from vorta_trt.model.records import first_error
from vorta_trt.plugins.kernel_support import held_to
from vorta_trt.runtime.comparison.compare import Report, compare_samples
from vorta_trt.runtime.comparison.image_quality import load_lpips
from vorta_trt.runtime.comparison.report import CompareReport
from vorta_trt.runtime.executors import EXECUTORS
from vorta_trt.runtime.frames import SUFFIXES
from vorta_trt.runtime.from_checkpoint import Source
from vorta_trt.runtime.pipelines.experts import BUNDLED
from vorta_trt.runtime.pipelines.experts import Source as ModelSource
from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo, VortaPipeline
from vorta_trt.runtime.pipelines.planned import PlannedRequest
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.pipelines.sample_files import sample_files
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.video_file import check_encoder

if TYPE_CHECKING:
    from vorta_trt.model.transformer import RoutedTransformer

FRAMES = ".npy"  # suffix of the samples: arrays, so that the compared frames have not been through a video codec


@dataclass(frozen=True)
class Setting:
    """How to sample; see the module's docstring.

    Attributes:
        text: The text that the setting was parsed from.
        params: The fields of `SamplingParams` that the setting sets.
        route_override: Calibrated routes, as for `RequestPlanner`.
        kernels: Family of attention kernels, "" for the GPU's own.
        compiled: Whether torch compiles the model.
        executor: Name of the executor, as for `Engine`; None takes the command's.
    """

    text: str
    params: dict[str, Any] = field(default_factory=dict)
    route_override: str | Path | None = BUNDLED
    kernels: str = ""
    compiled: bool = False
    executor: str | None = None

    def check(self, is_torch: bool) -> None:
        """Raises ValueError where a part of the setting has no effect, or names an unknown kernel or executor."""
        import torch

        if self.kernels and not torch.cuda.is_available():
            raise ValueError(f"setting {self.text!r}: kernels belong to a GPU, and there is none; leave them out")
        with held_to(self.kernels):  # raises for unknown ones
            pass
        if self.executor not in (None, *EXECUTORS):
            raise ValueError(f"setting {self.text!r}: executor {self.executor!r} must be one of {', '.join(EXECUTORS)}")
        if self.compiled and not is_torch:
            raise ValueError(
                f"setting {self.text!r}: compile is for a checkpoint in torch; use executor=NAME for a file"
            )
        if self.executor is not None and is_torch:
            raise ValueError(f"setting {self.text!r}: an executor runs a bundle or an ONNX file; use compile in torch")

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Parses a setting; raises ValueError that names the part that is invalid."""
        setting = cls(text)
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            try:
                setting = setting._with(name, value if equals else None)
            except (ValueError, KeyError) as error:
                reason = f" ({error})" if equals and isinstance(error, ValueError) else ""
                raise ValueError(
                    f"setting {text!r}: {part.strip()!r} is none{reason}; use dense, routed, tau=0.4, override=FILE, "
                    f"override=none, dense-first=2, dense-last=1, kernels=sm80, compile or executor=NAME, with commas "
                    f"between several"
                ) from error
        return setting

    def _with(self, name: str, value: str | None) -> Setting:
        if name == "compile" and value is None:
            return replace(self, compiled=True)
        if name == "kernels" and value:
            return replace(self, kernels=value)
        if name == "executor" and value:
            return replace(self, executor=value)
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
    floor: Setting | None = None,
    source: Source | Sequence[Source] | None = None,
    images: Mapping[str, ImageLike] | None = None,
    checkpoint: Path | None = None,
    params: SamplingParams | None = None,
    executor: str | None = None,
    video: Path | None = None,
    fps: float | None = None,
    lpips: bool | None = None,
) -> CompareReport:
    """Samples the same prompts with two settings of one model, then runs `compare_samples` on the two sets.

    Args:
        target: A bundle or an exported ONNX file; ignored if `source` is given.
        first: The first setting.
        second: The second setting.
        prompts: The prompts; each is sampled with both settings.
        folder: Where the samples go, as first/000.npy, second/000.npy, floor/000.npy and so on.
        report: Progress callback. It gets what is done, how much of it is done, and how much there is in total.
        floor: The first setting computed in another way. It is sampled as well, and its distance from the first setting
            is the noise floor.
        source: The transformer of a checkpoint, which runs in torch; for two experts, a sequence of both.
        images: Images that all videos begin or end with, by the name of the pipeline's argument, for models that take
            some.
        checkpoint: The diffusers pipeline folder that the model was made from, as for `RequestPlanner`.
        params: Sampling parameters that both settings share; the seed is 0 unless given.
        executor: Name of the executor, as for `Engine`.
        video: Path of the side-by-side videos, as for `compare_samples`.
        fps: Frames per second of these videos; None takes the model's own rate.
        lpips: Whether to compute LPIPS, as for `compare_samples`.

    Raises:
        FileExistsError: The folder holds other samples.
        VortaError: Generating or comparing failed.
    """
    if lpips:
        load_lpips()  # raises before anything is sampled if LPIPS cannot be computed
    if video is not None:
        check_encoder()
    sampled: ModelSource = target
    sources = [source] if isinstance(source, Source) else list(source or ())
    models = [_on_device(each.model(materialize=True)) for each in sources]
    if models:
        sampled = models[0] if len(models) == 1 else (models[0], models[1])
        checkpoint = checkpoint or sources[0].checkpoint
    variant = sources[0].variant if sources else None
    settings = {"first": first, "second": second} | ({} if floor is None else {"floor": floor})
    for setting in settings.values():
        setting.check(bool(sources))
    planners = [
        RequestPlanner(sampled, checkpoint, route_override=setting.route_override, variant=variant)
        for setting in settings.values()
    ]
    common = (params or SamplingParams()).model_dump(exclude_unset=True)
    requests = [SamplingParams(**({"seed": 0} | common | setting.params)) for setting in settings.values()]
    for planner, request in zip(planners, requests, strict=True):
        planner.plan(request)  # raises for bad parameters before anything large is loaded
        planner.for_images(images or {}).read_images(images or {})
    places = [_sample_files(folder / name, len(prompts)) for name in settings]
    for files, planner, request, setting in zip(places, planners, requests, settings.values(), strict=True):
        report(f"loading for {setting.text}", 0, 0)
        with _computed(setting, models), VortaPipeline(planner, executor=setting.executor or executor) as pipe:
            _sample(pipe, prompts, images or {}, files, request, setting.text, report)
    compared = compare_samples(
        folder / "first",
        folder / "second",
        report,
        floor=None if floor is None else folder / "floor",
        video=video,
        fps=fps or planners[0].frames_per_second,
        lpips=lpips,
    )
    return _named(compared, settings, dict(zip((file.stem for file in places[0]), prompts, strict=True)))


def _named(report: CompareReport, settings: Mapping[str, Setting], prompts: Mapping[str, str]) -> CompareReport:
    """The report with the settings' texts in place of the folders, and with the prompts."""

    def named(part: CompareReport, second: str) -> CompareReport:
        pairs = [pair.model_copy(update={"prompt": prompts[pair.name]}) for pair in part.pairs]
        return part.model_copy(
            update={"first": settings["first"].text, "second": settings[second].text, "pairs": pairs}
        )

    floor = None if report.floor is None else named(report.floor, "floor")
    return named(report, "second").model_copy(update={"floor": floor})


@contextmanager
def _computed(setting: Setting, models: Sequence[RoutedTransformer]) -> Iterator[None]:
    """Inside the block, the setting's attention kernels are used; the models are compiled if the setting says so."""
    compiled = models if setting.compiled else ()
    with held_to(setting.kernels):
        for model in compiled:
            model.compile()
        try:
            yield
        finally:
            for model in compiled:
                model._compiled_call_impl = None  # undoes compile(), for which torch has no function


def _on_device(model: RoutedTransformer) -> RoutedTransformer:
    """The model, moved to the GPU if there is one."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


def _sample(
    pipe: VortaPipeline,
    prompts: Sequence[str],
    images: Mapping[str, ImageLike],
    files: Sequence[Path],
    request: SamplingParams,
    text: str,
    report: Report,
) -> None:
    """Samples every prompt and writes each video into its file."""

    def show(number: int, step: int, planned: PlannedRequest) -> None:
        report(f"{text}: sample {number + 1} of {len(prompts)}, step {step + 1}", step, len(planned.steps.compute))

    def write(number: int, video: GeneratedVideo) -> None:
        video.save(files[number])

    first, last = images.get("image"), images.get("last_image")
    pipe.generate_each(prompts, write, params=request, image=first, last_image=last, on_step=show, on_stage=report)


def _sample_files(folder: Path, count: int) -> list[Path]:
    """Paths of one setting's samples; refuses a folder that holds other samples, which would be compared, too."""
    files = [sample.file for sample in sample_files(folder, [""] * count, FRAMES)]
    if others := sorted(
        path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path not in files
    ):
        raise FileExistsError(
            f"{folder}: holds {others[0]}, which is not of these {count} prompts and would be compared, too; give "
            f"another folder, or empty this one"
        )
    return files
