# SPDX-License-Identifier: Apache-2.0
"""`WorkerStates`: the states that the workers of a job store report; a server is ready when one of them is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vorta_trt.serving.stored_jobs import StoredJobs

HUNG = "hung"  # it gives signs of life, but its work does not go on


@dataclass(frozen=True)
class WorkerState:
    """The state that a worker last reported.

    Attributes:
        name: Name of the worker.
        process: Process id of the worker.
        state: "starting", "ready", "failed", `HUNG`.
        detail: Details: models that are loaded, bytes in use on the GPU, the reason of a failure.
        age: Seconds since the report.
    """

    name: str
    process: int
    state: str
    detail: dict[str, Any]
    age: float


class WorkerStates(StoredJobs):
    """The part of a `JobStore` that knows workers."""

    def say(self, worker: str, state: str, detail: Mapping[str, Any] | None = None) -> None:
        """Records a worker's sign of life, with its state.

        Raises:
            WriteError: The disk is full.
        """
        self._change(
            "INSERT INTO workers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
            "process = excluded.process, state = excluded.state, detail = excluded.detail, boot = excluded.boot, "
            "seen = excluded.seen",
            (worker, os.getpid(), state, json.dumps(detail or {}), self._boot, time.monotonic()),
        )

    def forget_worker(self, worker: str) -> None:
        """Forgets a worker that is gone.

        Raises:
            WriteError: The disk is full.
        """
        self._change("DELETE FROM workers WHERE name = ?", (worker,))

    def _change(self, statement: str, values: tuple[object, ...]) -> None:
        def act() -> None:
            with self._data.change(lasting=False) as change:
                change.execute(statement, values)

        self._if_there_is_space(act)

    def workers(self) -> list[WorkerState]:
        """All workers that gave a sign of life in the last three leases."""
        rows = self._data.read("SELECT * FROM workers WHERE boot = ? ORDER BY name", self._boot)
        now = time.monotonic()
        states = [
            WorkerState(row["name"], row["process"], row["state"], json.loads(row["detail"]), now - row["seen"])
            for row in rows
        ]
        return [state for state in states if state.age < 3 * self.lease_seconds]
