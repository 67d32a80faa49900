# SPDX-License-Identifier: Apache-2.0
"""`Catalogue`: the models of a server, and checks of requests for them; it plans and counts, and loads no weights.

accepted = Catalogue(settings.models).accept(parse_request({...}), images={"image": path})
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vorta_trt.model.families import get_family
from vorta_trt.model.images import ImageLike, MissingImageError, choose_kind
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.pipelines.planned import PlannedRequest
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.target import read_target
from vorta_trt.serving.accepted import Accepted
from vorta_trt.serving.settings import ModelSettings
from vorta_trt.serving.size_choice import choose_size
from vorta_trt.serving.video_request import (
    IMAGE_FIELDS,
    RequestError,
    VideoRequest,
    as_fields,
    named_field,
    refused,
    shown,
)

if TYPE_CHECKING:
    from vorta_trt.runtime.pipelines.making import MakeVideos
    from vorta_trt.runtime.pipelines.pipeline import VortaPipeline

MOST_PLANS = 128  # that a model keeps
_FIELD_OF = {argument: field for field, argument in reversed(IMAGE_FIELDS.items())}


class ServedModel:
    """One model of the catalogue.

    Args:
        settings: Settings of the model.

    Attributes:
        settings: Settings of the model, as given.
        planner: Planner of the model's default video size; `RequestPlanner.at` makes those of its other sizes.
        defaults: Sampling settings for what a request leaves out.
        loras: Names of the LoRA files that the model was built with.
        created: When the model's file or folder was last modified, in seconds since 1970.
        gpus: How many GPUs make a video together: as many as the settings say, or as the model is built for.

    Raises:
        ValueError: The GPUs do not suit the model; or what `RequestPlanner` raises.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.planner = RequestPlanner(settings.source, settings.checkpoint)
        self.defaults: dict[str, Any] = {}
        if settings.preset is not None:
            self.planner = self.planner.for_preset(settings.preset)
            self.defaults = self.planner.preset(settings.preset)
        self.loras = tuple(_loras(self.planner))
        self.created = int(settings.source.stat().st_mtime)
        self._built_for: int = self.planner.experts[0].described.ulysses
        self.gpus = settings.gpus or self._built_for
        self._plans: OrderedDict[tuple[str, str], PlannedRequest] = OrderedDict()
        self._lock = threading.Lock()
        self._check_gpus()

    @cached_property
    def flavour(self) -> str | None:
        """Flavour of TensorRT that the model's bundle was built for; None if it has no bundle."""
        bundle = read_target(self.settings.source).bundle
        return None if bundle is None else bundle.manifest.engine.flavour

    @property
    def name(self) -> str:
        """Name by which requests ask for the model."""
        return self.settings.name

    @property
    def sizes(self) -> tuple[VideoSize, ...]:
        """Sizes of the videos that the model makes."""
        return tuple(VideoSize.parse(size) for size in self.planner.sizes)

    @property
    def images(self) -> tuple[str, ...]:
        """The pipeline's arguments for images that every request must give."""
        kinds = get_family(self.planner.family).pipeline_kinds(self.planner.config)
        return min((kind.images for kind in kinds), key=len)

    def pipeline(self) -> VortaPipeline:
        """Loads the model; on several GPUs, in one process per GPU."""
        from vorta_trt.runtime.pipelines.pipeline import VortaPipeline

        if self.gpus > 1:
            from vorta_trt.runtime.pipelines.group_pipeline import GroupPipeline

            return GroupPipeline(self._together(), self.gpus)
        return VortaPipeline(RequestPlanner(self.settings.source, self.settings.checkpoint), **self.settings.pipeline)

    @property
    def kind(self) -> str:
        """Type of device on which the model's processes compute: "cuda" or "cpu", see `kind_of`."""
        from vorta_trt.runtime.pipelines.making import kind_of

        return kind_of(self._together())

    def _together(self) -> MakeVideos:
        """What the processes of a model on several GPUs are started with."""
        from vorta_trt.runtime.pipelines.making import MakeVideos

        given = self.settings
        params = SamplingParams(**self.defaults)
        return MakeVideos(given.source, checkpoint=given.checkpoint, pipeline=given.pipeline, params=params)

    def _check_gpus(self) -> None:
        """Raises ValueError unless the model can be shared by its GPUs."""
        from vorta_trt.runtime.pipelines.making import layout_of

        if self.gpus == self._built_for == 1:
            return
        request = self._together()
        layout_of(request, self.planner, self.planner.plan(request.params), self.gpus)
        if (device := self.settings.pipeline.get("device")) is not None:
            raise ValueError(
                f"device {device!r} of model {self.name}: each of its {self.gpus} processes has the GPU of its number; "
                f"leave it out, and choose GPUs with CUDA_VISIBLE_DEVICES"
            )

    def plan(self, params: SamplingParams, size: str) -> PlannedRequest:
        """`RequestPlanner.plan`, with a cache of the latest plans: a plan does not depend on prompt and seed.

        Raises:
            ValueError: The parameters do not suit the model.
        """
        key = params.model_dump_json(exclude={"seed"}), size
        with self._lock:  # a planner's cache of sizes is not thread-safe
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
            planned = self._plans[key] = self.planner.at(size).plan(params)
            if len(self._plans) > MOST_PLANS:
                self._plans.popitem(last=False)
        return planned

    def flops(self, planned: PlannedRequest) -> float | None:
        """Predicted FLOPs of the transformer for one video; None if the routes are not known."""
        return None if planned.steps.cost is None else planned.steps.cost.flops

    def accept(self, request: VideoRequest, images: Mapping[str, ImageLike]) -> Accepted:
        """Checks a request against the model, before anything is loaded.

        Raises:
            RequestError: The model cannot run the request; the message says what the model has.
        """
        accepted = self._settle(request, images)
        with _named_images():
            self.planner.at(accepted.size).read_images(images)
        return accepted

    def _settle(self, request: VideoRequest, images: Mapping[str, ImageLike]) -> Accepted:
        size = choose_size(request, self.planner, self.name, images)
        if request.lora is not None and sorted(request.lora) != sorted(self.loras):
            has = ", ".join(self.loras) or "none"
            raise RequestError(
                f"lora {', '.join(map(shown, request.lora)) or 'none'}: model {self.name} was built with LoRA {has}, "
                f"and LoRA files are fused when a bundle is built; leave lora out, or build another bundle",
                "lora",
                "lora_not_available",
            )
        try:
            params = request.params(self.defaults)
            self.plan(params, str(size))
        except ValidationError as error:
            raise refused(error) from None
        except ValueError as error:
            raise RequestError(as_fields(str(error)), named_field(str(error))) from None
        fps = request.fps if request.fps is not None else float(self.planner.frames_per_second)
        return Accepted(self.name, request.prompt, params, str(size), fps, request.n)

    def check(self, request: VideoRequest, images: Collection[str]) -> None:
        """Checks all that `accept` checks, but for the pixels of images.

        Args:
            request: The fields.
            images: The pipeline's arguments for which the request has images.

        Raises:
            RequestError: The model cannot run the request; the message says what the model has.
        """
        self._settle(request, {})
        with _named_images():
            choose_kind(get_family(self.planner.family).pipeline_kinds(self.planner.config), images)


