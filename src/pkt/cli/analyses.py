"""Commands that analyse a pair: how alike source and target are, and how stable a method is."""

from __future__ import annotations

from typing import Annotated

import typer

from pkt.cli.options import AllowCode, Batch, Device, NoSandbox, Out, RecipeArg, Set, machine_of
from pkt.console import out, say, show_analysis
from pkt.listing import option_rows, table

Name = Annotated[str, typer.Argument(help="representation, parametric or stability", metavar="ANALYSIS")]


def analyze(
    name: Name,
    recipe: RecipeArg,
    out_: Out,
    set_: Set = None,
    device: Device = "auto",
    batch_size: Batch = 64,
    allow_code: AllowCode = False,
    no_sandbox: NoSandbox = False,
) -> None:
    """Why does it not move? `pkt analyze representation nano_tuned --out runs/a --set analysis.positions=512`."""
    from pkt.analyzing import from_names

    machine = machine_of(device, batch_size, 0, allow_code, no_sandbox)
    page = from_names(name, recipe, set_ or (), out_, machine)
    show_analysis(page)


def analyses(name: Annotated[str | None, typer.Argument(help="an analysis: print its options")] = None) -> None:
    """The analyses, or one analysis's options (`--set analysis.KEY=VALUE`) with defaults, bounds and meaning."""
    from pkt.analyses import ANALYSES

    if name is None:
        known = [(n, ANALYSES.get(n)) for n in ANALYSES.names()]
        out.print(table([{"analysis": n, "paper": a.paper, "what it finds": a.summary} for n, a in known]))
        return
    found = ANALYSES.get(name)
    out.print(f"[bold]{name}[/bold] ({found.paper}): {found.summary}", highlight=False)
    say("options, each as --set analysis.KEY=VALUE:")
    out.print(table(option_rows(found.config)))
