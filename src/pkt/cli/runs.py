"""Commands that run a recipe, as a whole or stage by stage."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from pkt.cli.options import (
    AllowCode,
    Batch,
    Device,
    Folder,
    NoSandbox,
    Out,
    RecipeArg,
    Set,
    machine_of,
    resumed,
    run_of,
)
from pkt.console import out, say, show_certificate, show_run
from pkt.files import locked
from pkt.listing import table
from pkt.processes import is_first


def demo(
    out_: Annotated[Path, typer.Option("--out", help="run folder")] = Path("runs/demo"), device: Device = "auto"
) -> None:
    """Transfer from the embedded larger model to the smaller one, score both and the result, and ask whether it was transfer."""
    from pkt.evidence import certify as make
    from pkt.execute import execute
    from pkt.recipe_files import load_recipe

    start = time.perf_counter()
    recipe, machine = load_recipe("nano_demo"), machine_of(device)
    execute(recipe, out_, machine)
    show_run(out_)
    show_certificate(make(recipe, out_, machine), out_)
    say(f"\n{time.perf_counter() - start:.0f} s")


def run(
    recipe: RecipeArg,
    out_: Out,
    set_: Set = None,
    device: Device = "auto",
    batch_size: Batch = 64,
    allow_code: AllowCode = False,
    no_sandbox: NoSandbox = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
) -> None:
    """Run one recipe: `pkt run nano_tuned --out runs/a --set method.steps=8`."""
    from pkt.execute import execute
    from pkt.recipe_files import load_recipe

    if dry_run:
        run_of(recipe, out_, set_, device)  # is the folder free for it?
        return plan(recipe, set_, device)
    execute(load_recipe(recipe, set_ or ()), out_, machine_of(device, batch_size, 0, allow_code, no_sandbox))
    return show_run(out_) if is_first() else None


def plan(recipe: RecipeArg, set_: Set = None, device: Device = "auto") -> None:
    """Layers, shapes, what would be transferred, memory and time, from headers; reads no weights."""
    from pkt.plan import plan as make

    with tempfile.TemporaryDirectory() as empty:
        found = make(run_of(recipe, Path(empty), set_, device))
    for rows in (found.models, found.moved, found.costs):
        if rows:
            out.print(table(rows))
    for note in found.notes:
        out.print(note, highlight=False, style="dim")


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
    """Stage 1: find what the method locates on the extract split: neurons of both models, or blocks of the source."""
    from pkt.checks import check
    from pkt.intervention import check_verifiable, table_rows, verify_location

    made = run_of(recipe, out_, set_, device)
    if verify:
        check_verifiable(made)
    check(made)
    with locked(out_):
        made.start()
        if made.method.locate is None:
            return say(
                f"method {made.method.name} locates nothing: {out_ / 'recipe.yaml'} is written; next: pkt align {out_}"
            )
        made.locate()
        found = verify_location(made) if verify else None
    if found:
        out.print(table(table_rows(found)))
        known = ", ".join(f"{role} {m['probability']:.3f}" for role, m in found["models"].items())
        say(
            f"change of the answer's probability over {found['examples']} examples; without an intervention it is: {known}"
        )
    return say(f"scores in {out_ / 'neurons'}; next: pkt align {out_}")


def align(folder: Folder, device: Device = "auto") -> None:
    """Stage 2: train the method's delta."""
    from pkt.finished import forget_others

    made = resumed(folder, device)
    if not is_first():
        return made.help_align()
    with locked(folder):
        forget_others(made)
        delta = made.align()
    return say(
        f"{folder / 'delta.safetensors'}: {delta.size():,} entries, norm {delta.norm():.4g}; next: pkt inject {folder}"
    )


def inject(folder: Folder, device: Device = "auto") -> None:
    """Stage 3: export the target with the delta as an ordinary checkpoint."""
    from pkt.finished import forget_others

    made = resumed(folder, device)
    with locked(folder):
        forget_others(made)
        model = made.inject()
    say(f"{model}: load it with AutoModelForCausalLM.from_pretrained; next: pkt evaluate {folder}")
