# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt routes`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vorta_trt.commands.app import EXAMPLE, AsJson, Debug, command
from vorta_trt.commands.options import (
    Checkpoint,
    Gpus,
    Lora,
    RouteOverrides,
    Routers,
    RoutesPlot,
    Size,
    StepProfileFile,
    Variant,
    check_folder,
    sources_of,
)
from vorta_trt.commands.sampling import ScheduleOptions
from vorta_trt.model.constants import DEFAULT_TAU
from vorta_trt.model.precision import PrecisionName

if TYPE_CHECKING:
    from vorta_trt.model.parallel.balance import Balance
    from vorta_trt.model.route_table import RouteTable


@command(
    f"vorta-trt routes {EXAMPLE} --router ROUTER --steps 50 --plot routes.png",
    f"vorta-trt routes {EXAMPLE} --router ROUTER --scheduler flow-euler --flow-shift 5 -o routes.json",
    f"vorta-trt routes {EXAMPLE} --router ROUTER --gpus 4 --plot balance.png",
    f"vorta-trt routes {EXAMPLE} --route-override calibration.json --plot routes.png",
)
def routes(
    checkpoint: Checkpoint,
    sampling: ScheduleOptions,
    router: Routers = None,
    lora: Lora = None,
    variant: Variant = None,
    route_override: RouteOverrides = None,
    size: Size = None,
    tau: Annotated[
        float | None,
        typer.Option(help=f"The routing threshold; above 1 every head is full [default: {DEFAULT_TAU}]."),
    ] = None,
    precision: Annotated[
        PrecisionName,
        typer.Option(help="The type of the model; the router sees a timestep embedding that is rounded to it."),
    ] = "bf16",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the route table as JSON to this file.")
    ] = None,
    plot: RoutesPlot = None,
    gpus: Gpus = None,
    step_profile: StepProfileFile = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show which branch every head takes.

    The table has a row for every step of a schedule, with the FLOPs that the routes save in attention and end to end.
    FLOPs are counted, not timed. Of two experts, each has its own part of the schedule. With --gpus, it shows how
    evenly the attention's work lies on GPUs that share the heads, in order and placed by work.
    """
    from vorta_trt.model.experts import in_words
    from vorta_trt.model.route_table import KIND, RouteTable
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.from_checkpoint import route_tables

    if step_profile is not None and gpus is None:
        raise typer.BadParameter("needs --gpus, whose balance follows from it", param_hint="--step-profile")
    if router is None and route_override is None:
        raise typer.BadParameter("Missing option '--router'; give a router, or the routes of --route-override")
    check_folder(output, "--output", KIND)
    sources = sources_of(
        checkpoint, router, size, precision, tau, route_overrides=route_override, lora=lora, variant=variant
    )
    with Stages() as stages:
        stages("computing the routes")
        schedule = sampling.schedule(checkpoint)
        tables = route_tables(sources, schedule.timesteps)
        table = RouteTable.joined(list(tables.values()))
        balance = None if gpus is None else _balance(table, gpus, step_profile)
        content = table.to_json()
        if balance is not None:
            content = json.dumps({**json.loads(content), "balance": balance.to_dict()})
        if output is not None:
            from vorta_trt.model.files import write_text

            write_text(output, content + "\n")
        if plot is not None:
            stages("drawing the picture")
            table.plot(plot, balance=balance)
    if as_json:
        typer.echo(content)
    else:
        typer.echo(f"{schedule}")
        if len(sources) > 1:
            for component, part in tables.items():
                typer.echo(
                    f"{in_words([component])}: {len(part.timesteps)} steps, timesteps {part.timesteps[0]:.1f} to "
                    f"{part.timesteps[-1]:.1f}"
                )
        typer.echo(table.summary())
        typer.echo(f"attention FLOPs saved by routing: {100 * table.saved:.1f} %")
        if table.total_saved is not None:
            typer.echo(f"end-to-end FLOPs saved by routing: {100 * table.total_saved:.1f} %")
        for line in () if balance is None else balance.lines(table.timesteps):
            typer.echo(line)
        for path in filter(None, (output, plot)):
            typer.echo(f"wrote {path}")


def _balance(table: RouteTable, gpus: int, step_profile: Path | None) -> Balance:
    """The balance of heads over GPUs, with measured costs of a head if given, otherwise with those of the geometry."""
    from vorta_trt.model.parallel.balance import Balance
    from vorta_trt.model.parallel.placement import BranchCosts
    from vorta_trt.runtime.sampling.cost import StepProfile

    measured = None if step_profile is None else StepProfile.load(step_profile).branch_costs
    return Balance.of(table.routes, gpus, measured or BranchCosts.of(table.geometry))
