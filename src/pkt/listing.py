"""Rows for the lists that the command line prints: options, splits, recipes."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from rich.table import Table

from pkt.errors import PktError
from pkt.tasks.base import UNLABELLED

if TYPE_CHECKING:
    from pkt.certification import Certification
    from pkt.tasks.base import Task

Row = dict[str, Any]


def split_rows(task: Task) -> list[Row]:
    """One row per split: items, units, and the tiers of the test split."""
    rows: list[Row] = []
    for split in ("extract", "align", "train", "valid", "test", UNLABELLED):
        try:
            examples = task.split(split)
        except PktError as e:
            if split == UNLABELLED:  # few tasks have it
                continue
            rows.append({"split": split, "items": "-", "units": "-", "tiers": str(e)})
            continue
        tiers = {e.tier: sum(x.tier == e.tier for x in examples) for e in examples if e.tier}
        rows.append(
            {
                "split": split,
                "items": len(examples),
                "units": len({e.unit for e in examples}),
                "tiers": ", ".join(f"{t} {n}" for t, n in tiers.items()) if split == "test" else "",
            }
        )
    return rows


def recipe_rows(folder: Path) -> list[Row]:
    """One row per shipped recipe, with its first line."""
    return [
        {"recipe": path.stem, "what": path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")}
        for path in sorted(folder.glob("*.yaml"))
    ]


def sweep_rows(folder: Path) -> list[Row]:
    """One row per shipped sweep, with its question and its axes."""
    from pkt.sweeping.grid import load_sweep

    rows: list[Row] = []
    for path in sorted(folder.glob("*.yaml")):
        found = load_sweep([path.stem])
        axes = "; ".join(f"{key}={', '.join(map(str, values))}" for key, values in found.over.items())
        rows.append({"sweep": path.stem, "question": found.question, "over": axes, "recipes": ", ".join(found.recipes)})
    return rows


def arm_rows(made: Certification) -> list[Row]:
    """One row per arm of a certificate: what it is, and why it is not run if so."""
    from pkt.certify.arms import ARMS, kind

    return [
        {"arm": arm, "kind": kind(arm), "what": what, "not run, for": made.absent.get(arm, "")}
        for arm, what in ARMS.items()
    ]


def work_in_words(made: Certification) -> str:
    """How much a certificate has to do."""
    arms, seeds = len(made.arms), len(made.seeds)
    tried = len(made.searched) * len(made.cfg.factors)
    return (
        f"{tried} runs to choose learning rates (more where the best is at the edge of its grid), {arms * seeds} runs to score "
        f"({arms} arms, {seeds} seeds), {arms * seeds + 2} scorings; decided by {made.tier or 'all'} test items"
    )


def option_rows(config: Any, prefix: str = "") -> list[Row]:
    """One row per option of a config model: type, bounds, default, meaning."""
    rows = []
    for name, field in config.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            rows += option_rows(field.annotation, f"{prefix}{name}.")
            continue
        bounds = " ".join(
            f"{sign} {getattr(m, key)}"
            for m in field.metadata
            for key, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
            if hasattr(m, key)
        )
        kind = _kind(field.annotation)
        rows.append(
            {
                "option": prefix + name,
                "type": f"{kind} {bounds}".strip(),
                "default": repr(field.default),
                "meaning": field.description or "",
            }
        )
    return rows


def _kind(annotation: Any) -> str:
    """A type as a user writes its values: `published | fan_in`, `float | None`, `list[{name, revision}]`."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return " | ".join(map(str, parts))
    if kind is Annotated:
        return _kind(parts[0])
    if kind in (Union, UnionType):
        return " | ".join(map(_kind, parts))
    if kind is not None:
        return f"{kind.__name__}[{', '.join(map(_kind, parts))}]"
    if fields := getattr(annotation, "model_fields", None):
        return f"{{{', '.join(fields)}}}"
    return "None" if annotation is NoneType else str(getattr(annotation, "__name__", annotation))


def table(rows: list[Row]) -> Table:
    """A plain table; long cells fold."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in rows[0]:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(str(v).replace("[", "\\[") for v in row.values()))
    return shown
