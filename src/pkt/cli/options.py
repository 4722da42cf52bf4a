"""Arguments and options that several commands have, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pkt.errors import ConfigError

if TYPE_CHECKING:
    from pkt.evaluation.execution import Execution
    from pkt.machine import Machine
    from pkt.run import Run

RecipeArg = Annotated[
    str,
    typer.Argument(help="a YAML file, or the name of a shipped recipe (see `pkt tasks --recipes`)", metavar="RECIPE"),
]
Folder = Annotated[Path, typer.Argument(help="a run folder", metavar="DIR")]
Out = Annotated[Path, typer.Option("--out", help="run folder; an interrupted run in it continues")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a recipe key, e.g. method.steps=8; repeatable"),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1, balanced, sequential, or offload (GPU, then CPU, then disk)")
]
Workers = Annotated[
    int,
    typer.Option(
        min=0, help="processes that work side by side; 0: one per core as memory allows on a CPU, one on a GPU"
    ),
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="items per forward pass in evaluation")]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code-execution", help="run the programs that a model writes, in a sandbox, to grade them"),
]
NoSandbox = Annotated[
    bool,
    typer.Option(
        "--unsafe-no-sandbox",
        help="with --allow-code-execution: run them without a sandbox, as you, with your files and network",
    ),
]


def execution_of(allowed: bool, unsafe: bool) -> Execution:
    """Leave to run generated code.

    Raises:
        ConfigError: the unsafe option without the one that allows execution.
    """
    from pkt.evaluation.execution import Execution

    if unsafe and not allowed:
        raise ConfigError(
            "--unsafe-no-sandbox says how programs are run, not that they are; add --allow-code-execution"
        )
    return Execution(allowed, not unsafe)


def machine_of(
    device: str, batch_size: int = 64, workers: int = 0, allow_code: bool = False, no_sandbox: bool = False
) -> Machine:
    """Where to run."""
    from pkt.machine import Machine

    return Machine(device, batch_size, workers, execution_of(allow_code, no_sandbox))


def run_of(recipe: str, folder: Path, overrides: list[str] | None, device: str, batch_size: int = 64) -> Run:
    """The run of a recipe in a folder."""
    from pkt.certificate_file import with_certificate_of
    from pkt.recipe_files import load_recipe
    from pkt.run import Run

    asked = with_certificate_of(folder, load_recipe(recipe, overrides or ()))
    return Run(asked, folder, machine_of(device, batch_size))


def resumed(folder: Path, device: str, batch_size: int = 64, allow_code: bool = False, no_sandbox: bool = False) -> Run:
    """The run that a folder holds."""
    from pkt.run import Run

    return Run.resume(folder, machine_of(device, batch_size, 0, allow_code, no_sandbox))
