# SPDX-License-Identifier: Apache-2.0
"""`GroupPipeline`: a `VortaPipeline` that starts further processes, so that several GPUs make every video together.

    with GroupPipeline(MakeVideos(Path("model.bundle")), gpus=2) as pipe:
        pipe("A cat walks on grass", seed=1).save("cat.mp4")

It is used like a pipeline on one GPU. A callback may stop a request by raising an error. The request then ends at the
next point where all ranks meet: at its next step or, in the last stage, when the video is decoded. After any other
error in the middle of a request, or if another process is lost, the group is ended and makes no more videos.
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
    """A `VortaPipeline` in several processes; see the module's docstring and the base class.

    Args:
        request: The target and the options of its pipelines. Its `params` decide the layout of the ranks, which depends
            on whether requests have guidance.
        gpus: Number of processes, including this one.
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
        self._waiting: list[BaseException] = []  # the error of a callback that is still to be raised; one at most
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
            ParallelError: The group was ended after an earlier error.
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
            if self._is_busy and not self._is_stopped:  # the other ranks may wait in an exchange that will never come
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
        stops: list[BaseException] = []  # the error that stops the request; one at most

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
                # Any other error means that the exchange broke which tells the other ranks to stop.
                self._is_stopped = error in stops
                raise

        return step

    def _later(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Wraps a callback so that its error is raised later, where all ranks meet.

        After the first error no wrapped callback of the request is called again.
        """

        def call(*what: Any) -> None:
            if self._waiting:
                return
            try:
                callback(*what)
            except BaseException as error:
                self._waiting.append(error)

        return call

    def close(self) -> None:
        """Ends the other processes, and frees the parts of this one. May be called twice."""
        super().close()
        self._as_rank.close()
        self._leader.close()


def follow(world: World, argument: tuple[MakeVideos, Connection]) -> None:
    """The main function of the other processes: runs each request that the leader sends, until it sends None."""
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
