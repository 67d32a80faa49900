# SPDX-License-Identifier: Apache-2.0
"""What Triton's Python backend runs: one pipeline for each instance of the model, loaded once.

The backend makes a `TritonPythonModel` in a process of its own and calls `initialize`, `execute` and `finalize`. It
gives an instance one request after the other. A refused request gets the error INVALID_ARG, a cancelled one CANCELLED,
and any other failure INTERNAL. After an error of the engine the model is loaded again; if that fails, as after an
error that stays with its CUDA context, all further requests are UNAVAILABLE until Triton loads the model anew.
"""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo
from vorta_trt.serving.catalogue import Catalogue
from vorta_trt.serving.failures import describe_failure
from vorta_trt.serving.loaded_models import LoadedModels
from vorta_trt.serving.metric_table import record_report
from vorta_trt.serving.settings import ModelSettings
from vorta_trt.serving.step_watch import StepWatch
from vorta_trt.serving.triton.metrics import TritonMetrics
from vorta_trt.serving.triton.request import in_tensors, read_request
from vorta_trt.serving.triton.tensors import FRAMES, INFO, PROGRESS, VIDEO
from vorta_trt.serving.video_request import RequestError

UTILS = "triton_python_backend_utils"  # the module that the backend puts beside the model
GPU = "GPU"  # Triton's name of a kind of instance
logger = logging.getLogger(__name__)
Arrays = dict[str, npt.NDArray[Any]]


class _CancelledError(Exception):
    """The client does not want the video any more."""


class _LostError(Exception):
    """There is no engine any more."""


class TritonPythonModel:
    """The interface of the Python backend; its parameters are what `repository.write_model` has written."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model and makes a short video; Triton says that the model is ready when this returns."""
        self._utils: Any = importlib.import_module(UTILS)
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._decoupled = self._utils.using_decoupled_model_transaction_policy(config)
        self._most_pixels = int(parameters["most_image_pixels"])
        settings = _settings(parameters["model"], Path(args["model_repository"]))
        if args["model_instance_kind"] == GPU:
            device = f"cuda:{args['model_instance_device_id']}"
            settings = settings.model_copy(update={"pipeline": {**settings.pipeline, "device": device}})
        catalogue = Catalogue([settings])
        self._served = catalogue.get(None)
        self._models = LoadedModels(catalogue)
        self._models.warm_up()
        self._metrics = TritonMetrics(self._utils)
        self._lost: str | None = None  # why there is no engine any more

    def execute(self, requests: Sequence[Any]) -> None:
        """Makes a video for each request; a decoupled model sends responses with the progress before it."""
        for request in requests:
            sender = request.get_response_sender()
            response, in_order = self._respond(request, sender)
            sender.send(response, flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            if not in_order:
                self._reload()

    def finalize(self) -> None:
        """Frees the engines."""
        self._models.close()

    def _respond(self, request: Any, sender: Any) -> tuple[Any, bool]:
        """The last response to a request, its video or an error; and whether the engine is in order."""
        metrics, kinds = self._metrics, self._utils.TritonError
        metrics.add("vorta_requests_running")
        in_order, began = True, time.perf_counter()
        try:
            if self._lost is not None:
                raise _LostError(self._lost)
            response, status = self._generate(request, sender), "completed"
        except _CancelledError:
            response, status = self._error("the request was cancelled", kinds.CANCELLED), "cancelled"
        except _LostError as error:
            response, status = self._error(f"engine_lost: {error}; load the model anew", kinds.UNAVAILABLE), "failed"
        except RequestError as error:
            response, status = self._error(in_tensors(error), kinds.INVALID_ARG), "failed"
        except Exception as error:
            code, message, in_order = describe_failure(error)
            logger.error("a request failed, %s: %s", code, message, exc_info=error)
            response, status = self._error(f"{code}: {message}", kinds.INTERNAL), "failed"
        metrics.add("vorta_requests_running", -1)
        metrics.add("vorta_requests_total", status=status)
        metrics.observe("vorta_request_duration_seconds", time.perf_counter() - began)
        return response, in_order

    def _generate(self, request: Any, sender: Any) -> Any:
        """The response with the video."""

        def tensor(name: str) -> npt.NDArray[Any] | None:
            found = self._utils.get_input_tensor_by_name(request, name)
            return None if found is None else found.as_numpy()

        def tell(stage: str, step: int | None) -> None:
            if request.is_cancelled():
                raise _CancelledError
            if self._decoupled and {INFO, PROGRESS} & wanted:
                progress["stage"], progress["step"] = stage, progress["step"] if step is None else step
                share = progress["step"] / progress["steps"]
                sender.send(self._response({INFO: _json(progress), PROGRESS: _number(share)}, wanted))

        wanted = set(request.requested_output_names())
        asked, images = read_request(tensor, self._most_pixels)
        accepted = self._served.accept(asked, images)
        steps = len(self._served.plan(accepted.params, accepted.size).steps.compute)
        progress: dict[str, Any] = {"stage": "", "step": 0, "steps": steps}
        watch = StepWatch(tell)
        videos: list[GeneratedVideo] = []
        pipeline = self._models.get(self._served.name)
        pipeline.generate_each(
            [accepted.prompt],
            lambda _, video: videos.append(video),
            accepted.params,
            size=accepted.video,
            on_step=watch.step,
            on_stage=watch.stage,
            image=images.get("image"),
            last_image=images.get("last_image"),
        )
        (video,) = videos
        outputs: Arrays = {FRAMES: video.frames, PROGRESS: _number(1)}
        stages = dict(video.stage_seconds)
        if VIDEO in wanted:
            encoding = time.perf_counter()
            outputs[VIDEO] = _encoded(video, accepted.fps)
            stages["encode"] = time.perf_counter() - encoding
        told = {**video.to_dict(), "stages": stages, "length": len(video.frames) / accepted.fps}
        record_report({"videos": [told], "steps": watch.report()}, self._metrics)
        outputs[INFO] = _json(told)
        return self._response(outputs, wanted)

    def _reload(self) -> None:
        """Loads the model again, and makes a short video."""
        try:
            self._models.close()
            self._models.warm_up()
        except Exception as error:
            self._lost = describe_failure(error)[1]
            logger.error("the model cannot be loaded again: %s", self._lost, exc_info=error)

    def _response(self, outputs: Arrays, wanted: set[str]) -> Any:
        tensors = [self._utils.Tensor(name, value) for name, value in outputs.items() if name in wanted]
        return self._utils.InferenceResponse(output_tensors=tensors)

    def _error(self, message: str, code: Any) -> Any:
        return self._utils.InferenceResponse(error=self._utils.TritonError(message, code))


def _settings(text: str, folder: Path) -> ModelSettings:
    """The model's settings from JSON; relative paths are taken from the model's folder in the repository."""
    values = json.loads(text)
    for name in ("source", "checkpoint"):
        if values.get(name) is not None:
            values[name] = folder / values[name]
    return ModelSettings(**values)


def _number(value: float) -> npt.NDArray[np.float32]:
    return np.array([value], np.float32)


def _json(content: dict[str, Any]) -> npt.NDArray[np.object_]:
    return np.array([json.dumps(content).encode()], np.object_)


def _encoded(video: GeneratedVideo, fps: float) -> npt.NDArray[np.object_]:
    """The bytes of an MP4 file."""
    with tempfile.TemporaryDirectory() as folder:
        return np.array([video.save(Path(folder) / "video.mp4", fps).read_bytes()], np.object_)
