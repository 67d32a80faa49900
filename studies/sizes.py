# SPDX-License-Identifier: Apache-2.0
"""Which tile does a video size get, and what do its windows see? The table of docs/sizes.md.

python studies/sizes.py            # prints the table
python studies/sizes.py --write    # puts it into docs/sizes.md
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from vorta_trt.model import AttentionGeometry

PAGE = Path(__file__).parents[1] / "docs" / "sizes.md"
COLUMNS = [
    "video, family",
    "grid",
    "tile before, covers",
    "tile",
    "last tile",
    "window covers: least, mean",
    "coreset keeps",
    "FLOPs of a head: sliding, coreset",
]
HEADER = f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|\n"


@dataclass(frozen=True)
class Row:
    """A video size.

    Attributes:
        video: Video size, with a remark where it needs one.
        family: Name of the model family.
        grid: Token grid.
        before: Tile by the rule of divisors, which this project had until 2026-11-28; None if it refused the size.
        covered: Share of the grid that a window of the tile `before` covers.
    """

    video: str
    family: str
    grid: tuple[int, int, int]
    before: tuple[int, int, int] | None
    covered: float = 0.0


ROWS = [
    Row("77x720x1280 (published)", "wan", (20, 45, 80), (5, 9, 8), 0.135),
    Row("81x720x1280", "wan", (21, 45, 80), (7, 5, 10), 0.125),
    Row("81x1280x720", "wan", (21, 80, 45), (7, 10, 5), 0.125),
    Row("81x480x832", "wan", (21, 30, 52), (7, 15, 4), 0.2308),
    Row("81x832x480", "wan", (21, 52, 30), (7, 4, 15), 0.2308),
    Row("77x480x832", "wan", (20, 30, 52), (10, 10, 4), 0.2308),
    Row("81x480x848", "wan", (21, 30, 53), None),
    Row("81x544x960", "wan", (21, 34, 60), (7, 17, 3), 0.15),
    Row("49x480x832", "wan", (13, 30, 52), (13, 15, 2), 0.1154),
    Row("121x480x832", "wan", (31, 30, 52), (31, 5, 4), 0.1154),
    Row("121x480x848", "wan", (31, 30, 53), None),
    Row("121x704x1280", "wan", (31, 44, 80), (31, 4, 4), 0.0409),
    Row("121x720x1280", "wan", (31, 45, 80), (31, 5, 4), 0.05),
    Row("121x704x1280, VAE of 16 pixels", "wan", (31, 22, 40), None),
    Row("121x1280x704, VAE of 16 pixels", "wan", (31, 40, 22), None),
    Row("1x720x1280", "wan", (1, 45, 80), (1, 15, 10), 0.375),
    Row("117x720x1280 (published)", "hunyuan_video", (30, 45, 80), (6, 9, 8), 0.108),
    Row("129x720x1280", "hunyuan_video", (33, 45, 80), (11, 5, 8), 0.1),
    Row("129x1280x720", "hunyuan_video", (33, 80, 45), (11, 8, 5), 0.1),
    Row("129x544x960", "hunyuan_video", (33, 34, 60), (11, 2, 15), 0.1324),
    Row("61x544x960", "hunyuan_video", (16, 34, 60), (4, 17, 6), 0.225),
    Row("121x480x848", "hunyuan_video", (31, 30, 53), None),
    Row("121x720x1280", "hunyuan_video", (31, 45, 80), (31, 5, 4), 0.05),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/sizes.md")
    if parser.parse_args().write:
        before, _, rest = PAGE.read_text().partition(HEADER)
        after = rest[rest.index("\n\n") :]
        PAGE.write_text(before + table().rstrip("\n") + after)
    print(table())


def table() -> str:
    """The table in Markdown."""
    return HEADER + "".join(line(row) for row in ROWS)


def line(row: Row) -> str:
    """One line of the table."""
    geometry = AttentionGeometry.for_grid(row.grid, row.family)
    video = geometry.video_tokens
    last = tuple((extent - 1) % size + 1 for extent, size in zip(geometry.grid, geometry.tile, strict=True))
    full, coreset, sliding = (geometry.attention_flops(branch, 128) for branch in ("full", "coreset", "sliding"))
    cells = [
        f"{row.video}, {row.family}",
        _times(row.grid),
        "refused" if row.before is None else f"{_times(row.before)}, {_percent(row.covered)}",
        _times(geometry.tile),
        "" if last == geometry.tile else _times(last),
        f"{_percent(geometry.least_window_tokens / video)}, {_percent(geometry.density('sliding'))}",
        _percent(geometry.coreset_tokens / video),
        f"{_percent(sliding / full)}, {_percent(coreset / full)}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


if __name__ == "__main__":
    main()
