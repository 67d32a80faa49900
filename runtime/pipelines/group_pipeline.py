# SPDX-License-Identifier: Apache-2.0
"""`GroupPipeline`: a `VortaPipeline` whose process leads others, so that several GPUs make every video.

    with GroupPipeline(MakeVideos(Path("model.bundle")), gpus=2) as pipe:
        pipe("A cat walks on grass", seed=1).save("cat.mp4")

Whoever calls it sees no more of the others than of one GPU. A callback may stop a request, which ends at its next step
or, in the last stage, when the video is decoded: where all ranks come together. After any other error in the middle of
a request, or the loss of another process, the group is at an end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from vorta_trt.runtime.parallel.errors import ParallelError, StoppedError
from vorta_trt.runtime.parallel.leader import Leader, OnFailure, end_at_once
from vorta_trt.runtime.parallel.rank_process import is_broken_exchange
from vorta_trt.runtime.parallel.world import TIMEOUT, World
from vorta_trt.runtime.pipelines.making import MakeVideos, as_rank, kind_of
from vorta_trt.runtime.pipelines.pipeline import OnVideo, VortaPipeline


class GroupPipeline(VortaPipeline):
    """See the module and the base class.

    Args:
        request: The target and the options of its pipelines; `params` tell whether requests usually have guidance.
        gpus: How many processes there are, this one among them.
        timeout: See `launch`.
        on_failure: See `Leader`.

    Raises:
        ValueError: The GPUs do not suit the target.
        ParallelError: See `launch`.
    """

    def __init__(
        self, request: MakeVideos, gpus: int, *, timeout: float = TIMEOUT, on_failure: OnFailure = end_at_once
    ) -> None:
        self._is_busy = self._is_stopped = False
        self._waiting: list[BaseException] = []  # of a callback, one at most
        self._leader = Leader(follow, request, gpus=gpus, kind=kind_of(request), timeout=timeout, on_failure=on_failure)
        self._as_rank = ExitStack()
        try:
            planner, ranks, device = self._as_rank.enter_context(as_rank(self._leader.world, request))
            where = {} if device is None else {"device": device}
            super().__init__(planner, ranks=ranks, **{**request.pipeline, **where})
        except BaseException:
            self._leader.close(broken=True)
            raise

    def generate_each(self, prompts: Sequence[str], on_video: OnVideo, *arguments: Any, **options: Any) -> None:
        """See the base class.

        Raises:
            RankError: Another process was lost, and `on_failure` returned.
            ParallelError: The group is at an end.
        """
        if options.get("generator") is not None:
            raise ValueError("generator: cannot be shared by several processes; give a seed")
        if self.is_over:
            raise ParallelError("the processes that made videos together were ended; load the model again")
        self._waiting.clear()
        for name in ("on_stage", "on_frames"):
            if options.get(name) is not None:
                options[name] = self._later(options[name])
        try:
            super().generate_each(prompts, self._later(on_video), *arguments, **options)
            if self._waiting:
                self._is_stopped = True
                raise self._waiting[0]
        except BaseException as error:
            if self._is_busy and not self._is_stopped:  # the others may wait for what will not come
                self.is_over = True
                lost = self._leader.failure() if is_broken_exchange(error) else None
                self._leader.close(broken=True)
                if lost is not None:
                    raise lost from lost.__cause__
            raise
        finally:
            self._is_busy = self._is_stopped = False

    def _announce(self, prompts: Sequence[str], **request: Any) -> None:
        self._leader.tell((list(prompts), request))
        self._is_busy = True

    def _together(self, on_step: Any) -> Any:
        stops: list[BaseException] = []  # one at most

        def first(*what: Any) -> None:
            try:
                if self._waiting:
                    raise self._waiting[0]
                if on_step is not None:
                    on_step(*what)
            except BaseException as error:
                stops.append(error)
                raise

        agreed = super()._together(first)
        assert agreed is not None  # there are ranks

        def step(*what: Any) -> None:
            try:
                agreed(*what)
            except BaseException as error:
                self._is_stopped = error in stops  # else the exchange broke by which the others hear of it
                raise

        return step

    def _later(self, callback: Callable[..., None]) -> Callable[..., None]:
        """A callback whose error is raised where all ranks come together; until then it is not called any more."""

        def call(*what: Any) -> None:
            if self._waiting:
                return
            try:
                callback(*what)
            except BaseException as error:
                self._waiting.append(error)

        return call

    def close(self) -> None:
        """Ends the others, and frees what is here. May be called twice."""
        super().close()
        self._as_rank.close()
        self._leader.close()


def follow(world: World, argument: tuple[MakeVideos, Connection]) -> None:
    """What the other processes do: the same requests, until there are no more."""
    request, commands = argument
    options = dict(request.pipeline)
    with as_rank(world, request) as (planner, ranks, device):
        if device is not None:
            options["device"] = device
        with VortaPipeline(planner, ranks=ranks, **options) as pipeline:
            while (command := commands.recv()) is not None:
                prompts, asked = command
                try:
                    pipeline.generate_each(prompts, lambda number, video: None, **asked)
                except StoppedError:
                    continue
