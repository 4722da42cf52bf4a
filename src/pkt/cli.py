"""The command `pkt`: the only place that prints, sets up logging or reads the environment."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.exceptions import TyperException

from pkt.errors import PktError
from pkt.files import locked
from pkt.listing import option_rows, recipe_rows, split_rows, table

if TYPE_CHECKING:
    from pkt.run import Machine, Run

app = typer.Typer(
    help="Cross-scale parametric knowledge transfer between language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
WIDTH = 100
"""Tables are at least this wide, so that no number is cut where the terminal is narrow or there is none."""

out = Console()
out.width = max(out.width, WIDTH)
err = Console(stderr=True)

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
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="items per forward pass in evaluation")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(f"pkt {version('pkt')}", highlight=False)
        raise typer.Exit


@app.callback()
def _setup(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="print the version and stop")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and debug messages")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress messages")] = False,
) -> None:
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_path=False, show_level=False, show_time=False)],
    )
    logging.getLogger("pkt").setLevel(level)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # threads that wait by spinning make small models ten times slower as soon as somebody else uses a core
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # same bytes in every run on a GPU


def _machine(device: str, batch_size: int = 64) -> Machine:
    from pkt.run import Machine

    return Machine(device, batch_size)


def _run(recipe: str, folder: Path, overrides: list[str] | None, device: str, batch_size: int = 64) -> Run:
    from pkt.config import load_recipe
    from pkt.run import Run

    return Run(load_recipe(recipe, overrides or ()), folder, _machine(device, batch_size))


def _resume(folder: Path, device: str, batch_size: int = 64) -> Run:
    from pkt.run import Run

    return Run.resume(folder, _machine(device, batch_size))


@app.command()
def demo(
    out_: Annotated[Path, typer.Option("--out", help="run folder")] = Path("runs/demo"), device: Device = "auto"
) -> None:
    """Transfer from the embedded larger model to the smaller one, score both and the result, write a report."""
    from pkt.config import load_recipe
    from pkt.run import execute

    start = time.perf_counter()
    execute(load_recipe("nano_tuned"), out_, _machine(device))
    _show(out_)
    out.print(f"\n{time.perf_counter() - start:.0f} s", highlight=False)


@app.command()
def run(
    recipe: RecipeArg,
    out_: Out,
    set_: Set = None,
    device: Device = "auto",
    batch_size: Batch = 64,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
) -> None:
    """Run one recipe: `pkt run nano_tuned --out runs/a --set method.steps=8`."""
    from pkt.config import load_recipe
    from pkt.run import execute

    if dry_run:
        return plan(recipe, set_, device)
    execute(load_recipe(recipe, set_ or ()), out_, _machine(device, batch_size))
    return _show(out_)


@app.command()
def plan(recipe: RecipeArg, set_: Set = None, device: Device = "auto") -> None:
    """Layers, shapes, what would be transferred, memory and time, from headers; reads no weights."""
    from pkt.plan import plan as make

    with tempfile.TemporaryDirectory() as empty:
        found = make(_run(recipe, Path(empty), set_, device))
    for rows in (found.models, found.moved, found.costs):
        if rows:
            out.print(table(rows))
    for note in found.notes:
        out.print(note, highlight=False, style="dim")


@app.command()
def locate(recipe: RecipeArg, out_: Out, set_: Set = None, device: Device = "auto") -> None:
    """Stage 1: score layers and neurons of both models on the extract split."""
    made = _run(recipe, out_, set_, device)
    made.check()
    with locked(out_):
        made.start()
        made.locate()
    out.print(f"scores in {out_ / 'neurons'}; next: pkt align {out_}", highlight=False)


@app.command()
def align(folder: Folder, device: Device = "auto") -> None:
    """Stage 2: train the method's delta."""
    made = _resume(folder, device)
    with locked(folder):
        delta = made.align()
    out.print(
        f"{folder / 'delta.safetensors'}: {delta.size():,} entries, norm {delta.norm():.4g}; next: pkt inject {folder}",
        highlight=False,
    )


