# SPDX-License-Identifier: Apache-2.0
"""The TensorRT executor against a TensorRT and a CUDA runtime that are made of Python: what they are told, and what
happens when they refuse.

The bundle, its checks and the plugin library are real; `fake_tensorrt` and `host_cuda` say what is not.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.engines import Bundle, BundleError, flavours
from vorta_trt.engines import bundle as bundle_module
from vorta_trt.plugins import gpu, kernel_support
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import DeviceScratch, Engine
from vorta_trt.runtime.device.device_memory import DeviceMemory, DeviceOutOfMemory
from vorta_trt.runtime.executors import loaded_engine, tensorrt_executor
from vorta_trt.runtime.executors.tensorrt_executor import GRAPH, device_index
from vorta_trt.runtime.fallbacks import FallbackError, Fallbacks
from vorta_trt.runtime.memory_plan import batched_guidance_fits

from ..device.host_cuda import ALIGNMENT, DEFAULT_STREAM, HostCuda, HostTensor, install, on_gpu
from .fake_tensorrt import SCRATCH, STREAMING_SCRATCH, WEIGHTS, FakeTensorRT, ProfilingVerbosity

ADA = gpu.Device("NVIDIA RTX 4090", gpu.ComputeCapability(8, 9), 24 << 30)
HOPPER = gpu.Device("NVIDIA H200", gpu.ComputeCapability(9, 0), 141 << 30)


def put_gpu(monkeypatch: pytest.MonkeyPatch, *devices: gpu.Device) -> None:
    report = gpu.DriverReport(devices, "13.0", None if devices else "no GPU in this test")
    for module in (flavours, bundle_module, loaded_engine, kernel_support):
        monkeypatch.setattr(module, "driver_report", lambda: report)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    return install(monkeypatch, HostCuda())


def fake(bundle: Path, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, api: str) -> FakeTensorRT:
    flavour = flavours.TensorRTRTX()
    module = FakeTensorRT(Bundle.open(bundle, runtime=False), cuda, flavour, api)
    flavour.__dict__["module"] = module
    flavour.__dict__["targets"] = (gpu.ComputeCapability(8, 9),)
    flavour.__dict__["logger"] = object()
    monkeypatch.setitem(flavours.FLAVOURS, "rtx", flavour)
    monkeypatch.setattr(loaded_engine, "load_plugin", lambda flavour, path: path)
    put_gpu(monkeypatch, ADA)
    return module


@pytest.fixture(params=["8.6", "10", "rtx"])
def trt(
    request: pytest.FixtureRequest, bundle: Path, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeTensorRT]:
    """TensorRT replaced by the fake one, on a machine with an RTX 4090; every test must leave that GPU empty."""
    yield fake(bundle, cuda, monkeypatch, request.param)
    if cuda.blocks or cuda.streams:  # what an error that a test has kept still holds
        gc.collect()
    cuda.drain()
    assert not cuda.blocks and not cuda.executables and not cuda.graphs and not cuda.events and not cuda.streams


@pytest.fixture
def trt10(bundle: Path, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return fake(bundle, cuda, monkeypatch, "10")


def inputs(batch: int, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "hidden_states": generator.standard_normal((batch, 4, 3, 8, 12)).astype(np.float16),
        "timestep": np.full(batch, seed % 1000),
        "encoder_hidden_states": generator.standard_normal((batch, 512, 32)).astype(np.float16),
    }


def expected(feeds: dict[str, Any]) -> Any:
    times = feeds["timestep"].reshape(-1, 1, 1, 1, 1).astype(np.float16) / np.float16(1000)
    return feeds["hidden_states"] * np.float16(2) + times


def check(engine: Engine, feeds: dict[str, Any]) -> None:
    np.testing.assert_array_equal(engine(**feeds)["sample"], expected(feeds))


# --- Running -----------------------------------------------------------------


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_run(trt: FakeTensorRT, bundle: Path, batch: int, graph: bool, seed: int) -> None:
    feeds = inputs(batch, seed)
    with Engine(bundle, cuda_graph=graph) as engine:
        assert (engine.executor, engine.device) == ("tensorrt", "cuda:0")
        first = engine(**feeds)
        for number in range(4):
            check(engine, inputs(batch, seed + number))
        override = np.random.default_rng(seed).integers(-1, 3, (2, 3)).astype(np.int32)
        routes = engine(step=5, **feeds, route_override=override)["routes"]
    assert trt.plan == (bundle / "transformer.plan").read_bytes()
    np.testing.assert_array_equal(first["sample"], expected(feeds))  # not what later calls have computed
    assert first["routes"].shape == (2, batch, 3)
    assert (first["routes"] == 1).all()
    np.testing.assert_array_equal(routes[:, 0], np.where(override < 0, 1, override))


def test_layers_have_no_nvtx_ranges_unless_asked(trt: FakeTensorRT, bundle: Path, seed: int) -> None:
    made = []
    for nvtx in (False, True):
        with Engine(bundle, nvtx=nvtx) as engine:
            engine(**inputs(1, seed))
            made.append(trt.newest().nvtx_verbosity)
    assert made == [ProfilingVerbosity.NONE, ProfilingVerbosity.DETAILED]


def test_gpu_tensors_in_and_out(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    """Read in place where they are aligned, and outputs on the GPU."""
    feeds = inputs(1, seed)
    given = {name: on_gpu(cuda, value) for name, value in feeds.items() if name != "timestep"}
    for graph in (True, False):
        with Engine(bundle, cuda_graph=graph) as engine:
            for _ in range(3):
                outputs = engine(**given, timestep=feeds["timestep"])
                assert all(isinstance(tensor, HostTensor) for tensor in outputs.values())
                assert (outputs["sample"].device, outputs["sample"].dtype) == (torch.device("cuda", 0), torch.float16)
                np.testing.assert_array_equal(_read(cuda, outputs["sample"]), expected(feeds))
            read_in_place = trt.newest().addresses["hidden_states"] == given["hidden_states"].data_ptr()
            assert read_in_place is not graph
    del given, outputs


def _read(cuda: HostCuda, tensor: HostTensor, stream: int = DEFAULT_STREAM) -> Any:
    """What the caller's stream finds in a tensor."""
    read: list[bytes] = []
    address, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    cuda.put(stream, lambda: read.append(bytes(cuda.bytes_at(address, size))))
    cuda.drain(stream)
    return np.frombuffer(read[0], np.float16).reshape(tensor.shape)


