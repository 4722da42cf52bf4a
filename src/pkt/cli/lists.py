"""Commands about what there is: methods, tasks, recipes, models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pkt.console import out, say
from pkt.errors import ConfigError
from pkt.listing import option_rows, recipe_rows, split_rows, sweep_rows, table


def untie(
    model: Annotated[str, typer.Argument(help="`nano/...`, a folder, or a name on the hub", metavar="MODEL")],
    out_: Annotated[Path, typer.Option("--out", help="folder for the copy")],
) -> None:
    """Copy a model with tied embeddings, giving it an LM head of its own: a target whose embeddings adapters can change."""
    from pkt.inject.untie import untie as copy
    from pkt.models.lm import LM

    copy(LM(model), out_)
    say(f"{out_}: the same model, with embedding and LM head apart")


def methods(name: Annotated[str | None, typer.Argument(help="a method: print its options")] = None) -> None:
    """The methods, or one method's options with defaults, bounds and meaning."""
    from pkt.methods import METHODS

    if name is None:
        out.print(
            table(
                [{"method": n, "kind": m.kind, "paper": m.paper, "what it does": m.summary} for n, m in _all(METHODS)]
            )
        )
        return
    method = METHODS.get(name)
    out.print(f"[bold]{name}[/bold] ({method.kind}, {method.paper}): {method.summary}", highlight=False)
    if method.needs:
        out.print(f"needs: {method.needs}", highlight=False, markup=False)
    out.print(table(option_rows(method.config)))


def tasks(
    name: Annotated[str | None, typer.Argument(help="a task: print its splits and an example")] = None,
    data: Annotated[Path | None, typer.Option(help="folder with the task's data")] = None,
    recipes: Annotated[bool, typer.Option("--recipes", help="list the shipped recipes instead")] = False,
    sweeps: Annotated[bool, typer.Option("--sweeps", help="list the shipped sweeps instead")] = False,
) -> None:
    """The tasks, or one task's splits with an example."""
    from pkt.tasks.sources import TASKS, task

    if recipes:
        from pkt.recipe_files import RECIPES

        out.print(table(recipe_rows(RECIPES)))
        return
    if sweeps:
        from pkt.sweeping.grid import SWEEPS

        out.print(table(sweep_rows(SWEEPS)))
        return
    if name is None:
        if data is not None:
            raise ConfigError("--data is of one task: name it too")
        out.print(table([{"task": n, "what": what} for n, what in TASKS.items()]))
        return
    found = task(name, data)
    out.print(table(split_rows(found)))
    first = found.split("test")[0]
    say(f"example {first.id}:\n{first.prompt}\n-> {first.response}")


def _all(registry: Any) -> list[tuple[str, Any]]:
    return [(name, registry.get(name)) for name in registry.names()]
