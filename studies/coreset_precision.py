# SPDX-License-Identifier: Apache-2.0
"""How many kept tokens change where a coreset is chosen in bfloat16, as in the authors' code, and not in float32?

    python studies/coreset_precision.py

Queries are bfloat16. A token is `alike` times its bucket's own random direction plus noise of the same length, so that
the cosine similarity of two tokens of a bucket is about alike^2 / (1 + alike^2). The authors' way takes similarities by
`torch.cosine_similarity` in the type of the tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.benchmarks.harness import write_result
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.boxes import box_centre
from vorta_trt.model.indices import bucket_tables
from vorta_trt.model.reference import select_coreset

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
GRID, HEADS, HEAD_DIM = (20, 45, 80), 2, 128
ALIKE = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args()

    geometry = AttentionGeometry(
        grid=GRID, tile=(5, 9, 8), window=(3, 3, 3), bucket=(2, 3, 2), keep=6, coreset_keys="query", text_tokens=0
    )
    generator = torch.Generator().manual_seed(arguments.seed)
    rows = []
    for alike in ALIKE:
        tokens = random_tokens(geometry, alike, generator)  # [N, S, D]
        changed = float((kept(tokens, geometry) & ~kept_in_their_type(tokens, geometry)).sum())
        share = changed / (HEADS * geometry.coreset_tokens)
        rows.append({"alike": alike, "similarity": alike**2 / (1 + alike**2), "other_tokens": round(share, 4)})
        print(f"similarity about {rows[-1]['similarity']:.3f}: {share:.1%} of the kept tokens are others")
    print("written:", write_result(arguments.output, "coreset-precision", {"heads": HEADS, "grid": GRID, "rows": rows}))


def random_tokens(geometry: AttentionGeometry, alike: float, generator: torch.Generator) -> Tensor:
    """Queries bfloat16 [N, S, D] whose tokens are more or less alike within a bucket."""
    ((_, table),) = bucket_tables(geometry)  # [G, K]
    tokens = torch.randn(HEADS, geometry.video_tokens, HEAD_DIM, generator=generator)  # [N, S, D]
    shared = torch.randn(HEADS, len(table), 1, HEAD_DIM, generator=generator)  # [N, G, 1, D]
    tokens[:, table.flatten()] += alike * shared.expand(-1, -1, table.shape[1], -1).flatten(1, 2)
    return tokens.bfloat16()


def kept(tokens: Tensor, geometry: AttentionGeometry) -> Tensor:
    """Which tokens stay by float32 similarities: bool [N, S]."""
    return _flags(tokens, select_coreset(tokens, geometry).kept)


def kept_in_their_type(tokens: Tensor, geometry: AttentionGeometry) -> Tensor:
    """Which tokens stay by similarities in the tokens' type: bool [N, S]."""
    ((kind, table),) = bucket_tables(geometry)  # [G, K]
    place = box_centre(kind.shape)
    centre = table[:, place]  # [G]
    others = torch.cat([table[:, :place], table[:, place + 1 :]], dim=1)  # [G, K - 1]
    centres = tokens[:, centre].unsqueeze(2)  # [N, G, 1, D]
    similarity = functional.cosine_similarity(tokens[:, others], centres, dim=-1)  # [N, G, K - 1]
    order = similarity.argsort(dim=-1, stable=True)[..., : geometry.keep - 1]  # least similar first
    chosen = others.expand_as(similarity).gather(-1, order)  # [N, G, keep - 1]
    return _flags(tokens, torch.cat([centre.expand(HEADS, -1).unsqueeze(-1), chosen], dim=-1).flatten(1))


def _flags(tokens: Tensor, ids: Tensor) -> Tensor:
    flags = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    return flags.scatter_(1, ids, True)


if __name__ == "__main__":
    main()
