# SPDX-License-Identifier: Apache-2.0
"""Flags that a build needs so that the runtime can share memory, capture CUDA graphs and stream weights.

| | in | what it allows |
| --- | --- | --- |
| PROFILE_SHARING_0806 | 8.6 (later ones always do) | several execution contexts on one optimization profile |
| RUNTIME_ACTIVATION_RESIZE_10_10 | 10.10, RTX | memory for the batch of a call instead of for the largest one |
| REQUIRE_USER_ALLOCATION | RTX | no allocation during a call, so that CUDA graphs can be captured |
| WEIGHT_STREAMING | 10, RTX | some weights stay in host memory; on request, instead of REQUIRE_USER_ALLOCATION |
| REFIT | all; RTX on a machine with a GPU | other weights after the build; on request |
| plugins_to_serialize | 10, RTX | the plan carries our plugin library; on request |
"""

from __future__ import annotations

from typing import Any

from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.flavours import Flavour
from vorta_trt.engines.plugin import loaded_library
from vorta_trt.plugins.gpu import driver_report

PREVIEWS = ("PROFILE_SHARING_0806", "RUNTIME_ACTIVATION_RESIZE_10_10")
RESIZES = "RUNTIME_ACTIVATION_RESIZE_10_10"
STREAMING = "WEIGHT_STREAMING"


def allow_execution(flavour: Flavour, config: Any, weight_streaming: bool) -> None:
    """Sets the preview features above that the flavour knows, and WEIGHT_STREAMING or else REQUIRE_USER_ALLOCATION.

    Raises:
        BuildError: The flavour cannot stream weights.
    """
    trt = flavour.module
    for name in PREVIEWS:
        feature = getattr(trt.PreviewFeature, name, None)
        if feature is not None and not config.get_preview_feature(feature):
            config.set_preview_feature(feature, True)
    if weight_streaming:
        check_streaming(flavour)
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    elif hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def check_streaming(flavour: Flavour) -> None:
    """Raises BuildError if the flavour cannot stream weights."""
    if not hasattr(flavour.module.BuilderFlag, STREAMING):
        raise BuildError(
            f"weight_streaming: {flavour.title_and_version} has none; leave it out, or build with TensorRT 10 or "
            "newer, or TensorRT-RTX"
        )


def check_refittable(flavour: Flavour) -> None:
    """Raises BuildError if the flavour cannot build here an engine that takes other weights."""
    if flavour.builds_without_gpu and not driver_report().devices:
        raise BuildError(
            f"refit: {flavour.title_and_version} builds refittable engines with a GPU only; leave it "
            "out and build again for other LoRA files, or build on a machine with the GPU"
        )


def check_plugin_in_plan(flavour: Flavour) -> None:
    """Raises BuildError if the flavour's plans cannot carry plugin libraries.

    TensorRT 8.6 has the call, but only for version-compatible plans, which this project does not build with it.
    """
    if flavour.weakly_typed or not hasattr(flavour.module.IBuilderConfig, "plugins_to_serialize"):
        raise BuildError(
            f"plugin_in_plan: {flavour.title_and_version} writes no plugin library into its plans; leave it out, "
            "and load libvorta_trt.so before the plan"
        )


def put_into_plan(flavour: Flavour, config: Any) -> None:
    """Lets the plan carry the plugin library that this process has loaded, if it has loaded one."""
    if (path := loaded_library(flavour)) is not None:
        config.plugins_to_serialize = [str(path)]


def set_flags(trt: Any, config: Any) -> list[str]:
    """The names of the builder flags and of these preview features that are on; for the manifest."""
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]
    features = {name: getattr(trt.PreviewFeature, name, None) for name in PREVIEWS}
    on = (name for name, feature in features.items() if feature is not None and config.get_preview_feature(feature))
    return [*flags, *on]
