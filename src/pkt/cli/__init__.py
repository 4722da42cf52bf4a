"""The command `pkt`: the only place that prints, sets up logging or reads the environment."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from pkt import console
from pkt.cli import analyses, data, evaluate, lists, results, runs, sweeps
from pkt.console import say
from pkt.errors import ConfigError
from pkt.processes import is_first, num_processes

app = typer.Typer(
    help="Cross-scale parametric knowledge transfer between language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
COMMANDS = (
    runs.demo,
    runs.run,
    runs.plan,
    runs.locate,
    runs.align,
    runs.inject,
    evaluate.evaluate,
    results.certify,
    results.verify,
    results.compare,
    results.report,
    sweeps.sweep,
    analyses.analyze,
    analyses.analyses,
    lists.methods,
    lists.tasks,
    lists.untie,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(data.app, name="data")

TRAINING = ("run", "align")
"""Commands that `torchrun` may start in several processes."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"pkt {version('pkt')}")
        raise typer.Exit


@app.callback()
def _setup(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="print the version and stop")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and debug messages")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress messages")] = False,
) -> None:
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    console.set_up(level if is_first() else logging.ERROR)
    if num_processes() > 1 and context.invoked_subcommand not in TRAINING:
        raise ConfigError(
            f"`pkt {context.invoked_subcommand}` is one process, but the launcher started {num_processes()}; start it without `torchrun`"
        )


def main() -> None:
    """Entry point."""
    console.run(app, sys.argv[1:])
