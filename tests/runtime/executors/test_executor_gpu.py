# SPDX-License-Identifier: Apache-2.0
"""Executing engines on a GPU: a tiny one, built with whichever TensorRT runs on this machine's GPU.

What the fake TensorRT of `test_tensorrt_executor` claims is tried here on the real one.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from vorta_trt.engines import Bundle, BundleError
from vorta_trt.engines.hashed_file import hash_file
from vorta_trt.engines.manifest import MANIFEST, PLAN
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import DeviceScratch, Engine
from vorta_trt.runtime.fallbacks import Fallbacks

if TYPE_CHECKING:
    from vorta_trt.engines.flavours import Flavour

pytestmark = pytest.mark.gpu

WIDTH = 256
MANY = 4096  # the largest batch of the second profile: 256 MiB per tensor
SLACK = 64 << 20  # of memory figures: what driver and libraries load on the way


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    from tiny_engine import runnable_flavour

    from vorta_trt.engines.flavours import available_flavours

    found = runnable_flavour()
    if found is None:
        reasons = "; ".join(f"{each.name}: {each.build.reason}, {each.run.reason}" for each in available_flavours())
        pytest.skip(f"no TensorRT both builds and runs on this machine ({reasons})")
    return found


@pytest.fixture(scope="module")
def tiny(flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_engine import build_tiny_engine

    path = tmp_path_factory.mktemp("a tiny engine") / "tiny.bundle"
    return build_tiny_engine(path, flavour, width=WIDTH, profiles=((1, 1, 2), (4, 4, MANY))).path


@pytest.fixture(scope="module")
def check() -> Any:
    """Runs an engine and compares with NumPy; gives the outputs."""
    from tiny_engine import tiny_inputs, tiny_sample, tiny_weights

    weights = tiny_weights(WIDTH, 0)

    def run(engine: Engine, batch: int, seed: int, as_torch: bool = True, device: str = "cuda") -> Any:
        inputs = tiny_inputs(batch, WIDTH, seed)
        given = {name: torch.from_numpy(value).to(device) if as_torch else value for name, value in inputs.items()}
        outputs = engine(**given)
        sample = outputs["sample"]
        if as_torch:
            assert sample.device.type == torch.device(device).type
            sample = sample.cpu().numpy()
        np.testing.assert_allclose(sample, tiny_sample(inputs, weights), rtol=1e-4, atol=1e-4)
        return outputs["sample"]

    return run


def graphs(engine: Engine) -> int:
    return sum(shaped._graph is not None for shaped in engine._executor._shaped.values())  # type: ignore[attr-defined]


def free_bytes() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("outputs", ["copy", "reuse"])
def test_outputs_are_right_call_after_call(tiny: Path, check: Any, graph: bool, outputs: Any, seed: int) -> None:
    with Engine(tiny, cuda_graph=graph, outputs=outputs, nvtx=True, fallbacks=Fallbacks(strict=True)) as engine:
        for number in range(12):
            check(engine, (1, 2, 7)[number % 3], seed + number)
        for number in range(3):
            check(engine, 2, seed + number, as_torch=False)
            check(engine, 2, seed + number, device="cpu")
        assert graphs(engine) == (3 if graph else 0)


@pytest.mark.parametrize("graph", [True, False])
def test_how_long_outputs_are_valid(tiny: Path, check: Any, graph: bool, seed: int) -> None:
    with Engine(tiny, cuda_graph=graph) as engine:
        kept = [check(engine, 1, seed) for _ in range(3)]
        first = kept[-1].clone()
        check(engine, 1, seed + 1)
        assert torch.equal(kept[-1], first)
    assert torch.equal(kept[-1], first)
    with Engine(tiny, cuda_graph=graph, outputs="reuse") as engine:
        assert check(engine, 1, seed).data_ptr() == check(engine, 1, seed + 1).data_ptr()


@pytest.mark.parametrize("graph", [True, False])
def test_calls_in_and_outside_of_inference_mode(tiny: Path, check: Any, graph: bool, seed: int) -> None:
    """And with inputs that autograd tracks, whose graph does not grow from call to call."""
    from tiny_engine import tiny_inputs

    tracked = {name: torch.from_numpy(value).cuda() * 1 for name, value in tiny_inputs(2, WIDTH, seed).items()}
    tracked["hidden_states"].requires_grad_()
    with Engine(tiny, cuda_graph=graph) as engine:
        with torch.inference_mode():
            for number in range(2):
                check(engine, 2, seed + number)
        expected = check(engine, 2, seed)
        with torch.enable_grad():
            sample = engine(**{name: value * 1 for name, value in tracked.items()})["sample"]
        assert torch.equal(sample, expected) and not sample.requires_grad
        with torch.inference_mode():
            check(engine, 2, seed + 2)


@pytest.mark.parametrize("graph", [True, False])
def test_the_callers_stream_is_waited_for_and_waits(tiny: Path, graph: bool, seed: int) -> None:
    """Inputs that are still being computed, outputs that are used at once, inputs that are overwritten at once."""
    from tiny_engine import TOKENS, tiny_sample, tiny_weights

    weights = tiny_weights(WIDTH, 0)
    busy = torch.randn(4096, 4096, device="cuda")
    stream = torch.cuda.Stream()
    with Engine(tiny, cuda_graph=graph) as engine, torch.cuda.stream(stream):
        results, sources = [], []
        hidden = torch.empty(1, TOKENS, WIDTH, device="cuda")
        for number in range(6):
            source = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed + number)).cuda()
            for _ in range(8):
                busy = torch.nn.functional.normalize(busy @ busy)
            hidden.copy_(source + busy.sum() * 0)
            sample = engine(hidden_states=hidden, timestep=torch.zeros(1, device="cuda"))["sample"]
            results.append(sample * 1)
            sources.append(source)
            hidden.fill_(float("nan"))
    stream.synchronize()
    for source, result in zip(sources, results, strict=True):
        wanted = tiny_sample({"hidden_states": source.cpu().numpy(), "timestep": np.zeros(1, np.float32)}, weights)
        np.testing.assert_allclose(result.cpu().numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_tensors_that_are_not_aligned_or_not_contiguous(tiny: Path, seed: int) -> None:
    from tiny_engine import TOKENS, tiny_sample, tiny_weights

    weights = tiny_weights(WIDTH, 0)
    memory = torch.randn(TOKENS * WIDTH + 1, device="cuda")
    with Engine(tiny, cuda_graph=False) as engine:
        for hidden in (memory[1:].view(1, TOKENS, WIDTH), memory[:-1].view(1, WIDTH, TOKENS).transpose(1, 2)):
            sample = engine(hidden_states=hidden, timestep=torch.zeros(1, device="cuda"))["sample"]
            wanted = tiny_sample({"hidden_states": hidden.cpu().numpy(), "timestep": np.zeros(1, np.float32)}, weights)
            np.testing.assert_allclose(sample.cpu().numpy(), wanted, rtol=1e-4, atol=1e-4)


class OfAnotherLibrary:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__


def test_gpu_arrays_of_another_library(tiny: Path, check: Any, seed: int) -> None:
    from tiny_engine import tiny_inputs

    inputs = {name: torch.from_numpy(value).cuda() for name, value in tiny_inputs(1, WIDTH, seed).items()}
    with Engine(tiny) as engine:
        expected = check(engine, 1, seed)
        given = engine(**{name: OfAnotherLibrary(tensor) for name, tensor in inputs.items()})["sample"]
    assert given.is_cuda and torch.equal(given, expected)


def test_numpy_arrays_in_two_contexts(tiny: Path, check: Any, seed: int) -> None:
    for graph in (True, False):
        with Engine(tiny, cuda_graph=graph) as engine, engine.context() as other:
            for number in range(6):
                check(engine, 1 + number % 2, seed + number, as_torch=False)
                check(other, 1, seed + number, as_torch=False)
            assert graphs(engine) == (2 if graph else 0)


# --- Threads and contexts ----------------------------------------------------


def in_threads(works: list[Any]) -> None:
    failures: list[BaseException] = []

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@pytest.mark.parametrize("graph", [True, False])
def test_threads_share_an_engine(tiny: Path, check: Any, graph: bool, seed: int) -> None:
    with Engine(tiny, cuda_graph=graph) as engine:

        def work(number: int) -> None:
            with torch.cuda.stream(torch.cuda.Stream()):
                for call in range(25):
                    check(engine, 1 + (number + call) % 2, seed + 100 * number + call)

        in_threads([lambda number=number: work(number) for number in range(4)])


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("shared", [False, True])
def test_two_threads_with_a_context_each(tiny: Path, check: Any, graph: bool, shared: bool, seed: int) -> None:
    with DeviceScratch() as block:
        scratch = block if shared else None
        with Engine(tiny, cuda_graph=graph, scratch=scratch) as engine, engine.context(scratch=scratch) as other:

            def work(context: Engine, number: int) -> None:
                with torch.cuda.stream(torch.cuda.Stream()):
                    for call in range(50):
                        check(context, 1 + call % 2, seed + 100 * number + call)

            in_threads([lambda: work(engine, 0), lambda: work(other, 1)])
            assert graphs(engine) == graphs(other) == (2 if graph else 0)


def test_two_engines_in_one_process(tiny: Path, flavour: Flavour, check: Any, tmp_path: Path, seed: int) -> None:
    """With other weights and sizes, and one block of scratch memory."""
    from tiny_engine import build_tiny_engine, tiny_inputs, tiny_sample, tiny_weights

    other = build_tiny_engine(tmp_path / "other.bundle", flavour, width=512, profiles=((2, 2, 2),), seed=1)
    weights, inputs = tiny_weights(512, 1), tiny_inputs(2, 512, seed)
    with DeviceScratch() as scratch, Engine(tiny, scratch=scratch) as first, Engine(other, scratch=scratch) as second:
        for number in range(4):
            check(first, 2, seed + number)
            sample = second(**inputs)["sample"]
            np.testing.assert_allclose(sample, tiny_sample(inputs, weights), rtol=1e-4, atol=1e-4)
        assert graphs(first) == graphs(second) == 1


@pytest.mark.parametrize("first", [0, 1])
def test_closing_in_any_order(tiny: Path, check: Any, first: int, seed: int) -> None:
    engine = Engine(tiny)
    opened = [engine, engine.context()]
    for each in opened:
        check(each, 1, seed)
        check(each, 1, seed)
    opened.pop(first).close()
    check(opened[0], 1, seed)
    opened[0].close()


# --- Profiles, memory --------------------------------------------------------


def test_profiles(tiny: Path, check: Any, seed: int) -> None:
    with Engine(tiny) as engine:
        assert engine.inputs[0].maximum == (MANY, 64, WIDTH)
        for batch in (1, 2, 4, 33):
            check(engine, batch, seed)
        with pytest.raises(ValueError, match=r"fits none of .*\n  profile 0: .*\n  profile 1: "):
            check(engine, 3, seed)
        check(engine, 1, seed)


@pytest.fixture
def full_gpu() -> Iterator[Any]:
    """Takes all of the GPU's memory but so many bytes, until the test ends or calls the result."""
    held: list[Any] = []

    def fill(leave: int) -> Any:
        while (free := free_bytes()) > leave + (2 << 20):
            held.append(torch.empty(free - leave, dtype=torch.uint8, device="cuda"))

        def empty() -> None:
            held.clear()
            torch.cuda.empty_cache()

        return empty

    yield fill
    held.clear()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("graph", [True, False])
