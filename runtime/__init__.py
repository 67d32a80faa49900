# SPDX-License-Identifier: Apache-2.0
"""Runs bundles: executors behind one `Engine`, verification, generation of videos. Names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vorta_trt.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vorta_trt.runtime.device.device_scratch import DeviceScratch as DeviceScratch
    from vorta_trt.runtime.engine import Engine as Engine
    from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo as GeneratedVideo
    from vorta_trt.runtime.pipelines.pipeline import VortaPipeline as VortaPipeline
    from vorta_trt.runtime.pipelines.transformer import VortaTransformer as VortaTransformer
    from vorta_trt.runtime.sampling.params import SamplingParams as SamplingParams
    from vorta_trt.runtime.schedules import schedule_timesteps as schedule_timesteps
    from vorta_trt.runtime.tensors import TensorSpec as TensorSpec
    from vorta_trt.runtime.verification.report import VerifyReport as VerifyReport

_HOME = {
    "DeviceScratch": "device.device_scratch",
    "Engine": "engine",
    "GeneratedVideo": "pipelines.pipeline",
    "SamplingParams": "sampling.params",
    "TensorSpec": "tensors",
    "VerifyReport": "verification.report",
    "VortaPipeline": "pipelines.pipeline",
    "VortaTransformer": "pipelines.transformer",
    "schedule_timesteps": "schedules",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_attributes(__name__, _HOME)
