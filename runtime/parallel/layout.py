# SPDX-License-Identifier: Apache-2.0
"""`Layout`: which rank computes what. With guidance in parallel, one half of the ranks computes each of the two passes.

    4 ranks, with guidance       ranks 0, 1: conditional pass      ranks 2, 3: unconditional pass
    4 ranks, without             ranks 0 to 3: the only pass

Each of the ranks that share a pass holds a part of the tokens and, in the attention, a part of the heads
(`RoutedTransformer.parallelize`).
"""

from __future__ import annotations

from dataclasses import dataclass

PASSES = 2  # number of passes with classifier-free guidance


@dataclass(frozen=True)
class Layout:
    """How the ranks of a run are assigned to passes, and to shares of a pass.

    Attributes:
        ranks: Number of ranks.
        guidance: 2 where both passes of a step run at once, otherwise 1.
    """

    ranks: int
    guidance: int = 1

    @property
    def sharing(self) -> int:
        """How many ranks share a pass."""
        return self.ranks // self.guidance

    def pass_of(self, rank: int) -> int:
        """Index of the pass that a rank computes: 0, or with guidance in parallel 1 for the unconditional pass."""
        return rank // self.sharing

    def sharers(self) -> list[list[int]]:
        """The ranks of each pass: a list for each pass."""
        return [list(range(one * self.sharing, (one + 1) * self.sharing)) for one in range(self.guidance)]

    def partners(self) -> list[list[int]]:
        """The ranks that hold the same share of their passes: a list for each share."""
        return [list(range(share, self.ranks, self.sharing)) for share in range(self.sharing)]

    def __str__(self) -> str:
        if self.ranks == 1:
            return "1 rank"
        if self.guidance == 1:
            return f"{self.ranks} ranks share every pass"
        share = f"{self.sharing} ranks" if self.sharing > 1 else "one rank"
        return f"{self.ranks} ranks: {share} for each of the two passes of guidance"


def in_groups(guidance: int, sharing: int) -> str:
    """In words, how many GPUs share a pass, and how many groups of them compute the passes of a step."""
    if guidance == 1:
        return f"{sharing} GPUs that share a pass"
    return f"{guidance} x {sharing} GPUs (guidance x heads)"


def choose_layout(
    ranks: int, *, guided: bool, heads: int, guidance_parallel: bool | None = None, shared_by: int | None = None
) -> Layout:
    """The layout of a run.

    Args:
        ranks: Number of ranks.
        guided: Whether a step has two passes.
        heads: Number of attention heads N of the transformer.
        guidance_parallel: Whether both passes run at once. None runs them at once if there are two and `ranks` is even,
            unless the engine was built for all ranks.
        shared_by: Number of ranks that must share a pass, for which the engine was built; None allows any number.

    Raises:
        ValueError: The arguments do not fit together.
    """
    if guidance_parallel and not guided:
        raise ValueError(
            "guidance_parallel: there is one pass a step, since guidance is off; leave it out, or give a guidance scale"
        )
    if guidance_parallel and ranks % PASSES:
        raise ValueError(f"guidance_parallel with gpus {ranks}: must be even, half of them for each pass; give gpus 2")

    def spread(count: int) -> Layout:
        both = guided and not count % PASSES if guidance_parallel is None else guidance_parallel
        if guidance_parallel is None and shared_by == count:
            both = False  # the engine is built for all ranks
        return Layout(count, PASSES if both else 1)

    layout = spread(ranks)
    if shared_by is not None and layout.sharing != shared_by:
        can = [str(shared_by)] if shared_by > 1 else []
        can += [f"{shared_by * PASSES} with guidance in parallel"] if guided and guidance_parallel is not False else []
        what = "for one GPU" if shared_by == 1 else f"for {shared_by} GPUs"
        raise ValueError(
            f"gpus {ranks}: the engine is built {what}"
            + (f"; give {' or '.join(can)}" if can else "; leave it out: guidance in parallel needs a guidance scale")
        )
    if heads % layout.sharing:
        step = PASSES if guidance_parallel else 1
        fit = ", ".join(str(n) for n in range(step, PASSES * heads + 1, step) if heads % spread(n).sharing == 0)
        raise ValueError(
            f"gpus {ranks}: {layout.sharing} of them would share a pass, and the model's {heads} heads are no multiple "
            f"of that; use one of {fit}"
        )
    return layout