@contextmanager
def _named_images() -> Iterator[None]:
    """Turns an error about an image into a `RequestError` that names the field."""
    try:
        yield
    except MissingImageError as error:
        field = _FIELD_OF[error.name]
        raise RequestError(f"{field}: is missing; this model {error.what}; give it", field, "missing_field") from None
    except ValueError as error:
        argument = next((name for name in _FIELD_OF if str(error).startswith(name)), "image")
        field = _FIELD_OF[argument]
        raise RequestError(f"{field}: {str(error).removeprefix(argument).lstrip(': ')}", field) from None


class Catalogue:
    """The models by name, in order.

    Raises:
        ValueError, FileNotFoundError: What `ServedModel` raises, or models that cannot be served together.

    Attributes:
        models: The models by name, the default first.
        gpus: Number of GPUs that each worker needs.
    """

    def __init__(self, models: Sequence[ModelSettings]) -> None:
        self.models = {settings.name: ServedModel(settings) for settings in models}
        self.gpus = max(model.gpus for model in self.models.values())
        if self.gpus > 1 and len(self.models) > 1:
            raise ValueError(f"gpus {self.gpus}: the GPUs of a worker make the videos of one model; serve one")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, the default first."""
        return tuple(self.models)

    def get(self, name: str | None) -> ServedModel:
        """The model of a name; None is the first model.

        Raises:
            RequestError: There is no model of this name.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise RequestError(
                f"model {shown(name)}: is not served here; ask for one of {', '.join(self.models)}",
                "model",
                "model_not_found",
            )
        return self.models[name]

    def accept(self, request: VideoRequest, images: Mapping[str, ImageLike] | None = None) -> Accepted:
        """Checks a request with `ServedModel.accept` of the model that it asks for.

        Args:
            request: The fields.
            images: Images by the pipeline's argument: "image", "last_image".
        """
        return self.get(request.model).accept(request, images or {})


def _loras(planner: RequestPlanner) -> list[str]:
    names: list[str] = []
    for expert in planner.experts:
        names.extend(record.name for record in expert.described.lora)  # exported files and bundles name theirs
    return list(dict.fromkeys(names))
