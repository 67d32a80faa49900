# SPDX-License-Identifier: Apache-2.0
"""`joined`: the process group that a caller gives, if this process is in it.

A process that is not among a new group's ranks gets `GroupMember.NON_GROUP_MEMBER` from `torch.distributed.new_group`,
or None with `use_local_synchronization`. torch's own functions take None for the default group, and only warn about the
other value. So neither may be passed on to them: a rank would exchange with others than it was meant to, or with none.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

import torch.distributed as dist


class Everyone(Enum):
    """A value that stands for the default group, because None could be a result of `new_group`."""

    EVERYONE = "all processes"

    def __repr__(self) -> str:
        return self.name


EVERYONE: Final = Everyone.EVERYONE
Group = dist.ProcessGroup | Literal[Everyone.EVERYONE]


def joined(group: object) -> dist.ProcessGroup:
    """Returns the process group, after a check that this process is in it.

    Args:
        group: Process group of torch.distributed; `EVERYONE` is the default group.

    Raises:
        RuntimeError: There is no default group.
        TypeError: `group` is no process group.
        ValueError: This process is not in it, or it was destroyed.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"group {group!r}: this process is in no process group; call torch.distributed.init_process_group first, "
            f"in each of the processes, which torchrun or vorta-trt generate --gpus start"
        )
    if group is EVERYONE:
        group = dist.group.WORLD
    elif group is None or group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"group {group!r}: is what torch.distributed.new_group gives to a process that is not in the group, here "
            f"rank {dist.get_rank()}; call this on those ranks alone that new_group was given. For all "
            f"{dist.get_world_size()} processes leave the group out, or give torch.distributed.group.WORLD"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group {group!r}: must be a torch.distributed process group, as new_group gives; leave it out for all "
            f"processes"
        )
    try:
        dist.get_process_group_ranks(group)
    except KeyError:
        raise ValueError("group: was destroyed; make another one with torch.distributed.new_group") from None
    return group