def test_no_memory_for_a_call(tiny: Path, check: Any, full_gpu: Any, graph: bool, seed: int) -> None:
    from tiny_engine import tiny_inputs

    inputs = tiny_inputs(MANY, WIDTH, seed)
    with Engine(tiny, cuda_graph=graph) as engine:
        check(engine, 1, seed)
        for leave in (100 << 20, 300 << 20, 450 << 20):  # inputs, scratch memory or outputs do not fit
            empty = full_gpu(leave)
            with pytest.raises(VortaError, match="on cuda:0 needs .* are free"):
                engine(**inputs)
            check(engine, 1, seed)
            empty()
        check(engine, MANY, seed, as_torch=False)


def test_no_memory_for_the_weights(flavour: Flavour, full_gpu: Any, tmp_path: Path, seed: int) -> None:
    from tiny_engine import build_tiny_engine, tiny_inputs, tiny_sample, tiny_weights

    large = build_tiny_engine(tmp_path / "large.bundle", flavour, width=8192, profiles=((1, 1, 1),))  # 3 x 256 MiB
    empty = full_gpu(200 << 20)
    with pytest.raises(VortaError) as caught:
        Engine(large)
    print(caught.value)
    empty()
    before = free_bytes()
    inputs = tiny_inputs(1, 8192, seed)
    with Engine(large) as engine:
        np.testing.assert_allclose(
            engine(**inputs)["sample"], tiny_sample(inputs, tiny_weights(8192, 0)), rtol=1e-3, atol=1e-3
        )
    assert free_bytes() > before - SLACK


