# SPDX-License-Identifier: Apache-2.0
"""What a build allows the runtime to do: with TensorRT-RTX, which is installed, and with stand-ins for the others."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vorta_trt.engines import BuildError, Bundle, build_engine
from vorta_trt.engines.execution_flags import allow_execution, set_flags


class Flag86(Enum):
    FP16, TF32 = range(2)


class Flag10(Enum):
    FP16, TF32, WEIGHT_STREAMING = range(3)


class Preview86(Enum):
    FASTER_DYNAMIC_SHAPES_0805, PROFILE_SHARING_0806 = range(2)


class Preview10(Enum):
    PROFILE_SHARING_0806, RUNTIME_ACTIVATION_RESIZE_10_10 = range(2)


class Config:
    """IBuilderConfig of TensorRT 8.6 or 10; in 10, profiles are shared in any case."""

    def __init__(self, *on: Enum) -> None:
        self.on, self.told = set(on), []  # type: ignore[var-annotated]

    def get_flag(self, flag: Enum) -> bool:
        return flag in self.on

    get_preview_feature = get_flag

    def set_flag(self, flag: Enum) -> None:
        self.on.add(flag)

    def set_preview_feature(self, feature: Enum, on: bool) -> None:
        assert on
        self.told.append(feature.name)
        self.on.add(feature)


def flavour(flags: type[Enum], previews: type[Enum]) -> Any:
    module = SimpleNamespace(BuilderFlag=flags, PreviewFeature=previews)
    return SimpleNamespace(module=module, title_and_version="TensorRT 8.6.0")


def test_8_6_shares_profiles_and_streams_nothing() -> None:
    config, old = Config(), flavour(Flag86, Preview86)
    allow_execution(old, config, weight_streaming=False)
    assert config.told == set_flags(old.module, config) == ["PROFILE_SHARING_0806"]
    with pytest.raises(BuildError, match="weight_streaming: TensorRT 8.6.0 has none"):
        allow_execution(old, config, weight_streaming=True)


def test_10_resizes_activations_and_streams_on_request() -> None:
    config, new = Config(Preview10.PROFILE_SHARING_0806), flavour(Flag10, Preview10)
    allow_execution(new, config, weight_streaming=False)
    assert config.told == ["RUNTIME_ACTIVATION_RESIZE_10_10"]  # not what is on, and would be warned of
    assert "WEIGHT_STREAMING" not in set_flags(new.module, config)
    allow_execution(new, config, weight_streaming=True)
    assert "WEIGHT_STREAMING" in set_flags(new.module, config)


def test_rtx_forbids_allocations_during_a_call(built: Bundle) -> None:
    assert built.manifest.engine.flags == ["REQUIRE_USER_ALLOCATION", "RUNTIME_ACTIVATION_RESIZE_10_10"]


def test_rtx_streams_weights_on_request(make_model: Any, tmp_path: Path) -> None:
    made = build_engine(make_model(tmp_path / "m.onnx"), tmp_path / "m.bundle", weight_streaming=True)
    assert made.manifest.engine.flags == ["WEIGHT_STREAMING", "RUNTIME_ACTIVATION_RESIZE_10_10"]
