# SPDX-License-Identifier: Apache-2.0
"""Shared test setup: GPU tests are skipped, with the reason, where there is no CUDA device; signals; tiny pipelines.

Imports wait for the fixtures, so that the tests of a GPU machine need no more packages than they use.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .kept import Kept
    from .ranks import Pool
    from .tiny import Tiny, TinyExperts

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import onnxruntime themselves, too
if "PYTEST_XDIST_WORKER" in os.environ:  # a process per processor, so one thread in each and in its children
    os.environ["OMP_NUM_THREADS"] = "1"
# These begin first, or one test process would run them alone at the end. They mostly wait for other processes.
LONGEST = ("test_ray.py", "test_triton_server.py", "test_server.py")


@cache
def _no_gpu_reason() -> str | None:
    import torch

    if torch.version.cuda is None:
        return f"needs a CUDA GPU: torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return "needs a CUDA GPU: torch finds none on this machine"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.get_closest_marker("gpu") and (reason := _no_gpu_reason()):
            item.add_marker(pytest.mark.skip(reason=reason))


_imported = 0  # modules when objects were last frozen


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves imported objects out of full garbage collections.

    Whatever frees a model collects garbage, which takes most of a second where torch, diffusers and ONNX are loaded.
    """
    global _imported
    if len(sys.modules) > _imported + 50:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP have Python's own handlers, here and in child processes.

    A shell that starts `make test` in the background lets them be ignored, and children inherit that.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Where files are kept between runs: in pytest's cache, or for this run if it is off."""
    from .kept import Kept

    cache = getattr(request.config, "cache", None)
    return Kept(tmp_path_factory.mktemp("kept") if cache is None else Path(cache.mkdir("kept")))


@pytest.fixture(scope="session")
def tiny_wan(kept: Kept) -> Tiny:
    from .tiny import make_tiny

    return make_tiny(kept, "wan")


@pytest.fixture(scope="session")
def tiny_hunyuan_video(kept: Kept) -> Tiny:
    from .tiny import make_tiny

    return make_tiny(kept, "hunyuan_video")


@pytest.fixture(scope="session")
def tiny_ti2v(kept: Kept) -> Tiny:
    from .tiny import make_tiny

    return make_tiny(kept, "wan ti2v")


@pytest.fixture(scope="session")
def tiny_experts(kept: Kept) -> TinyExperts:
    from .tiny import make_experts

    return make_experts(kept)


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Four processes that run the cases of `ranks_worker.py`, as pool(case, ranks, **arguments)."""
    from .ranks import started

    with started() as pool:
        yield pool
