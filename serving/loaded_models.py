# SPDX-License-Identifier: Apache-2.0
"""`LoadedModels`: the loaded pipelines of a worker, which share the memory of its GPU.

A model that is asked for is loaded beside the others if it fits as a whole; if not, the least recently used ones are
closed first. On the CPU all models stay loaded.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.pipelines.residency import Residency, choose_residency
from vorta_trt.serving.catalogue import Catalogue, ServedModel

if TYPE_CHECKING:
    from vorta_trt.runtime.pipelines.pipeline import VortaPipeline

WARM_UP_STEPS = 2
logger = logging.getLogger(__name__)


class LoadedModels:
    """See the module; a context manager.

    Args:
        catalogue: The models.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._loaded: OrderedDict[str, VortaPipeline] = OrderedDict()  # the most recently used last

    @property
    def names(self) -> list[str]:
        """The models that are loaded."""
        return list(self._loaded)

    def engines(self) -> list[dict[str, str]]:
        """Labels of each loaded model: its name, its TensorRT flavour or other executor, and the GPU's architecture."""
        loaded = list(self._loaded.items())  # another thread may load meanwhile
        return [
            {"bundle": name, "flavour": _flavour(self._catalogue.get(name), pipeline), "sm": _sm(pipeline)}
            for name, pipeline in loaded
        ]

    def get(self, name: str) -> VortaPipeline:
        """A model's pipeline, loaded.

        Raises:
            VortaError: What `VortaPipeline` raises.
        """
        if name not in self._loaded:
            model = self._catalogue.get(name)
            while self._loaded and not _fits(model):
                self._close_oldest()
            logger.info("loading model %s", name)
            self._loaded[name] = model.pipeline()
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def is_over(self, name: str) -> bool:
        """Whether a loaded model can make no more videos, and needs a new process."""
        return name in self._loaded and self._loaded[name].is_over

    def warm_up(self, tell: Callable[[], None] = lambda: None) -> None:
        """Makes a short video with every model, the default one last; values that are not finite are an error.

        Args:
            tell: Called as every step and stage begins.

        Raises:
            VortaError: A model cannot be loaded, or its values are not finite.
        """
        for name in reversed(self._catalogue.names):
            self.check(name, tell)

    def check(self, name: str, tell: Callable[[], None] = lambda: None) -> None:
        """Makes a short video with one model; see `warm_up`."""
        tell()
        pipeline = self.get(name)
        pipeline(
            "warm-up",
            on_step=lambda *_: tell(),
            on_stage=lambda *_: tell(),
            **_short_request(self._catalogue.get(name)),
        )

    def close(self) -> None:
        """Closes all loaded models."""
        while self._loaded:
            self._close_oldest()

    def __enter__(self) -> LoadedModels:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _close_oldest(self) -> None:
        name, pipeline = self._loaded.popitem(last=False)
        logger.info("closing model %s", name)
        pipeline.close()
        del pipeline
        gc.collect()
        _empty_cache()


def _fits(model: ServedModel) -> bool:
    """Whether a model would be loaded as a whole into the memory that is free."""
    planner, options = model.planner, model.settings.pipeline
    choice = choose_residency(
        Residency(options.get("residency", Residency.AUTO)),
        planner.source,
        planner.require_checkpoint(),
        size=str(max(model.sizes, key=lambda size: size.frames * size.height * size.width)),
        executor=options.get("executor"),
        device=options.get("device"),
        cpu_offload=bool(options.get("cpu_offload", False)),
        vae_precision=options.get("vae_precision"),
        compile_vae=bool(options.get("compile_vae", False)),
    )
    return not (choice.is_sequential or choice.in_turn or choice.stream_weights or choice.cpu_offload)


def _short_request(model: ServedModel) -> dict[str, Any]:
    """The shortest request that runs all parts of a model."""
    settings = dict(model.defaults)
    if not settings.get("sigmas") and not settings.get("timesteps"):
        settings["num_inference_steps"] = WARM_UP_STEPS
    height, width = model.planner.size[1:]
    return {
        **settings,
        "seed": 0,
        "size": VideoSize(*model.planner.size),
        **{name: Image.new("RGB", (width, height), "gray") for name in model.images},
    }


def _flavour(model: ServedModel, pipeline: VortaPipeline) -> str:
    if pipeline.executor != "tensorrt":
        return pipeline.executor or "not loaded"
    assert model.flavour is not None  # TensorRT runs nothing but bundles
    return model.flavour


def _sm(pipeline: VortaPipeline) -> str:
    import torch

    device = pipeline.transformers.device
    if device is None or device.type != "cuda":
        return "cpu"
    return "".join(map(str, torch.cuda.get_device_capability(device)))


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
