# SPDX-License-Identifier: Apache-2.0
"""`LoraReport`: what was fused of a LoRA file, and what was not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoraReport:
    """The report of one LoRA file: which keys were fused, and which were not.

    Attributes:
        name: Name of the file, without its folder.
        sha256: SHA-256 hash of its content.
        strength: Strength that was asked for.
        used: Key of the file -> the parameters that it changes.
        unused: Key of the file -> why it changes nothing.
    """

    name: str
    sha256: str
    strength: float
    used: Mapping[str, tuple[str, ...]] = field(repr=False)
    unused: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        changed = {name for names in self.used.values() for name in names}
        text = f"{self.name}, strength {self.strength:g}: {len(self.used)} keys change {len(changed)} parameters"
        reasons: dict[str, list[str]] = defaultdict(list)
        for key, reason in self.unused.items():
            reasons[reason].append(key)
        return "; ".join(
            [text, *(f"{len(keys)} keys not used, {reason}: {some(keys)}" for reason, keys in reasons.items())]
        )


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many there are besides."""
    given = list(names)
    return ", ".join(given[:most]) + (f" and {len(given) - most} more" if len(given) > most else "")
