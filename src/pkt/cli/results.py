"""Commands that judge, check, compare and show what runs have found."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pkt.cli.options import AllowCode, Batch, Device, Folder, NoSandbox, Out, RecipeArg, Set, Workers, machine_of
from pkt.console import out, say, show_certificate, show_comparison
from pkt.errors import ConfigError
from pkt.listing import arm_rows, table, work_in_words


def certify(
    recipe: RecipeArg,
    out_: Out,
    set_: Set = None,
    device: Device = "auto",
    batch_size: Batch = 64,
    workers: Workers = 0,
    allow_code: AllowCode = False,
    no_sandbox: NoSandbox = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the arms and the work, and stop")] = False,
) -> None:
    """Is it transfer, or tuning? All control arms, learning rates and seeds; then the verdict."""
    from pkt.certification import Certification
    from pkt.evidence import certify as make
    from pkt.recipe_files import load_recipe
    from pkt.run import Run

    asked, machine = load_recipe(recipe, set_ or ()), machine_of(device, batch_size, workers, allow_code, no_sandbox)
    if dry_run:
        Run(asked, out_, machine)  # is the folder free for it?
        with tempfile.TemporaryDirectory() as empty:
            made = Certification(Run(asked, Path(empty), machine))
            made.check()
            out.print(table(arm_rows(made)))
            return say(work_in_words(made))
    show_certificate(make(asked, out_, machine), out_)
    return None


def verify(
    folder: Folder,
    rerun: Annotated[
        str | None, typer.Option(metavar="ARM", help="make this arm's deltas again and compare them byte for byte")
    ] = None,
    device: Device = "auto",
    allow_code: AllowCode = False,
    no_sandbox: NoSandbox = False,
) -> None:
    """Check a certificate: every hash, the order of work, the grades, and the verdict computed anew."""
    from pkt.verify import rerun as again
    from pkt.verify import verify as compare

    machine = machine_of(device, allow_code=allow_code, no_sandbox=no_sandbox)
    checks = compare(folder, machine)
    if rerun is not None:
        checks += again(folder, rerun, machine)
    results = {True: "ok", False: "FAILED", None: "note"}
    out.print(table([{"check": c.name, "result": results[c.holds], "detail": c.detail} for c in checks]))
    failed = sum(c.holds is False for c in checks)
    say(f"{failed} of {len(checks)} checks failed" if failed else "the certificate holds")
    if failed:
        raise typer.Exit(1)


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
    if out_:
        found = json.loads((out_ / "comparison.json").read_text(encoding="utf-8"))  # with its frontiers
    show_comparison(found, written, as_json=json_)


def report(folder: Folder) -> None:
    """Write the HTML report of a run folder anew."""
    from pkt.report.html import write

    say(str(write(folder)))
