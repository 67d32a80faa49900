# SPDX-License-Identifier: Apache-2.0
"""What do 2, 4, 8 and 16 GPUs bring, by simulation? Balance of heads, exchanges, and where Ulysses ends.

Nothing runs on a GPU here. Routes are random, a branch for each head, step and layer; times follow from the rates that
one H100 and its exchanges were measured at (`runtime/parallel/rates.py`). 16 GPUs are two nodes of 8: NVLink inside, a
network of 400 Gbit/s for each GPU between them, of which 90 % is assumed to be reached. Guidance is not counted but
where it is named.

    python studies/several_gpus.py [--json results.json] [--plot several-gpus.png]

Letters: S steps, L layers, N heads, P GPUs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.benchmarks.step.cases import CASES
from vorta_trt.model.families import get_family
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.parallel.balance import Balance
from vorta_trt.model.parallel.placement import BranchCosts, head_order, head_orders, head_work, rank_loads
from vorta_trt.model.transformer import routed_class
from vorta_trt.model.transformer_flops import other_flops
from vorta_trt.plugins.operator_schema import AttentionPrecision
from vorta_trt.runtime.parallel.rank_plan import plan_ranks
from vorta_trt.runtime.parallel.rates import H100, PassWork

MODELS = ("wan-14b", "hunyuan-video")
MIXES = {"0.2 % full": (0.002, 0.499, 0.499), "10 % full": (0.1, 0.45, 0.45)}
PRECISIONS: tuple[AttentionPrecision, ...] = ("same", "fp8")  # of attention and linear layers
STEPS = 20
NODE, NODES = 8, 2  # GPUs of a node, nodes
NETWORK = 0.9 * 400e9 / 8  # bytes/s of a GPU to other nodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="draw times by number of GPUs into this file")
    options = parser.parse_args()
    results: dict[str, Any] = {"study": "several_gpus", "simulated": True, "rates": H100.name, "network": NETWORK}
    results["balance"] = list(balances())
    results["passes"] = list(passes())
    results["two_nodes"] = list(two_nodes())
    for table in ("balance", "passes", "two_nodes"):
        for row in results[table]:
            cells = (
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
            print(f"{table}: {', '.join(cells)}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot is not None:
        draw(results["passes"], options.plot)


def pass_work(model: str, precision: AttentionPrecision = "same") -> PassWork:
    """A pass of a model of `bench step` at its published size."""
    case = CASES[model]
    model_config: Any = routed_class(case.family).empty_diffusers_model(case.config).config
    config = dict(model_config)
    layers = sum(get_family(case.family).stacks(config).values())
    flops = sum(other_flops(case.family, config, case.geometry).values())
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    return PassWork(case.geometry, layers, heads, head_dim, float(flops), "bfloat16", precision, precision)


def random_routes(work: PassWork, mix: str, seed: int = 0) -> Tensor:
    """Branch ids [S, L, N], each drawn by itself."""
    generator = torch.Generator().manual_seed(seed)
    shares, count = torch.tensor(MIXES[mix]), STEPS * work.layers * work.heads
    drawn = torch.multinomial(shares, count, replacement=True, generator=generator)
    return drawn.view(STEPS, work.layers, work.heads).int()


def balances() -> Iterator[dict[str, Any]]:
    """Work of the busiest GPU over the mean, with as many heads on each GPU and, placed by work, any number."""
    for model in MODELS:
        work = pass_work(model)
        costs = BranchCosts.of(work.geometry)
        for mix in MIXES:
            routes = random_routes(work, mix)
            for gpus in (2, 4, 8, 16):
                row: dict[str, Any] = {"model": model, "mix": mix, "gpus": gpus}
                if work.heads % gpus == 0:
                    balance = Balance.of(routes, gpus, costs)
                    row["in_order"] = _over_mean(balance.in_order)
                    row["in_order_worst"] = float(balance.over_mean()["in order"].max())
                    row["balanced"] = _over_mean(balance.balanced)
                    row["one_order_for_4_steps"] = one_order(routes[:4], costs, gpus)
                    row["balanced_worst"] = float(balance.over_mean()["balanced"].max())
                loads, heads = any_counts(routes, costs, gpus)
                row["any_counts"] = _over_mean(loads)
                row["most_heads"] = int(heads.max())
                yield row


def one_order(routes: Tensor, costs: BranchCosts, gpus: int) -> float:
    """Work of the busiest GPU over the mean, with one order of heads per layer for all steps, by their summed work."""
    order = head_order(routes.transpose(0, 1), costs, gpus)  # [L, N]
    return _over_mean(rank_loads(routes.unsqueeze(-2), costs, order.expand(*routes.shape), gpus))


def any_counts(routes: Tensor, costs: BranchCosts, gpus: int) -> tuple[Tensor, Tensor]:
    """Gives each head, the heaviest first, to the GPU with the least work: loads and numbers of heads [S, L, P]."""
    unit = costs.full / int(head_work(torch.tensor([0]), costs))
    work = head_work(routes, costs).flatten(0, 1).sort(dim=-1, descending=True).values  # [S*L, N]
    load, heads = work.new_zeros(len(work), gpus), work.new_zeros(len(work), gpus)
    for head in work.split(1, dim=-1):
        least = load.argmin(-1, keepdim=True)
        load = load.scatter_add(-1, least, head)
        heads = heads.scatter_add(-1, least, torch.ones_like(least))
    shape = (*routes.shape[:2], gpus)
    return load.view(shape) * unit, heads.view(shape)


def passes() -> Iterator[dict[str, Any]]:
    """Predicted seconds of a pass inside a node, by part, with heads in order and balanced."""
    for model in MODELS:
        for precision in PRECISIONS:
            work = pass_work(model, precision)
            for mix in MIXES:
                routes = random_routes(work, mix)
                for gpus in (1, 2, 4, 8):
                    plan = plan_ranks(work, routes, ulysses=gpus)
                    balanced = {name: value / STEPS for name, value in plan.balanced.model_dump().items()}
                    yield {
                        **{"model": model, "precision": precision, "mix": mix, "gpus": gpus},
                        **balanced,
                        "seconds": plan.balanced.total / STEPS,
                        "seconds_in_order": plan.in_order.total / STEPS,
                        "speedup": plan.speedup,
                        "speedup_in_order": plan.one_gpu.total / plan.in_order.total,
                        "share_of_exchange": plan.balanced.exchange / plan.balanced.total,
                    }


def two_nodes() -> Iterator[dict[str, Any]]:
    """Predicted seconds of a pass on 16 GPUs in several ways, beside 8 of one node."""
    gpus = NODE * NODES
    for model in MODELS:
        for precision in PRECISIONS:
            work = pass_work(model, precision)
            for mix in MIXES:
                routes = random_routes(work, mix)
                alone = plan_ranks(work, routes, ulysses=1).one_gpu.total / STEPS
                node = plan_ranks(work, routes, ulysses=NODE).balanced
                largest = max(count for count in range(1, gpus + 1) if work.heads % count == 0)
                ways = {
                    f"heads on {NODE} GPUs of one node": (node.total / STEPS, node.exchange / STEPS, NODE),
                    f"heads on {largest} of {gpus} GPUs, two nodes": (*across(work, routes, largest), largest),
                    f"heads on {gpus} GPUs, any counts": (*uneven(work, routes, gpus), gpus),
                    f"heads on {NODE} GPUs of a node, tokens on {NODES} nodes": (*context(work, routes), gpus),
                    f"guidance on {NODES} nodes, heads on {NODE} GPUs, half of both passes": (
                        *(value / 2 / STEPS for value in (node.total, node.exchange)),
                        gpus,
                    ),
                }
                for way, (seconds, exchange, used) in ways.items():
                    yield {
                        **{"model": model, "precision": precision, "mix": mix, "way": way, "gpus": used},
                        **{"seconds": seconds, "exchange": exchange, "speedup": alone / seconds},
                    }


def across(work: PassWork, routes: Tensor, gpus: int) -> tuple[float, float]:
    """Heads on GPUs of two nodes, as many on each: seconds of a pass and of its exchanges."""
    plan = plan_ranks(work, routes, ulysses=gpus).balanced
    exchange = work.layers * sum(_exchange_across(sent, gpus) for sent in work.sent_bytes(gpus))
    return (plan.other + plan.attention) / STEPS + exchange, exchange


def uneven(work: PassWork, routes: Tensor, gpus: int) -> tuple[float, float]:
    """Any number of heads on a GPU of two nodes, which receives more tokens for more heads: seconds as in `across`."""
    profile = H100.profile(work)
    loads, heads = any_counts(routes, profile.branch_costs, gpus)
    attention = float(loads.amax(-1).sum()) / STEPS
    received = heads.amax(-1).double() * gpus / work.heads  # [S, L], over what it is with equal counts
    exchange = sum(
        float(sum(_exchange_across(sent * more, gpus) for more in received.flatten().tolist())) / STEPS
        for sent in work.sent_bytes(gpus)
    )
    return profile.other * work.rows(gpus) / work.rows(1) + attention + exchange, exchange


def context(work: PassWork, routes: Tensor) -> tuple[float, float]:
    """Half of the queries on each node, heads exchanged inside a node, keys and values across: seconds as in `across`.

    Which tokens a node needs of the other depends on the branch: all, those that the coreset keeps, or those that its
    windows reach. They are sent while the node computes with its own keys; only what takes longer than that counts.
    """
    profile, geometry = H100.profile(work), work.geometry
    shares = (0.5, geometry.coreset_tokens / geometry.video_tokens / 2, foreign_share(geometry))
    each = 2 * geometry.video_tokens * work.head_dim * work.element_bytes  # keys and values of a head
    order = head_orders(routes, BranchCosts.of(geometry, work.attention_precision), NODE)
    arriving = rank_loads(routes.unsqueeze(-2), [each * share for share in shares], order, NODE)  # bytes [S, L, 8]
    attention = rank_loads(routes.unsqueeze(-2), profile.branch_costs, order, NODE) / NODES
    own = (
        rank_loads(
            routes.unsqueeze(-2),
            [
                cost * part
                for cost, part in zip(profile.branch_costs, (0.5, 0.5, 1 - foreign_share(geometry)), strict=True)
            ],
            order,
            NODE,
        )
        / NODES
    )
    waiting = (arriving / NETWORK - own).clamp(min=0)
    gpus = NODE * NODES
    inside = [sent / (gpus - 1) * (NODE - 1) for sent in work.sent_bytes(gpus)]  # to the 7 others of its node
    exchange = work.layers * sum(map(H100.exchange, (sent * NODES for sent in inside)))
    computed = float((attention + waiting).amax(-1).sum()) / STEPS
    waited = computed - float(attention.amax(-1).sum()) / STEPS
    other = profile.other * work.rows(gpus) / work.rows(1)
    return other + computed + exchange, exchange + waited


def foreign_share(geometry: AttentionGeometry) -> float:
    """Share of all frames that windows of one half of the frames reach in the other, the more of both halves."""
    frames, tile, window = geometry.grid[0], geometry.tile[0], geometry.window[0]
    tiles, half = -(-frames // tile), frames / 2
    reach = []
    for frame in range(frames):
        centre = min(max(frame // tile, window // 2), max(tiles - 1 - window // 2, window // 2))
        first, last = max(0, centre - window // 2) * tile, min(frames, (centre + window // 2 + 1) * tile)
        reach.append(last - half if frame < half else half - first)
    return max(reach) / frames


def _exchange_across(sent: float, gpus: int) -> float:
    """Seconds of an all-to-all over both nodes, NVLink and network at the same time."""
    others, near = gpus - 1, gpus // NODES - 1
    return H100.exchange_start + max(sent * near / others / H100.link, sent * (others - near) / others / NETWORK)


def _over_mean(loads: Tensor) -> float:
    return float(loads.amax(-1).sum() / loads.mean(-1).sum())


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Speed-up by number of GPUs, a panel for each model and precision."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplots(len(MODELS), len(PRECISIONS), sharex=True, sharey=True, squeeze=False)
    for panel, (model, precision) in zip(
        panels.flat, ((model, precision) for model in MODELS for precision in PRECISIONS), strict=True
    ):
        for colour, mix in zip(("#0072B2", "#D55E00"), MIXES, strict=True):
            chosen = [row for row in rows if (row["model"], row["precision"], row["mix"]) == (model, precision, mix)]
            gpus = [row["gpus"] for row in chosen]
            panel.plot(gpus, [row["speedup"] for row in chosen], "o-", color=colour, label=f"{mix}, balanced")
            panel.plot(gpus, [row["speedup_in_order"] for row in chosen], "o--", color=colour, label=f"{mix}, in order")
        panel.plot([1, 8], [1, 8], color="#999999", linewidth=0.8)
        panel.set_title(f"{model}, {'16 bits' if precision == 'same' else precision}", fontsize="small")
        panel.set_xlabel("GPUs of one node")
        panel.set_ylabel("times faster than one GPU, simulated")
    panels[0][0].legend(fontsize="small")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
