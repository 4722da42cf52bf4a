"""The command `pkt`: the only place that prints, sets up logging or reads the environment."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pkt import console
from pkt.console import out, say, show_certificate, show_comparison, show_run
from pkt.errors import ConfigError
from pkt.files import locked
from pkt.listing import arm_rows, option_rows, recipe_rows, split_rows, table, work_in_words
from pkt.processes import is_first, num_processes

if TYPE_CHECKING:
    from pkt.run import Machine, Run

app = typer.Typer(
    help="Cross-scale parametric knowledge transfer between language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
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
    int, typer.Option(min=0, help="processes for the arms; 0: one per core as memory allows on a CPU, one on a GPU")
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="items per forward pass in evaluation")]


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


def _machine(device: str, batch_size: int = 64, workers: int = 0) -> Machine:
    from pkt.run import Machine

    return Machine(device, batch_size, workers)


def _run(recipe: str, folder: Path, overrides: list[str] | None, device: str, batch_size: int = 64) -> Run:
    from pkt.config import load_recipe
    from pkt.run import Run, with_certificate_of

    asked = with_certificate_of(folder, load_recipe(recipe, overrides or ()))
    return Run(asked, folder, _machine(device, batch_size))


def _resume(folder: Path, device: str, batch_size: int = 64) -> Run:
    from pkt.run import Run

    return Run.resume(folder, _machine(device, batch_size))


@app.command()
def demo(
    out_: Annotated[Path, typer.Option("--out", help="run folder")] = Path("runs/demo"), device: Device = "auto"
) -> None:
    """Transfer from the embedded larger model to the smaller one, score both and the result, and ask whether it was transfer."""
    from pkt.config import load_recipe
    from pkt.evidence import certify as make
    from pkt.run import execute

    start = time.perf_counter()
    recipe, machine = load_recipe("nano_demo"), _machine(device)
    execute(recipe, out_, machine)
    show_run(out_)
    show_certificate(make(recipe, out_, machine), out_)
    say(f"\n{time.perf_counter() - start:.0f} s")


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
    return show_run(out_) if is_first() else None


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
def locate(
    recipe: RecipeArg,
    out_: Out,
    set_: Set = None,
    device: Device = "auto",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="silence and double the located neurons, and random ones, and see what the answers lose"
        ),
    ] = False,
) -> None:
    """Stage 1: score layers and neurons of both models on the extract split."""
    from pkt.checks import check
    from pkt.intervention import check_verifiable, table_rows, verify_location

    made = _run(recipe, out_, set_, device)
    if verify:
        check_verifiable(made)
    check(made)
    with locked(out_):
        made.start()
        made.locate()
        found = verify_location(made) if verify else None
    if found:
        out.print(table(table_rows(found)))
        known = ", ".join(f"{role} {m['probability']:.3f}" for role, m in found["models"].items())
        say(
            f"change of the answer's probability over {found['examples']} examples; without an intervention it is: {known}"
        )
    say(f"scores in {out_ / 'neurons'}; next: pkt align {out_}")


@app.command()
def align(folder: Folder, device: Device = "auto") -> None:
    """Stage 2: train the method's delta."""
    made = _resume(folder, device)
    if not is_first():
        return made.help_align()
    with locked(folder):
        delta = made.align()
    return say(
        f"{folder / 'delta.safetensors'}: {delta.size():,} entries, norm {delta.norm():.4g}; next: pkt inject {folder}"
    )


@app.command()
def inject(folder: Folder, device: Device = "auto") -> None:
    """Stage 3: export the target with the delta as an ordinary checkpoint."""
    made = _resume(folder, device)
    with locked(folder):
        model = made.inject()
    say(f"{model}: load it with AutoModelForCausalLM.from_pretrained; next: pkt evaluate {folder}")


