# SPDX-License-Identifier: Apache-2.0
"""A tiny Wan and a tiny HunyuanVideo with routers, and files made from them; each is made once, when first needed.

Imports wait for the fixtures, so that the tests of a GPU machine need no more packages than they use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..tiny import Tiny


@pytest.fixture(scope="session")
def wan(tiny_wan: Tiny) -> Tiny:
    return tiny_wan


@pytest.fixture(scope="session")
def hunyuan_video(tiny_hunyuan_video: Tiny) -> Tiny:
    return tiny_hunyuan_video


@pytest.fixture(scope="session")
def fp32(wan: Tiny) -> Path:
    return wan.export("fp32")


@pytest.fixture(scope="session")
def fp16(wan: Tiny) -> Path:
    return wan.export("fp16")


@pytest.fixture(scope="session")
def bf16(wan: Tiny) -> Path:
    return wan.export("bf16")


@pytest.fixture(scope="session")
def bundle(wan: Tiny) -> Path:
    return wan.bundle


@pytest.fixture
def seed() -> int:
    """A fresh seed, printed; pytest shows it if the test fails."""
    import secrets

    value = secrets.randbits(31)
    print(f"seed {value}")
    return value
