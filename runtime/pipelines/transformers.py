# SPDX-License-Identifier: Apache-2.0
"""`Transformers`: those of a pipeline, loaded; and `Turns`, which gives every step of a video the one that takes it.

Of two experts both stay loaded where they fit. Where they do not, one is loaded at a time: while the first samples, the
files of the second are read ahead into the host's memory, and at the switch the first is freed and the second loaded.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from vorta_trt.model.constants import COMPONENTS
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.parallel.ranks import Ranks
from vorta_trt.runtime.pipelines.planned import ExpertPlan, PlannedRequest
from vorta_trt.runtime.pipelines.request import OnStep, Request
from vorta_trt.runtime.pipelines.transformer import VortaTransformer
from vorta_trt.runtime.sampling.params import GuidanceMode

CHUNK = 1 << 24  # bytes that are read ahead at once
Open = Callable[[str], VortaTransformer]
FilesOf = Callable[[str], Sequence[Path]]


class Transformers:
    """The transformers of a pipeline, each loaded when it is first asked for.

    Args:
        components: "transformer", and of two experts "transformer_2".
        open_one: Called with a component when it is needed.
        files_of: Gives the files that loading a component reads.
        fallbacks: Counts what runs otherwise than asked for, in all of them.
        size: Of the videos; see `use`.

    Attributes:
        in_turn: Of two experts only one is loaded at a time; set it before anything is loaded.
        on_load: Called before one is loaded.
        on_free: Called when all have been freed, for what they share.
    """

    def __init__(
        self, components: Sequence[str], open_one: Open, files_of: FilesOf, fallbacks: Fallbacks, size: str = ""
    ) -> None:
        self.components = tuple(components)
        self.fallbacks = fallbacks
        self.in_turn = False
        self.on_load: Callable[[], None] = lambda: None
        self.on_free: Callable[[], None] = lambda: None
        self._open, self._files_of = open_one, files_of
        self._loaded: dict[tuple[str, str], VortaTransformer] = {}  # by size and component
        self._size = size
        self._ahead: ReadAhead | None = None

    @property
    def device(self) -> torch.device | None:
        """Where they run; None while none is loaded."""
        return next((transformer.device for transformer in self._loaded.values()), None)

    def load(self) -> torch.device:
        """Loads all of them, or of experts in turn the first; returns where they run."""
        for component in self.components[: 1 if self.in_turn else None]:
            self.get(component)
        device = self.device
        assert device is not None
        return device

    def get(self, component: str) -> VortaTransformer:
        """A transformer, loaded; in turn, the other one is freed first."""
        key = self._size, component
        if key not in self._loaded:
            if self.in_turn:
                self._free()
            self.on_load()
            self._loaded[key] = self._open(component)
        return self._loaded[key]

    def use(self, size: str, has_room: Callable[[], bool]) -> None:
        """Those of a video size are meant from now on.

        Args:
            size: What tells the sizes apart.
            has_room: Asked if they are not loaded: whether they fit beside what is; else that is freed.
        """
        if size == self._size:
            return
        self._stop_reading()
        if not any(loaded == size for loaded, _ in self._loaded) and not has_room():
            self._free()
        self._size = size

    def read_ahead(self, component: str) -> None:
        """In turn, begins to read the files of the expert that comes next, so that loading it finds them in memory."""
        if self.in_turn and (self._size, component) not in self._loaded:
            self._stop_reading()
            self._ahead = ReadAhead(self._files_of(component))

    def close(self) -> None:
        """Frees all of them. May be called twice."""
        self._stop_reading()
        self._free()

    def _free(self) -> None:
        while self._loaded:
            _, transformer = self._loaded.popitem()
            transformer.close()
            del transformer
        self.on_free()
        gc.collect()
        if torch.cuda.is_available():  # the next one needs what torch keeps but TensorRT cannot use
            torch.cuda.empty_cache()

    def _stop_reading(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.stop()


class ReadAhead:
    """Reads files in a thread of its own, for the operating system to keep them in memory.

    Args:
        files: In the order in which they are read; one that cannot be read is left to whoever needs it.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(tuple(files),), name="read ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the reading, and waits until it has ended."""
        self._stopped.set()
        self._thread.join()

    def wait(self) -> None:
        """Waits until everything is read."""
        self._thread.join()

    def _read(self, files: Sequence[Path]) -> None:
        buffer = bytearray(CHUNK)
        for file in files:
            try:
                with file.open("rb", buffering=0) as stream:
                    while not self._stopped.is_set() and stream.readinto(buffer):
                        pass
            except OSError:
                continue


class Turns:
    """Gives a pipeline of diffusers the transformer of every step of one video, each with its own plan.

    A context manager around one call of the pipeline, which gets `arguments`. Experts switch between two steps, in the
    pipeline's own callback.

    Args:
        pipeline: diffusers' pipeline.
        transformers: What runs it.
        planned: What is sampled.
        guidance: Whether both samples of guidance share a launch.
        locate: See `VortaTransformer.request`.
        on_step: Called with the number of every step as it begins.
        ranks: Other processes that sample the same video; None for none.

    Attributes:
        launches: Of all transformers, once the block has ended.
    """

    def __init__(
        self,
        pipeline: Any,
        transformers: Transformers,
        planned: PlannedRequest,
        *,
        guidance: GuidanceMode,
        locate: bool | None,
        on_step: OnStep | None,
        ranks: Ranks | None = None,
    ) -> None:
        self._pipeline, self._transformers, self._planned = pipeline, transformers, planned
        self._options = {"guidance": guidance, "locate": locate, "on_step": on_step, "pipeline": pipeline}
        if ranks is not None:
            passes = ranks.passes if planned.guided else None  # without guidance there is one, which all compute
            self._options |= {"passes": passes, "on_latents": ranks.compare_step}
        self._stack = ExitStack()
        self._request: Request | None = None
        self._waiting = list(planned.experts)
        self.launches = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """What the pipeline is called with besides: nothing for one transformer."""
        return {"callback_on_step_end": self._after_step} if self._waiting else {}

    def __enter__(self) -> Turns:
        for component in set(COMPONENTS) & set(self._pipeline.components):
            setattr(self._pipeline, component, None)
        self._take(self._waiting.pop(0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        self._count()

    def _take(self, expert: ExpertPlan) -> None:
        """Puts an expert into the pipeline, and lets it follow its plan."""
        transformer = self._transformers.get(expert.component)
        setattr(self._pipeline, expert.component, transformer)
        guided = not self._planned.guided or expert.passes > 1
        self._request = self._stack.enter_context(transformer.request(expert.steps, guided=guided, **self._options))
        if self._waiting:
            self._transformers.read_ahead(self._waiting[0].component)

    def _after_step(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """What diffusers calls at the end of every step."""
        if self._waiting and step + 1 == self._waiting[0].steps.first and not getattr(pipeline, "interrupt", False):
            self._stack.close()  # what the first has not checked yet
            self._count()
            self._take(self._waiting.pop(0))
        return {}

    def _count(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            self.launches += request.launches.total()