@app.command()
def evaluate(folder: Folder, device: Device = "auto", batch_size: Batch = 64) -> None:
    """Stage 4: score target, source and the exported result."""
    from pkt.report.html import write
    from pkt.summary import write_summary

    made = _resume(folder, device, batch_size)
    with locked(folder):
        made.evaluate()
        write_summary(made)
        write(folder)
    show_run(folder)


@app.command()
def certify(
    recipe: RecipeArg,
    out_: Out,
    set_: Set = None,
    device: Device = "auto",
    batch_size: Batch = 64,
    workers: Workers = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the arms and the work, and stop")] = False,
) -> None:
    """Is it transfer, or tuning? All control arms, learning rates and seeds; then the verdict."""
    from pkt.certification import Certification
    from pkt.config import load_recipe
    from pkt.evidence import certify as make
    from pkt.run import Run

    asked, machine = load_recipe(recipe, set_ or ()), _machine(device, batch_size, workers)
    if dry_run:
        with tempfile.TemporaryDirectory() as empty:
            made = Certification(Run(asked, Path(empty), machine))
            made.check()
            out.print(table(arm_rows(made)))
            return say(work_in_words(made))
    show_certificate(make(asked, out_, machine), out_)
    return None


@app.command()
def verify(
    folder: Folder,
    rerun: Annotated[
        str | None, typer.Option(metavar="ARM", help="make this arm's deltas again and compare them byte for byte")
    ] = None,
    device: Device = "auto",
) -> None:
    """Check a certificate: every hash, the order of work, the grades, and the verdict computed anew."""
    from pkt.verify import rerun as again
    from pkt.verify import verify as compare

    checks = compare(folder, _machine(device))
    if rerun is not None:
        checks += again(folder, rerun, _machine(device))
    results = {True: "ok", False: "FAILED", None: "note"}
    out.print(table([{"check": c.name, "result": results[c.holds], "detail": c.detail} for c in checks]))
    failed = sum(c.holds is False for c in checks)
    say(f"{failed} of {len(checks)} checks failed" if failed else "the certificate holds")
    if failed:
        raise typer.Exit(1)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="run folders, of `pkt run` or `pkt certify`", metavar="DIR...")],
    out_: Annotated[
        Path | None, typer.Option("--out", help="folder for comparison.json, comparison.csv and comparison.html")
    ] = None,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="with --out: pictures of score against FLOP and against labels too")
    ] = False,
    tier: Annotated[
        str | None, typer.Option(help="with --frontier: the tier to show; left out, the one that decides")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print comparison.json instead of tables")] = False,
) -> None:
    """Run folders side by side: scores, verdicts, costs."""
    from pkt.comparison import as_json
    from pkt.comparison import compare as read
    from pkt.report.comparison_page import write

    if (frontier and out_ is None) or (tier is not None and not frontier):
        raise ConfigError("--frontier needs --out DIR for its pictures, and --tier needs --frontier")
    found = as_json(read(folders))
    written = write(found, out_, frontier=frontier, tier=tier) if out_ else []
    show_comparison(found, written, as_json=json_)


@app.command()
def untie(
    model: Annotated[str, typer.Argument(help="`nano/...`, a folder, or a name on the hub", metavar="MODEL")],
    out_: Annotated[Path, typer.Option("--out", help="folder for the copy")],
) -> None:
    """Copy a model with tied embeddings, giving it an LM head of its own: a target whose embeddings adapters can change."""
    from pkt.inject.untie import untie as copy
    from pkt.models.lm import LM

    copy(LM(model), out_)
    say(f"{out_}: the same model, with embedding and LM head apart")


@app.command()
def report(folder: Folder) -> None:
    """Write the HTML report of a run folder anew."""
    from pkt.report.html import write

    say(str(write(folder)))


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
    say(f"example {first.id}:\n{first.prompt}\n-> {first.response}")


def _all(registry: Any) -> list[tuple[str, Any]]:
    return [(name, registry.get(name)) for name in registry.names()]


def main() -> None:
    """Entry point."""
    console.run(app, sys.argv[1:])
