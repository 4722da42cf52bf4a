"""All methods side by side on the embedded pair: `python benchmarks/methods.py --out runs/methods`.

Certifies every recipe on every task and source into OUT/RECIPE/TASK/SOURCE and writes the comparison to OUT. With `--frontier` it runs
label budgets into OUT/RECIPE/TASK/SOURCE/LABELS instead, and draws score against operations and against labels. What is there is kept:
started again it continues. What fails stands in the table with its error, and the rest goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkt import console
from pkt.comparison import as_json, distinct
from pkt.comparison_entry import Entry, entry
from pkt.config import Recipe
from pkt.errors import PktError, one_line
from pkt.evidence import certify
from pkt.machine import Machine
from pkt.methods import METHODS
from pkt.recipe_files import RECIPES, load_recipe
from pkt.report.comparison_page import write
from pkt.tasks.sources import task as find_task

NAMES = (
    "nano_tuned", "nano_direct", "nano_seeking", "nano_lora", "nano_pissa", "nano_random_init", "nano_sft", "nano_seqkd", "nano_gkd",
    "nano_seqkd_unlabelled", "nano_gkd_unlabelled",
)  # fmt: skip
"""Recipes of the campaign, beside all that begin with nano_laten_."""
TASKS = ("mmlu", "gsm8k", "humaneval", "mbpp")
SOURCES = ("source", "lineage-easy", "lineage-hard")
BUDGETS = ("16", "32", "64", "128", "all")


@dataclass(frozen=True)
class Piece:
    """One certificate of the campaign."""

    recipe: Recipe
    folder: Path


def shipped() -> list[str]:
    """The campaign's recipes, as far as they are there."""
    there = sorted(path.stem for path in RECIPES.glob("nano_*.yaml"))
    return [*(name for name in NAMES if name in there), *(name for name in there if name.startswith("nano_laten_"))]


def pieces(args: argparse.Namespace) -> Iterator[Piece]:
    """Every certificate that is asked for; one that would only repeat another is left out, which is said."""
    for name in args.recipes:
        for task in args.tasks:
            for source in args.sources:
                at = args.out / Path(name).stem / task / source
                common = [f"task.name=nano/{task}", f"source.name=nano/{source}", f"certificate.seeds={args.seeds}"]
                recipe = load_recipe(name, [*common, *args.set])
                if not METHODS.get(recipe.method["name"]).reads_source and source != args.sources[0]:
                    say(f"{at}: left out, for {recipe.method['name']} reads no source: as with {args.sources[0]}")
                elif not args.frontier:
                    yield Piece(recipe, at)
                else:
                    yield from budgets(name, recipe, [*common, *args.set], at, args)


def budgets(name: str, recipe: Recipe, overrides: Sequence[str], at: Path, args: argparse.Namespace) -> Iterator[Piece]:
    """The same with every budget of labels that the method's splits hold."""
    task, splits = find_task(recipe.task.name), METHODS.get(recipe.method["name"]).splits
    held = sum(len(task.split(split)) for split in splits)
    arms = [] if args.control_arms else ["certificate.arms=[]"]
    for budget in args.labels:
        if budget != "all" and int(budget) >= held:
            say(f"{at}: {budget} labels left out, for the method's splits hold {held}")
            continue
        labels = [] if budget == "all" else [f"task.labels={budget}"]
        yield Piece(load_recipe(name, [*overrides, *arms, *labels]), at / budget)


def made(piece: Piece, machine: Machine) -> Entry:
    """The row of one certificate; of one that failed, with its error."""
    recipe, start = piece.recipe, time.perf_counter()
    try:
        certify(recipe, piece.folder, machine)
        found = entry(piece.folder)
        say(f"{piece.folder}: {found.verdict}, {time.perf_counter() - start:.0f} s")
    except Exception as e:  # a campaign of hours must not end with one certificate, whatever went wrong in it
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        message = f"failed: {one_line(e)}"
        say(f"{piece.folder}: {message}")
        names = recipe.method["name"], recipe.task.name, recipe.source.name, recipe.target.name
        return Entry(str(piece.folder), recipe.name, recipe.name, *names, recipe.certificate.tier or "new", message)
    return found


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the campaign; one that was interrupted continues"
    )
    parser.add_argument("--recipes", nargs="+", default=shipped(), help="shipped recipes or YAML files")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, help="nano tasks; left out: all, with --frontier mmlu alone"
    )
    parser.add_argument(
        "--sources", nargs="+", choices=SOURCES, help="nano sources; left out: all, with --frontier source alone"
    )
    parser.add_argument("--seeds", type=int, help="of every arm; left out: 5, with --frontier 3")
    parser.add_argument("--frontier", action="store_true", help="label budgets instead, with pictures")
    parser.add_argument("--labels", nargs="+", default=list(BUDGETS), help="budgets of --frontier: numbers, or `all`")
    parser.add_argument("--control-arms", action="store_true", help="with --frontier: control arms too, for verdicts")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key; repeatable"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0, help="processes for the arms of a certificate")
    args = parser.parse_args(given)
    wrong = [budget for budget in args.labels if budget != "all" and not (budget.isdecimal() and int(budget))]
    if wrong:
        parser.error(f"--labels {wrong[0]}: expected a number above 0, or `all`")
    args.tasks = args.tasks or (TASKS[:1] if args.frontier else TASKS)
    args.sources = args.sources or (SOURCES[:1] if args.frontier else SOURCES)
    args.seeds = args.seeds or (3 if args.frontier else 5)
    return args


def main(given: Sequence[str] | None = None) -> int:
    """Run the campaign; 1 if something failed."""
    args = arguments(given)
    console.set_up(logging.WARNING)
    try:
        todo = list(pieces(args))
    except PktError as e:  # a recipe that is wrong, before any work
        say(f"error: {e}")
        return 2
    rows: list[Entry] = []
    written: list[Path] = []
    for i, piece in enumerate(todo):
        say(f"{i + 1} of {len(todo)}: {piece.folder}")
        rows.append(made(piece, Machine(args.device, workers=args.workers)))
        found = as_json(distinct(rows))
        written = write(found, args.out, frontier=args.frontier)  # what is done can be looked at
    if rows:
        console.show_comparison(found, written, as_json=False)
    return int(any(row.state.startswith("failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