@pytest.mark.parametrize("graph", [True, False])
def test_no_growth_over_200_requests(tiny: Path, check: Any, graph: bool, seed: int) -> None:
    with Engine(tiny, cuda_graph=graph) as engine:
        for number in range(12):
            check(engine, (1, 2, 5)[number % 3], seed)
        before = free_bytes()
        for number in range(200):
            check(engine, (1, 2, 5)[number % 3], seed + number)
        assert free_bytes() >= before - (4 << 20)


def test_engines_leave_nothing_behind(tiny: Path, check: Any, seed: int) -> None:
    for number in range(6):
        if number == 1:
            before = free_bytes()
        with Engine(tiny) as engine, engine.context() as other:
            for each in (engine, other):
                for _ in range(3):
                    check(each, 2, seed)
    assert free_bytes() >= before - (4 << 20)


# --- Times, refusals ---------------------------------------------------------


def test_times_per_layer(tiny: Path, check: Any, seed: int) -> None:
    from tiny_engine import tiny_inputs

    with Engine(tiny) as engine:
        times = engine.profile(repeats=5, **tiny_inputs(2, WIDTH, seed))
        assert times.layers and times.milliseconds > 0
        assert sum(module.share for module in times.modules) == pytest.approx(1)
        print("\n".join(times.lines()), [layer.name for layer in times.layers])
        for _ in range(3):
            check(engine, 2, seed)
        assert graphs(engine) == 1


