# SPDX-License-Identifier: Apache-2.0
"""The resources of a Ray cluster that a replica takes: GPUs, all of one machine, and processors.

A replica of several GPUs has a Ray placement group with one placement bundle that holds all of them. Such a bundle lies
on one machine, and Ray shows the replica's process these GPUs alone (CUDA_VISIBLE_DEVICES). The process starts the
ranks as a worker of `vorta-trt serve` does, and they take the GPUs by their numbers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReplicaResources:
    """The resources that one replica takes.

    Attributes:
        gpus: Number of GPUs. A fraction shares one GPU with other replicas; 0 is none.
        cpus: Number of processors.
    """

    gpus: float
    cpus: float

    def options(self) -> dict[str, Any]:
        """The resources as options of a Ray Serve deployment."""
        options: dict[str, Any] = {"ray_actor_options": {"num_gpus": self.gpus, "num_cpus": self.cpus}}
        if self.gpus > 1:
            options |= {
                "placement_group_bundles": [{"GPU": self.gpus, "CPU": self.cpus}],
                "placement_group_strategy": "STRICT_PACK",
            }
        return options

    def check(self, machines: Iterable[Mapping[str, float]], replicas: int) -> None:
        """Raises ValueError unless this many replicas fit at once; Ray would wait for more machines for ever.

        Args:
            machines: Resources of each machine, "GPU" and "CPU", in use or not.
            replicas: Number of replicas that are always there.
        """
        machines = list(machines)
        if (fit := sum(map(self._fit, machines))) >= replicas:
            return
        largest = max(machines, key=lambda machine: (machine.get("GPU", 0), machine.get("CPU", 0)), default={})
        have = f"{largest.get('GPU', 0):g} GPUs and {largest.get('CPU', 0):g} processors"
        raise ValueError(
            f"gpus {self.gpus:g}, cpus {self.cpus:g}, min_replicas {replicas}: a replica takes its GPUs and processors "
            f"of one machine, and this Ray has room for {fit:g} such: of its "
            f"{len(machines)} machine{'' if len(machines) == 1 else 's'} the one with the most GPUs has {have}; "
            f"give fewer, or start Ray with more (gpus 0 runs exported ONNX files on the CPU)"
        )

    def _fit(self, machine: Mapping[str, float]) -> float:
        """How many replicas a machine holds."""
        wanted = {"GPU": self.gpus, "CPU": self.cpus}
        return min((machine.get(name, 0) // count for name, count in wanted.items() if count), default=float("inf"))


def machines_of_cluster() -> list[dict[str, float]]:
    """Resources of the machines of the Ray that this process is connected to."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
