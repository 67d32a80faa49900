# SPDX-License-Identifier: Apache-2.0
"""`Transformers` loads the transformers of a pipeline; `Turns` gives the pipeline the right one at every step.

Two experts both stay loaded where they fit. Where they do not fit, they are loaded in turn: while the first expert
samples, the files of the second are read ahead into host memory; at the switch the first is freed, the second loaded.
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

CHUNK = 1 << 24  # bytes per read
Open = Callable[[str], VortaTransformer]
FilesOf = Callable[[str], Sequence[Path]]


class Transformers:
    """The transformers of a pipeline, each loaded when it is first asked for.

    Args:
        components: "transformer", and for two experts also "transformer_2".
        open_one: Loads the transformer of a component; called when it is needed.
        files_of: Returns the files that loading a component reads.
        fallbacks: Counts what runs otherwise than asked for, in all transformers.
        size: Size of the videos, as text; see `use`.

    Attributes:
        in_turn: Whether only one of two experts is loaded at a time; set it before anything is loaded.
        on_load: Called before a transformer is loaded.
        on_free: Called when all transformers have been freed, to free what they share.
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
        """The device of the transformers; None while none is loaded."""
        return next((transformer.device for transformer in self._loaded.values()), None)

    def load(self) -> torch.device:
        """Loads all transformers, or only the first of two experts in turn; returns their device."""
        for component in self.components[: 1 if self.in_turn else None]:
            self.get(component)
        device = self.device
        assert device is not None
        return device

    def get(self, component: str) -> VortaTransformer:
        """Returns the transformer of a component, and loads it if necessary; in turn, it first frees the other one."""
        key = self._size, component
        if key not in self._loaded:
            if self.in_turn:
                self._free()
            self.on_load()
            self._loaded[key] = self._open(component)
        return self._loaded[key]

    def use(self, size: str, has_room: Callable[[], bool]) -> None:
        """Switches to the transformers of another video size.

        Args:
            size: The size, as text.
            has_room: Called if no transformer of this size is loaded. It says whether they fit beside the loaded ones,
                which are freed otherwise.
        """
        if size == self._size:
            return
        self._stop_reading()
        if not any(loaded == size for loaded, _ in self._loaded) and not has_room():
            self._free()
        self._size = size

    def read_ahead(self, component: str) -> None:
        """Starts to read the files of the next expert in the background, so that they are in the page cache later.

        It does nothing unless experts are loaded in turn.
        """
        if self.in_turn and (self._size, component) not in self._loaded:
            self._stop_reading()
            self._ahead = ReadAhead(self._files_of(component))

    def close(self) -> None:
        """Frees all transformers. May be called twice."""
        self._stop_reading()
        self._free()

    def _free(self) -> None:
        while self._loaded:
            _, transformer = self._loaded.popitem()
            transformer.close()
            del transformer
        self.on_free()
        gc.collect()
        if torch.cuda.is_available():  # the next transformer may need torch's cached memory, which TensorRT cannot use
            torch.cuda.empty_cache()

    def _stop_reading(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.stop()


class ReadAhead:
    """Reads files in a background thread, so that the operating system keeps them in its page cache.

    Args:
        files: The files, in the order in which they are read. A file that cannot be read is skipped; the loader will
            report it.
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
    """Puts the transformer of each step into a pipeline of diffusers, for one video. Each follows its own plan.

    It is a context manager around one call of the pipeline, which must get `arguments`. Experts switch between two
    steps, in the pipeline's callback at the end of a step.

    Args:
        pipeline: The pipeline of diffusers.
        transformers: The transformers of the model.
        planned: The plan of the request.
        guidance: Whether both samples of guidance share a launch.
        locate: See `VortaTransformer.request`.
        on_step: Called with the number of every step as it begins.
        ranks: The ranks that sample the same video together; None for one process.

    Attributes:
        launches: Number of launches of all transformers, known once the block has ended.
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
            passes = ranks.passes if planned.guided else None  # without guidance, all ranks compute the only pass
            self._options |= {"passes": passes, "on_latents": ranks.compare_step}
        self._stack = ExitStack()
        self._request: Request | None = None
        self._waiting = list(planned.experts)
        self.launches = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """Additional arguments for the call of the pipeline; none for one transformer."""
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
        """Puts an expert into the pipeline, and starts a request for its plan."""
        transformer = self._transformers.get(expert.component)
        setattr(self._pipeline, expert.component, transformer)
        guided = not self._planned.guided or expert.passes > 1
        self._request = self._stack.enter_context(transformer.request(expert.steps, guided=guided, **self._options))
        if self._waiting:
            self._transformers.read_ahead(self._waiting[0].component)

    def _after_step(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """The callback of diffusers at the end of every step; switches experts where it is due."""
        if self._waiting and step + 1 == self._waiting[0].steps.first and not getattr(pipeline, "interrupt", False):
            self._stack.close()  # runs the pending checks of the first expert
            self._count()
            self._take(self._waiting.pop(0))
        return {}

    def _count(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            self.launches += request.launches.total()