def changed(tiny: Path, folder: Path, **engine: Any) -> Path:
    copy = Path(shutil.copytree(tiny, folder / "changed.bundle"))
    manifest = Bundle.open(copy, runtime=False).manifest
    manifest.model_copy(update={"engine": manifest.engine.model_copy(update=engine)}).write(copy / MANIFEST)
    return copy


def test_another_gpu(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="built for compute capability 7.0, but this GPU is NVIDIA"):
        Engine(changed(tiny, tmp_path, compute_capabilities=["7.0"], and_newer=False))


def test_another_version(tiny: Path, flavour: Flavour, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"built with {flavour.title} .*9.9.9.*, but .* is installed, and plans load"):
        Engine(changed(tiny, tmp_path, version="9.9.9"))


def test_another_flavour(tiny: Path, flavour: Flavour, tmp_path: Path) -> None:
    other = "rtx" if flavour.name != "rtx" else "lean"
    with pytest.raises(VortaError, match="not installed|built with|cannot run here|does not support"):
        Engine(changed(tiny, tmp_path, flavour=other, version="1.0"))


def test_a_plan_that_tensorrt_refuses(tiny: Path, check: Any, tmp_path: Path, seed: int) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "damaged.bundle"))
    plan = (copy / PLAN).read_bytes()
    (copy / PLAN).write_bytes(plan[: len(plan) // 2])
    manifest = Bundle.open(tiny, runtime=False).manifest
    manifest.model_copy(update={"files": {PLAN: hash_file(copy / PLAN)}}).write(copy / MANIFEST)
    with pytest.raises(VortaError, match="loading .*transformer.plan failed in"):
        Engine(copy)
    with Engine(tiny) as engine:
        check(engine, 1, seed)


def test_weight_streaming(flavour: Flavour, tmp_path: Path, seed: int) -> None:
    from tiny_engine import build_tiny_engine, tiny_inputs, tiny_sample, tiny_weights

    from vorta_trt.engines import BuildError

    if not hasattr(flavour.module.BuilderFlag, "WEIGHT_STREAMING"):
        with pytest.raises(BuildError, match="weight_streaming: .* has none; leave it out"):
            build_tiny_engine(tmp_path / "streamed.bundle", flavour, weight_streaming=True)
        return
    width = 2048
    bundle = build_tiny_engine(tmp_path / "streamed.bundle", flavour, width=width, weight_streaming=True)
    inputs = tiny_inputs(2, width, seed)
    for budget in (0, 1 << 20, "auto"):
        with Engine(bundle, weight_streaming_budget=budget) as engine:  # type: ignore[arg-type]
            for _ in range(3):
                sample = engine(**inputs)["sample"]
                np.testing.assert_allclose(sample, tiny_sample(inputs, tiny_weights(width, 0)), rtol=1e-3, atol=1e-3)
            assert bool(engine.fallbacks.counts) is (budget != "auto")


def test_budgets_for_an_engine_that_streams_nothing(tiny: Path) -> None:
    with pytest.raises(VortaError, match="weight_streaming_budget 0: .*(no|without) weight streaming"):
        Engine(tiny, weight_streaming_budget=0)
