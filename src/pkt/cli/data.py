"""Commands about data: `pkt data prepare`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from pkt.console import out, say
from pkt.listing import table

app = typer.Typer(help="Data of one's own: splits from public training data.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `prepare` a command of its own, as long as it is the only one."""


@app.command()
def prepare(
    task: Annotated[
        str, typer.Argument(help="mmlu, gsm8k, mbpp, mbpp_plus, math, or humaneval with --from", metavar="TASK")
    ],
    out_: Annotated[Path, typer.Option("--out", help="data folder, for --set task.data=DIR; may hold other tasks")],
    seed: Annotated[int, typer.Option(min=0, help="of the shuffle")] = 0,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from", help="file or folder with raw data, or rows with `messages`; left out: the hub", metavar="PATH"
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="file with the test set, where it is not beside the raw data", metavar="FILE")
    ] = None,
    extract: Annotated[int, typer.Option(min=1, help="rows to locate with")] = 20,
    align: Annotated[int, typer.Option(min=1, help="rows to align on")] = 80,
    valid: Annotated[int, typer.Option(min=1, help="rows to choose settings on")] = 100,
    train: Annotated[int, typer.Option(min=1, help="rows to fine-tune on, or as many as are left")] = 1000,
) -> None:
    """Build disjoint splits from the public training data, with the test set, and report contamination."""
    from pkt.tasks.overlaps import FEW_SHOT
    from pkt.tasks.prepare import prepare as make

    counts = {"extract": extract, "align": align, "valid": valid, "train": train}
    made = make(task, out_, seed=seed, place=from_, test=test, counts=counts)
    out.print(table(_split_rows(made)))
    if made.contamination["dropped"]:
        out.print(table(_dropped_rows(made.contamination)))
    shown = sum(found["normalised"] for found in made.contamination["overlaps"] if found["test"] == FEW_SHOT)
    if shown:
        say(
            f"{shown} rows are worked examples of few-shot prompts too: score without those (shots 0), or give more rows with --from"
        )
    for path in made.files:
        say(str(path))
    say(f"\nnext: pkt tasks {task} --data {out_}")


def _split_rows(made: Any) -> list[dict[str, Any]]:
    """One row per split: its size, and what it shares with each test set."""
    rows: list[dict[str, Any]] = []
    for name, examples in made.splits.items():
        asked = made.asked[name]
        row: dict[str, Any] = {
            "split": name,
            "rows": f"{len(examples)} of {asked}" if len(examples) < asked else len(examples),
        }
        for overlap in made.contamination["overlaps"]:
            if overlap["split"] == name:
                row[f"in {overlap['test']}"] = overlap["normalised"]
        own = next(o for o in made.contamination["overlaps"] if o["split"] == name)
        row["13-word runs"] = own["13_word_runs"]
        rows.append(row)
    return rows


def _dropped_rows(contamination: Any) -> list[dict[str, Any]]:
    """One row per reason: how many rows were left out, and the first of them."""
    counts = Counter(row["reason"] for row in contamination["dropped"])
    first = {reason: [r["id"] for r in contamination["dropped"] if r["reason"] == reason][:3] for reason in counts}
    return [
        {"left out, for": reason, "rows": count, "such as": ", ".join(first[reason])}
        for reason, count in counts.items()
    ]
