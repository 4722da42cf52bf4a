"""Commands that run many settings of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pkt.cli.options import AllowCode, Batch, Device, NoSandbox, Set, Workers, machine_of
from pkt.console import out, say, show_sweep
from pkt.listing import sweep_rows, table

What = Annotated[
    list[str] | None,
    typer.Argument(
        help="recipes, as files or shipped names; or one sweep, a YAML file or a shipped one (left out: list those)",
        metavar="WHAT...",
    ),
]


def sweep(
    what: What = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="folder of the sweep; an interrupted one in it continues")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="KEY=V1,V2,...", help="an axis: a recipe key and its values; repeatable"),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=1000, help="seeds of every setting, from the recipe's on")
    ] = None,
    set_: Set = None,
    certify: Annotated[
        bool, typer.Option("--certify", help="make a certificate of every setting, with all control arms")
    ] = False,
    device: Device = "auto",
    batch_size: Batch = 64,
    workers: Workers = 0,
    allow_code: AllowCode = False,
    no_sandbox: NoSandbox = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check and list the settings, and stop")] = False,
) -> None:
    """Which setting is best, and does any matter? `pkt sweep nano_tuned --over method.steps=2,4,8 --seeds 3 --out runs/s`."""
    from pkt.errors import ConfigError
    from pkt.sweeping.engine import check_folder, check_points, planned, run_sweep
    from pkt.sweeping.grid import SWEEPS, load_sweep, parse_over

    if not what:
        if out_ or over or seeds or set_ or certify or dry_run:
            raise ConfigError("name recipes or a sweep before the options; `pkt sweep` alone lists the shipped sweeps")
        return out.print(table(sweep_rows(SWEEPS)))
    asked = load_sweep(what, parse_over(over or ()), set_ or (), seeds)
    machine = machine_of(device, batch_size, workers, allow_code, no_sandbox)
    if dry_run:
        if out_ is not None:
            check_folder(out_)
        runs = planned(asked, out_ or Path("sweep"), certify=certify)
        check_points(runs, machine, certify=certify)
        rows = {one.point.name: {"setting": one.point.name, "recipe": one.recipe.name} for one in runs}
        out.print(table(list(rows.values())))
        return say(f"{len(rows)} settings, {len(runs)} {'certificates' if certify else 'runs'}; all recipes are right")
    if out_ is None:
        raise ConfigError("--out is missing: name a folder for the sweep, or ask for its plan with --dry-run")
    found = run_sweep(asked, out_, machine, certify=certify)
    show_sweep(found, out_)
    if found["failed"]:
        raise typer.Exit(1)
    return None