@pytest.mark.parametrize("graph", [True, False])
def test_gpu_tensors_that_are_still_being_computed(
    trt: FakeTensorRT, cuda: HostCuda, bundle: Path, graph: bool, seed: int
) -> None:
    """On the caller's stream, where they are overwritten as soon as the call returns, too."""
    feeds = inputs(1, seed)
    hidden = HostTensor.make(cuda, feeds["hidden_states"].shape, torch.float16)
    with Engine(bundle, cuda_graph=graph) as engine:
        for number in range(4):
            wanted = inputs(1, seed + number)["hidden_states"]
            for _ in range(50):
                cuda.put(DEFAULT_STREAM, lambda: None)
            cuda.put(DEFAULT_STREAM, partial(ctypes.memmove, hidden.data_ptr(), wanted.tobytes(), wanted.nbytes))
            sample = engine(**{**feeds, "hidden_states": hidden})["sample"]
            cuda.put(DEFAULT_STREAM, partial(ctypes.memset, hidden.data_ptr(), 0xFF, wanted.nbytes))
            np.testing.assert_array_equal(_read(cuda, sample), expected({**feeds, "hidden_states": wanted}))
    del hidden, sample


def test_gpu_tensors_that_cannot_be_read_in_place(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    """A part of a larger tensor, at an address that TensorRT does not take, is copied."""
    feeds = inputs(1, seed)
    values = feeds["hidden_states"]
    whole = HostTensor.make(cuda, (values.size + 1,), torch.float16)
    part = torch.Tensor.__getitem__(whole, slice(1, None)).view(*values.shape).as_subclass(HostTensor)
    part.on = cuda
    part.copy_(torch.from_numpy(values), non_blocking=True)
    with Engine(bundle, cuda_graph=False) as engine:
        sample = engine(**{**feeds, "hidden_states": part})["sample"]
        np.testing.assert_array_equal(_read(cuda, sample), expected(feeds))
        assert trt.newest().addresses["hidden_states"] % ALIGNMENT == 0 != part.data_ptr() % ALIGNMENT
        check(engine, feeds)
    del whole, part, sample


# --- CUDA graphs -------------------------------------------------------------


def test_a_graph_per_shape_from_the_second_call_on(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    with Engine(bundle) as engine:
        check(engine, inputs(2, seed))  # the larger one first: scratch memory then stays where it is
        assert (cuda.captures, cuda.launches, trt.runs) == (0, 0, 1)
        check(engine, inputs(2, seed + 1))
        assert (cuda.captures, cuda.launches) == (1, 1)
        for number in range(6):  # both shapes, in turns: no graph is captured again
            check(engine, inputs(1 + number % 2, seed + number))
        assert (cuda.captures, cuda.launches) == (2, 6)
        assert trt.runs == 4  # a warm-up and a capture of each
        assert not engine.fallbacks.counts


def test_no_graph_if_not_wanted(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    with Engine(bundle, cuda_graph=False) as engine:
        for number in range(3):
            check(engine, inputs(1, seed + number))
        assert not engine.fallbacks.counts
    assert (cuda.captures, trt.runs) == (0, 3)


def test_a_graph_is_captured_again_when_scratch_memory_moves(
    trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int
) -> None:
    with DeviceScratch() as scratch, Engine(bundle, scratch=scratch) as engine:
        for number in range(3):
            check(engine, inputs(1, seed + number))
        before = cuda.captures
        memory = DeviceMemory(0)
        with memory.stream() as stream, scratch.lend(memory, stream, 10 * SCRATCH):  # what a larger engine does
            pass
        memory.close()
        for number in range(3):
            check(engine, inputs(1, seed + number))
        assert (before, cuda.captures) == (1, 2)
        assert len(cuda.executables) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_a_capture_that_tensorrt_refuses(
    trt: FakeTensorRT, cuda: HostCuda, bundle: Path, strict: bool, seed: int
) -> None:
    fallbacks = Fallbacks(strict)
    with Engine(bundle, fallbacks=fallbacks) as engine:
        trt.refuses = "capture"
        for batch in (1, 2, 1) if strict else ():
            check(engine, inputs(batch, seed))
            with pytest.raises(FallbackError, match="cuda graph capture: .*not permitted when stream is capturing"):
                engine(**inputs(batch, seed))
        for number in range(0 if strict else 4):
            check(engine, inputs(2, seed + number))
        assert not cuda.launches
        assert fallbacks.counts[GRAPH] == (0 if strict else 1)


def test_a_capture_that_cuda_refuses(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    cuda.fail["cudaGraphInstantiate"] = 2
    with Engine(bundle) as engine:
        for number in range(3):
            check(engine, inputs(1, seed + number))
        assert engine.fallbacks.counts[GRAPH] == 1


def test_an_rtx_engine_that_allocates_while_it_runs(
    bundle: Path, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    module = fake(bundle, cuda, monkeypatch, "rtx")
    module.capturable = False
    with Engine(bundle, fallbacks=Fallbacks(strict=True)) as engine:
        check(engine, inputs(1, seed))
        with pytest.raises(FallbackError, match="not capturable: .*build it again"):
            engine(**inputs(1, seed))


def test_the_shapes_used_least_lately_are_forgotten(
    trt10: FakeTensorRT, cuda: HostCuda, bundle: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(tensorrt_executor, "MOST_SHAPES", 1)
    with Engine(bundle) as engine:
        for batch in (1, 1, 2, 2, 1, 1):
            check(engine, inputs(batch, seed))
        assert (cuda.captures, len(cuda.executables), len(trt10.alive)) == (3, 1, 1)


# --- Outputs -----------------------------------------------------------------


@pytest.mark.parametrize("graph", [True, False])
def test_how_long_outputs_are_valid(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, graph: bool, seed: int) -> None:
    """On the GPU; what a NumPy caller gets is a copy in any case."""
    one, two = inputs(1, seed), inputs(1, seed + 1)
    text = on_gpu(cuda, one["encoder_hidden_states"])
    for outputs, same in (("copy", False), ("reuse", True)):
        with Engine(bundle, cuda_graph=graph, outputs=outputs) as engine:  # type: ignore[arg-type]
            first = engine(**{**one, "encoder_hidden_states": text})["sample"]
            other_shape = {
                **inputs(2, seed),
                "encoder_hidden_states": np.concatenate([one["encoder_hidden_states"]] * 2),
            }
            engine(**other_shape)
            np.testing.assert_array_equal(_read(cuda, first), expected(one))
            second = engine(**{**two, "encoder_hidden_states": text})["sample"]
            assert (first.data_ptr() == second.data_ptr()) is same
            np.testing.assert_array_equal(_read(cuda, second), expected(two))
    del first, second, text
    with pytest.raises(ValueError, match='outputs \'view\': must be "copy" .* or "reuse"'):
        Engine(bundle, outputs="view")  # type: ignore[arg-type]


# --- Profiles ----------------------------------------------------------------


def test_the_profile_that_fits_is_chosen(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    trt.batches = [(1, 1, 2), (4, 4, 8), (2, 8, 8)]
    with Engine(bundle) as engine:
        assert (engine.inputs[0].minimum[0], engine.inputs[0].maximum[0]) == (1, 8)  # type: ignore[index]
        chosen = {}
        for batch in (1, 2, 3, 4, 7):
            check(engine, inputs(batch, seed))
            chosen[batch] = next(reversed(engine._executor._shaped))[0]  # type: ignore[attr-defined]
        assert chosen == {1: 0, 2: 0, 3: 2, 4: 1, 7: 2}


def test_shapes_that_no_profile_takes(trt: FakeTensorRT, bundle: Path, seed: int) -> None:
    trt.batches = [(1, 1, 2), (4, 6, 8)]
    with Engine(bundle) as engine:
        with pytest.raises(ValueError, match=r"axis 0 \(batch\) must lie in 1..8"):
            engine(**inputs(9, seed))
        listed = r"hidden_states \[3, 4.*: fits none of .*optimization profiles; split the batch.*"
        listed += r"\n  profile 0: hidden_states \[1, 4.*\] to \[2, .*\n  profile 1: hidden_states \[4, 4.*\] to \[8, "
        with pytest.raises(ValueError, match=listed):
            engine(**inputs(3, seed))
        check(engine, inputs(4, seed))


# --- Contexts, threads -------------------------------------------------------


def test_a_second_context_shares_the_weights_alone(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    with Engine(bundle) as engine, engine.context(outputs="reuse") as other:
        for number in range(3):
            check(engine, inputs(1, seed + number))
            check(other, inputs(1, seed + 9 + number))
        assert engine.device_use() == other.device_use()
        assert len(cuda.streams) == 4 and len(cuda.executables) == 2
        assert sum(block.size == WEIGHTS for block in cuda.blocks.values()) == 1
        assert other.inputs == engine.inputs and other.metadata == engine.metadata


@pytest.mark.parametrize("first", [0, 1, 2])
def test_closing_in_any_order(trt: FakeTensorRT, bundle: Path, first: int, seed: int) -> None:
    engine = Engine(bundle)
    opened = [engine, engine.context(), engine.context()]
    for each in opened:
        check(each, inputs(1, seed))
    opened.pop(first).close()
    assert "engine" not in trt.freed
    for each in opened:
        check(each, inputs(1, seed))
        each.close()
        each.close()
    assert trt.freed == ["context"] * 3 + ["engine"]
    with pytest.raises(RuntimeError, match="this engine is closed; open a new one"):
        engine.context() if first == 0 else opened[0].context()


def test_an_engine_that_nobody_closes_is_freed_with_its_last_reference(
    trt: FakeTensorRT, bundle: Path, seed: int
) -> None:
    engine = Engine(bundle)
    for _ in range(2):
        check(engine, inputs(1, seed))
    del engine
    assert trt.freed == ["context", "engine"]  # and the fixture finds no stream and no graph


@pytest.mark.parametrize("graph", [True, False])
def test_threads_may_share_an_engine(trt: FakeTensorRT, bundle: Path, graph: bool, seed: int) -> None:
    with Engine(bundle, cuda_graph=graph) as engine:
        _in_threads(lambda number: check(engine, inputs(1 + number % 2, seed + number)))


@pytest.mark.parametrize("shared", [False, True])
def test_threads_with_a_context_each(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, shared: bool, seed: int) -> None:
    """With scratch memory of their own, or one block that they take turns in."""
    with DeviceScratch() as scratch, Engine(bundle, scratch=scratch if shared else None) as engine:
        contexts = [engine, *(engine.context(scratch=scratch if shared else None) for _ in range(3))]
        _in_threads(lambda number: check(contexts[number % 4], inputs(1, seed + number)))
        assert sum(block.size == SCRATCH for block in cuda.blocks.values()) == (
            0 if trt.api == "8.6" else 1 if shared else 4
        )
        for context in contexts[1:]:
            context.close()


def _in_threads(work: Any) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for _ in range(4):
                work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_engines_that_share_scratch_memory(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    with DeviceScratch() as scratch:
        first, second = Engine(bundle, scratch=scratch), Engine(bundle, scratch=scratch)
        for number in range(4):
            check(first, inputs(1, seed + number))
            check(second, inputs(2, seed + number))
        assert scratch.size == 2 * SCRATCH
        callers, waiting = [cuda.new_stream(), cuda.new_stream()], []
        for number in range(8):  # from streams that know nothing of each other, and nobody waits
            feeds = inputs(1, seed + number)
            cuda.thread.stream = callers[number % 2]
            on_the_gpu = {**feeds, "hidden_states": on_gpu(cuda, feeds["hidden_states"])}
            waiting.append((feeds, (first, second)[number % 2](**on_the_gpu)["sample"]))
        for number, (feeds, sample) in enumerate(waiting):
            np.testing.assert_array_equal(_read(cuda, sample, callers[number % 2]), expected(feeds))
        del waiting, sample, on_the_gpu, cuda.thread.stream
        for caller in callers:
            cuda.drop_stream(caller)
        first.close()
        check(second, inputs(2, seed))
        scratch.close()
        with pytest.raises(RuntimeError, match="this DeviceScratch is closed"):
            second(**inputs(1, seed))
        second.close()


def test_an_8_6_engine_whose_profile_cannot_be_shared(
    bundle: Path, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    module = fake(bundle, cuda, monkeypatch, "8.6")
    module.shares_profiles = False
    with Engine(bundle) as engine, engine.context() as other:
        check(engine, inputs(1, seed))
        with pytest.raises(VortaError, match="choosing profile 0.*has been chosen by another IExecutionContext"):
            other(**inputs(1, seed))
        check(engine, inputs(1, seed))


# --- Memory ------------------------------------------------------------------


def test_activations_take_what_the_shapes_need(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    with Engine(bundle) as engine:
        assert engine.device_use().scratch == 0
        check(engine, inputs(1, seed))
        assert engine.device_use().scratch == (2 * SCRATCH if trt.api == "8.6" else SCRATCH)
        check(engine, inputs(2, seed))
        assert engine.device_use().scratch == 2 * SCRATCH
        kept = sum(block.size for block in cuda.blocks.values()) - 2 * SCRATCH - WEIGHTS
        assert engine.device_use().buffers == kept


def test_room_for_a_larger_batch(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    with Engine(bundle) as engine:
        check(engine, inputs(1, seed))
        used, scratch = cuda.used, engine.device_use().scratch
        needed, free = engine.room_for(2)
        assert cuda.used == used and free == cuda.total - used
        for number in range(3):
            check(engine, inputs(2, seed + number))
        buffers = engine.device_use().buffers * 2 // 3  # of the two sets of shapes, those of batch 2
        assert needed == pytest.approx(2 * SCRATCH - scratch + 2 * buffers, rel=0.01)
        assert engine.room_for(2)[0] == 0  # it is all there
        assert batched_guidance_fits(engine, reserve=0)
        with pytest.raises(ValueError, match="fits none of the engine's optimization profiles"):
            engine.room_for(3)


def test_no_growth_over_many_calls(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    with Engine(bundle) as engine:
        for batch in (1, 1, 2, 2):
            engine(**inputs(batch, seed))
        used, blocks = cuda.used, len(cuda.blocks)
        for number in range(20):
            engine(**inputs(1 + number % 2, seed))
        assert (cuda.used, len(cuda.blocks)) == (used, blocks)


def test_no_memory_for_the_weights(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    cuda.total = WEIGHTS - 1
    with pytest.raises(
        DeviceOutOfMemory, match=r"loading .*transformer.plan \(TensorRT-RTX\) on cuda:0 needs .* 0.00 GiB"
    ):
        Engine(bundle)
    assert not cuda.blocks and not cuda.streams
    cuda.total = 1 << 30
    with Engine(bundle) as engine:
        check(engine, inputs(1, seed))


@pytest.mark.parametrize("graph", [True, False])
def test_no_memory_for_a_call(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, graph: bool, seed: int) -> None:
    """At whatever allocation of the call it happens: a clear error, nothing kept, and the engine goes on."""
    with Engine(bundle, cuda_graph=graph) as engine:
        idle = cuda.used
        check(engine, inputs(2, seed))
        needed = cuda.peak
        engine._executor._drop_contexts()  # type: ignore[attr-defined]
        engine._executor._scratch._free()  # type: ignore[attr-defined]
        assert cuda.used == idle
        tried = 0
        for total in range(idle, needed, (needed - idle) // 12):
            cuda.total = total
            with pytest.raises(DeviceOutOfMemory, match=r"needs .* bytes\), and .* are free") as caught:
                engine(**inputs(2, seed))
            assert caught.value.needed is not None and caught.value.free <= caught.value.needed
            scratch = engine.device_use().scratch
            assert cuda.used == idle + scratch
            tried += 1
        assert tried > 10
        cuda.total = 1 << 30
        check(engine, inputs(2, seed))


def test_scratch_memory_that_cannot_grow_keeps_its_size(
    trt10: FakeTensorRT, cuda: HostCuda, bundle: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    with DeviceScratch() as scratch, Engine(bundle, scratch=scratch, cuda_graph=False) as engine:
        check(engine, inputs(1, seed))
        memory = DeviceMemory(0)
        with (
            memory.stream() as stream,
            pytest.raises(DeviceOutOfMemory, match="memory for activations") as caught,
            scratch.lend(memory, stream, 2 << 30),
        ):
            pytest.fail("there is no such memory")
        assert caught.value.needed == 2 << 30
        assert scratch.size == SCRATCH
        check(engine, inputs(1, seed))
        memory.close()
        with monkeypatch.context() as patch:
            install(patch, HostCuda(device=1))
            elsewhere = DeviceMemory(1)
            wrong = pytest.raises(ValueError, match="holds memory of cuda:0.*runs on cuda:1")
            with elsewhere.stream() as stream, wrong:
                scratch.lend(elsewhere, stream, 8).__enter__()


# --- Weight streaming --------------------------------------------------------


@pytest.mark.parametrize("api", ["10", "rtx"])
@pytest.mark.parametrize(("budget", "resident"), [(0, 0), (3000, 3000), (8000, 8000), (10**12, 8000), (None, 8000)])
def test_weights_are_streamed_down_to_the_budget(
    bundle: Path, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, api: str, budget: int, resident: int, seed: int
) -> None:
    module = fake(bundle, cuda, monkeypatch, api)
    module.streamable = 8000
    with Engine(bundle, weight_streaming_budget=budget) as engine:
        for number in range(3):
            check(engine, inputs(1, seed + number))
        streams = resident < 8000
        assert engine.device_use().scratch == (2 * SCRATCH + STREAMING_SCRATCH if streams else SCRATCH)
        assert engine.fallbacks.counts[GRAPH] == streams
        assert bool(cuda.launches) is not streams
        if budget is not None:
            assert engine.device_use().weights == resident


def test_the_automatic_budget_goes_by_free_memory(trt10: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    trt10.streamable = 8000
    headroom = 1 << 30
    cuda.total = headroom + (WEIGHTS - 8000) + 2 * SCRATCH + STREAMING_SCRATCH + 5000
    with Engine(bundle, weight_streaming_budget="auto", cuda_graph=False) as engine:
        assert engine.device_use().weights == 5000
        check(engine, inputs(2, seed))
    cuda.total *= 2
    with Engine(bundle, weight_streaming_budget="auto") as engine:
        assert engine.device_use().weights == 8000
        check(engine, inputs(2, seed))


def test_streaming_in_strict_mode_is_refused_at_once(trt10: FakeTensorRT, cuda: HostCuda, bundle: Path) -> None:
    trt10.streamable = 8000
    with pytest.raises(FallbackError, match="cuda graph capture: the engine streams weights"):
        Engine(bundle, weight_streaming_budget=0, fallbacks=Fallbacks(strict=True))
    assert not cuda.blocks
    Engine(bundle, weight_streaming_budget=0, cuda_graph=False, fallbacks=Fallbacks(strict=True)).close()


def test_budgets_that_are_refused(trt: FakeTensorRT, cuda: HostCuda, bundle: Path) -> None:
    for wrong in (-1, "most", 1.5):
        with pytest.raises(ValueError, match='must be bytes of weights to keep on the GPU .*, or "auto"'):
            Engine(bundle, weight_streaming_budget=wrong)  # type: ignore[arg-type]
    why = (
        "has no weight streaming; leave it out"
        if trt.api == "8.6"
        else "built without weight streaming, .*--weight-str"
    )
    for budget in (0, "auto"):
        with pytest.raises(VortaError, match=f"weight_streaming_budget {budget}: .*{why}"):
            Engine(bundle, weight_streaming_budget=budget)  # type: ignore[arg-type]
    if trt.api != "8.6":
        trt.streamable, trt.refuses = 8000, "budget"
        with pytest.raises(VortaError, match="weight_streaming_budget 5: TensorRT-RTX .*refuses it .*active contexts"):
            Engine(bundle, weight_streaming_budget=5)
    assert not cuda.blocks


# --- Times per layer ---------------------------------------------------------


def test_times_per_layer(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, seed: int) -> None:
    with Engine(bundle) as engine:
        check(engine, inputs(1, seed))
        times = engine.profile(repeats=3, **inputs(1, seed))
        assert [(module.name, module.layers, module.milliseconds, module.share) for module in times.modules] == [
            ("blocks.*.attn1/RoutedAttention", 2, 8.0, 0.8),
            ("proj_out", 1, 2.0, 0.2),
        ]
        lines = list(times.lines())
        assert lines[0] == "10.000 ms in 3 layers, median of 3 runs"
        assert "blocks.*.attn1/RoutedAttention, 2 layers" in lines[1]
        assert len(list(times.lines(most=1))) == 3
        assert times == type(times).model_validate_json(times.model_dump_json())
        check(engine, inputs(1, seed))  # as before, with its graph
        check(engine, inputs(1, seed))
        assert cuda.launches
        with pytest.raises(ValueError, match="repeats 0: must be 1 or more"):
            engine.profile(repeats=0, **inputs(1, seed))


# --- Refusals ----------------------------------------------------------------


def test_the_profile_is_checked_before_tensorrt_is_asked(trt: FakeTensorRT, bundle: Path, seed: int) -> None:
    with Engine(bundle) as engine, pytest.raises(ValueError, match=r"axis 0 \(batch\) must lie in 1..2"):
        engine(**inputs(3, seed))


def test_everything_is_freed_from_the_inside_out(trt: FakeTensorRT, bundle: Path, seed: int) -> None:
    engine = Engine(bundle)
    engine(**inputs(1, seed))
    engine.close()
    engine.close()
    assert trt.freed == ["context", "engine"]


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("plan", "loading .*transformer.plan failed in TensorRT-RTX .*: the plan was made for another planet"),
        ("location", "the plan reads .*hidden_states.* on the host, to infer shapes from it"),
    ],
)
def test_refusals_while_loading(trt: FakeTensorRT, cuda: HostCuda, bundle: Path, refuses: str, message: str) -> None:
    trt.refuses = refuses
    with pytest.raises(VortaError, match=message):
        Engine(bundle)
    gc.collect()
    assert not cuda.streams and not cuda.blocks


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("context", "creating the execution context failed in TensorRT-RTX .*: it logged no reason"),
        ("shape", "hidden_states of shape .*TensorRT refuses it for hidden_states float16"),
        ("infer", "inferring the output shapes failed in TensorRT-RTX .*: infer_shapes error code: -1"),
        ("output shape", r"TensorRT does not know the shape of sample \[-1, .*build it again"),
        ("run", "running the engine failed in TensorRT-RTX .*: illegal memory access"),
    ],
)
def test_refusals_while_running(trt: FakeTensorRT, bundle: Path, refuses: str, message: str, seed: int) -> None:
    with Engine(bundle) as engine:
        trt.refuses = refuses
        with pytest.raises(VortaError, match=message):
            engine(**inputs(1, seed))
        trt.refuses = None
        check(engine, inputs(1, seed))


@pytest.mark.parametrize("when", ["interrupt", "interrupt capture"])
def test_ctrl_c_leaves_an_engine_that_works(
    trt: FakeTensorRT, cuda: HostCuda, bundle: Path, when: str, seed: int
) -> None:
    with Engine(bundle) as engine:
        check(engine, inputs(1, seed))
        trt.refuses = when
        with pytest.raises(KeyboardInterrupt):
            engine(**inputs(1, seed))
        trt.refuses = None
        for number in range(3):
            check(engine, inputs(1, seed + number))
        assert cuda.launches and not engine.fallbacks.counts


def test_a_gpu_that_the_engine_was_not_built_for(
    trt: FakeTensorRT, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_gpu(monkeypatch, HOPPER)
    with pytest.raises(BundleError, match="built for compute capability .*, but this GPU is NVIDIA H200"):
        Engine(bundle)
    put_gpu(monkeypatch, ADA, HOPPER)
    with pytest.raises(BundleError, match="built for compute capability .*, but cuda:1 is NVIDIA H200"):
        Engine(bundle, device="cuda:1")
    assert trt.plan is None


def test_slower_kernels_are_told_once_for_a_gpu(
    trt10: FakeTensorRT, bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = "NVIDIA RTX 4090 could be faster"
    monkeypatch.setattr(kernel_support, "slower_than_possible", lambda library, device: said)
    kernel_support.prepare_gpu.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with Engine(bundle):
                pass
    assert caplog.messages.count(said) == 1
    kernel_support.prepare_gpu.cache_clear()


def test_a_driver_that_is_too_old(trt: FakeTensorRT, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = gpu.DriverReport((ADA,), "12.4", None)
    for module in (flavours, bundle_module, loaded_engine, kernel_support):
        monkeypatch.setattr(module, "driver_report", lambda: report)
    with pytest.raises(BundleError, match=r"\(CUDA 12\.4\): .* R580 or newer; update the driver"):
        Engine(bundle)
    assert trt.plan is None


def test_no_gpu(trt: FakeTensorRT, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch)
    with pytest.raises(VortaError, match="TensorRT-RTX cannot run here: no GPU in this test"):
        Engine(bundle)
    assert trt.plan is None


def test_a_plan_of_another_version(trt: FakeTensorRT, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours.TensorRTRTX, "version", "1.6.0.1")
    for given in (bundle, Bundle.open(bundle, runtime=False)):
        with pytest.raises(BundleError, match="built with TensorRT-RTX .* but 1.6.0.1 is installed, and plans load in"):
            Engine(given)
    assert trt.plan is None


def test_tensors_that_the_manifest_does_not_know(trt: FakeTensorRT, bundle: Path) -> None:
    trt.specs["guidance"] = trt.specs["timestep"]
    with pytest.raises(VortaError, match="the plan has tensors .*guidance.*"):
        Engine(bundle)


def test_the_second_gpu(bundle: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Everything happens with that GPU current; `HostCuda` refuses it otherwise. The first one could not run it."""
    second = install(monkeypatch, HostCuda(device=1))
    fake(bundle, second, monkeypatch, "10")
    put_gpu(monkeypatch, HOPPER, ADA)
    with Engine(bundle, device="cuda:1") as engine:
        assert engine.device == "cuda:1"
        for number in range(3):
            check(engine, inputs(1, seed + number))
            assert second.current_device() == 0  # the caller's is set back
    assert not second.blocks


def test_devices(trt: FakeTensorRT, bundle: Path) -> None:
    with pytest.raises(VortaError, match=r"device cuda:1: this machine has 1 GPU\(s\)"):
        Engine(bundle, device="cuda:1")
    assert [device_index(device) for device in (None, "cuda", "cuda:1", 2, "3")] == [0, 0, 1, 2, 3]
    for wrong in ("cpu", "cuda:", "cuda:x", "", "mps", -1):
        with pytest.raises(ValueError, match='must be "cuda", "cuda:N" or a number'):
            device_index(wrong)