@app.command()
def inject(folder: Folder, device: Device = "auto") -> None:
    """Stage 3: export the target with the delta as an ordinary checkpoint."""
    made = _resume(folder, device)
    with locked(folder):
        model = made.inject()
    out.print(
        f"{model}: load it with AutoModelForCausalLM.from_pretrained; next: pkt evaluate {folder}", highlight=False
    )


@app.command()
def evaluate(folder: Folder, device: Device = "auto", batch_size: Batch = 64) -> None:
    """Stage 4: score target, source and the exported result."""
    from pkt.summary import write_summary

    made = _resume(folder, device, batch_size)
    with locked(folder):
        made.evaluate()
        write_summary(made)
        _report(folder)
    _show(folder)


@app.command()
def report(folder: Folder) -> None:
    """Write the HTML report of a run folder anew."""
    out.print(str(_report(folder)), highlight=False, soft_wrap=True)


@app.command()
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
    out.print(table(option_rows(method.config)))


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="a task: print its splits and an example")] = None,
    data: Annotated[Path | None, typer.Option(help="folder with the task's data")] = None,
    recipes: Annotated[bool, typer.Option("--recipes", help="list the shipped recipes instead")] = False,
) -> None:
    """The tasks, or one task's splits with an example."""
    from pkt.tasks.sources import TASKS, task

    if recipes:
        from pkt.config import RECIPES

        out.print(table(recipe_rows(RECIPES)))
        return
    if name is None:
        out.print(table([{"task": n, "what": what} for n, what in TASKS.items()]))
        return
    found = task(name, data)
    out.print(table(split_rows(found)))
    first = found.split("test")[0]
    out.print(f"example {first.id}:\n{first.prompt}\n-> {first.response}", highlight=False, markup=False)


def _all(registry: Any) -> list[tuple[str, Any]]:
    return [(name, registry.get(name)) for name in registry.names()]


def _report(folder: Path) -> Path:
    from pkt.report.html import write

    return write(folder)


def _show(folder: Path) -> None:
    """The score table and where things are: results on standard output."""
    import json

    from pkt.report.table import rich_table

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if summary["scores"]:
        out.print(rich_table(summary))
    else:
        out.print("nothing was scored: evaluate.arms is empty", highlight=False)
    for warning in summary["warnings"]:
        out.print(f"note: {warning}", highlight=False)
    out.print(
        f"\nmodel:  {folder / 'model'}\nreport: {(folder / 'report.html').resolve()}", highlight=False, soft_wrap=True
    )


def main() -> None:
    """Entry point: one line and exit code 2 for what a user can cause."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="pkt", standalone_mode=False)
    except PktError as e:
        if "--debug" in sys.argv:
            raise
        _fail(str(e))
    except TyperException as e:
        command = getattr(getattr(e, "ctx", None), "command_path", "pkt")
        _fail(f"{e.format_message().rstrip('.')}; see `{command} --help`")
    except OSError as e:
        if "--debug" in sys.argv or e.filename is None:
            raise
        _fail(f"{e.filename}: {e.strerror}; check the path, its permissions and the space on its disk")
    except RuntimeError as e:  # torch.OutOfMemoryError is one, and so is the CPU allocator's
        if "--debug" in sys.argv or not re.search("out of memory|can't allocate memory", str(e), re.IGNORECASE):
            raise
        _fail(
            "the device ran out of memory; try a lower --batch-size or method.micro_batch, method.gradient_checkpointing=true, "
            "dtype=bfloat16, or --device offload"
        )
    if code == INTERRUPTED:
        err.print(
            "interrupted; run the same command again: finished stages are kept",
            highlight=False,
        )
        sys.exit(code)


def _fail(message: str) -> NoReturn:
    err.print(f"error: {' '.join(message.splitlines())}", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)
