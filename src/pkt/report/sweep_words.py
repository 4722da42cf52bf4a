"""What a sweep says, in sentences. Takes the content of `sweep.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report.numbers import interval, plus_minus, signed
from pkt.report.verdict import VERDICTS

Row = Mapping[str, Any]
OPTIMISTIC = (
    "The best of many settings on test items looks better than it is: chance had many tries. A setting is to be chosen by the valid "
    "split, which no score here was taken on."
)
NO_CONTROLS = "Without control arms no gain here is transfer: a sweep with --certify decides that."


def sentences(sweep: Row) -> list[str]:
    """The summary: what is best in every group of points, what differs, what the valid loss would choose, and what it cannot say."""
    found = []
    for group in sweep["groups"]:
        rows = [row for row in sweep["points"] if row["point"] in group["points"]]
        head = f"{group['task']}, {group['target']}: " if len(sweep["groups"]) > 1 else ""
        found += [head + _best(group, rows), _differ(rows), *_others(group, rows), *_chosen(group, rows), *_known(rows)]
    if sweep["certified"]:
        found += _verdicts(sweep)
    else:
        found.append(NO_CONTROLS)
    if sweep["seeds"] == 1:
        found.append("One seed: the intervals know the test items alone, not how seeds differ; add --seeds 3.")
    if sweep["failed"]:
        found.append(f"{sweep['failed']} of {len(sweep['points'])} settings failed; the table has their messages.")
    return found


def score(row: Row) -> str:
    """A point's score on the tier that decides, with one standard error."""
    level = row["scores"][row["tier"]]
    return plus_minus(level["score"], level["standard_error"])


def change(found: Row | None) -> str:
    """A difference with its interval; a dash where there is none."""
    return "–" if found is None else f"{signed(found['mean'])} {interval(found['low'], found['high'])}"


def is_clear(found: Row | None) -> bool:
    """Whether a difference stays clear of zero after Holm's correction."""
    return found is not None and found["p_holm"] < 1 - found["level"]


def _best(group: Row, rows: Sequence[Row]) -> str:
    best = next(row for row in rows if row["point"] == group["best"])
    if (
        all(row["scores"][row["tier"]]["score"] == best["scores"][best["tier"]]["score"] for row in rows)
        and len(rows) > 1
    ):
        return f"All {len(rows)} settings score the same on tier {group['tier']}, {score(best)}{_from_target(best)}."
    return f"Highest score on tier {group['tier']}: {best['point']} with {score(best)}{_from_target(best)}."


def _from_target(row: Row) -> str:
    """The target's score, that of a constant guess and the change, as far as they are known."""
    target, chance = row["target_scores"].get(row["tier"]), row["chance"].get(row["tier"])
    said = [] if target is None else [f"target {target['score']:.3f}"]
    said += [] if chance is None else [f"best constant guess {chance:.3f}"]
    said += [f"change {change(row['change'])}"] if row["change"] else []
    return f" ({', '.join(said)})" if said else ""


def _differ(rows: Sequence[Row]) -> str:
    """Which settings differ from the target."""
    if all(row["change"] is None for row in rows):
        return (
            "Whether a setting differs from the target cannot be said: of one unit alone no difference has an interval."
        )
    up = [row["point"] for row in rows if is_clear(row["change"]) and row["change"]["mean"] > 0]
    down = [row["point"] for row in rows if is_clear(row["change"]) and row["change"]["mean"] < 0]
    said = [
        f"{_named(names, len(rows))} {word} the target" for names, word in ((up, "above"), (down, "below")) if names
    ]
    if not said:
        return f"No setting of {len(rows)} differs from the target by more than chance allows (Holm's correction over {len(rows)})."
    return f"Clear of zero after Holm's correction over {len(rows)}: {'; '.join(said)}."


def _others(group: Row, rows: Sequence[Row]) -> list[str]:
    """Which settings differ from the best one."""
    if all(row["against_best"] is None for row in rows):
        return []
    below = [row["point"] for row in rows if is_clear(row["against_best"])]
    if not below:
        return ["No setting differs from the best by more than chance allows (Holm's correction over all pairs)."]
    return [f"Below the best after Holm's correction over all pairs: {_named(below, len(rows) - 1)}."]


def _chosen(group: Row, rows: Sequence[Row]) -> list[str]:
    chosen = next((row for row in rows if row["point"] == group["chosen_by_valid_loss"]), None)
    if chosen is None or len(rows) < 2:
        return []
    loss = chosen["valid_loss"]["mean"]
    same = "the same setting" if chosen["point"] == group["best"] else chosen["point"]
    return [f"The valid split's loss would choose {same} (loss {loss:.4f}, score {score(chosen)})."]


def _known(rows: Sequence[Row]) -> list[str]:
    """What settings cost on what the target knew, where that falls by more than two standard errors."""
    fallen = []
    for row in rows:
        now, before = row["scores"].get("known"), row["target_scores"].get("known")
        if (
            row["tier"] != "known"
            and now
            and before
            and now["score"] < before["score"] - 2 * (now["standard_error"] or 0)
        ):
            fallen.append((now["score"], before["score"], row["point"]))
    if not fallen:
        return []
    score_, before_, point = min(fallen)
    return [
        f"{len(fallen)} of {len(rows)} settings lose on what the target knew, {point} most: tier known {score_:.3f} (target {before_:.3f})."
    ]


def _verdicts(sweep: Row) -> list[str]:
    known = Counter(row["verdict"] for row in sweep["points"] if row["verdict"])
    named = [f"{number} {VERDICTS[verdict][0]}" for verdict, number in known.items()]
    return [f"Verdicts of the certificates: {', '.join(named)}."] if named else []


def _named(names: Sequence[str], number: int) -> str:
    """Names, or how many where they are many."""
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} of {number} settings"
