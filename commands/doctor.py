# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt doctor`."""

from __future__ import annotations

import typer

from vorta_trt.commands.app import AsJson, Debug, command


@command("vorta-trt doctor", "vorta-trt doctor --json")
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what can build and run here, and why not."""
    from vorta_trt.runtime.console import Stages, output_console
    from vorta_trt.runtime.doctor import examine, report_lines

    with Stages() as stages:
        stages("examining this machine")
        report = examine()
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        marks = {"ok": "[green]ok    [/green]", "note": "[yellow]note  [/yellow]", "failed": "[red]FAILED[/red]"}
        console = output_console()
        for state, line in report_lines(report):
            console.print(marks[state], end=" ")
            console.print(line, markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.can_build else 1)
