"""The files of a comparison. Its HTML page is self-contained: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pkt.files import write_json, write_text
from pkt.report import comparison as words
from pkt.report.comparison_figures import gains
from pkt.report.frontier import Picture, pictures
from pkt.report.html import templates


def page(comparison: Mapping[str, Any], pictures: Sequence[Picture] = ()) -> str:
    """The page. The same content gives the same text.

    Args:
        comparison: the content of `comparison.json`; pictures: of the frontiers, if they were asked for.
    """
    found = [
        {
            "setting": words.setting(rows),
            "mixed": words.mixed(rows),
            "rows": rows,
            "tiers": words.tiers(rows),
            "decides": rows[0]["tier"],
            "gains": gains(rows),
            "frontiers": [p.figure for p in pictures if p.setting == words.setting(rows)],
        }
        for rows in words.groups(comparison)
    ]
    template = templates().get_template("comparison.html.j2")
    return template.render(groups=found, runs=comparison["runs"], sentence=words.sentence(comparison), words=words)


def write(
    comparison: Mapping[str, Any], folder: Path, *, frontier: bool = False, tier: str | None = None
) -> list[Path]:
    """Write a comparison as JSON, CSV and a page, and with `frontier` its pictures, in the page and as SVG files.

    Returns: the files.
    Raises: DataError when no run has the tier.
    """
    drawn = pictures(comparison, tier) if frontier else []
    texts = {f"{picture.figure.name}.svg": picture.figure.svg for picture in drawn}
    texts |= {"comparison.csv": words.as_csv(comparison), "comparison.html": page(comparison, drawn)}
    said = [
        {"setting": p.setting, "title": p.figure.title, "file": f"{p.figure.name}.svg", "undominated": p.undominated}
        for p in drawn
    ]
    write_json(folder / "comparison.json", {**comparison, **({"frontiers": said} if frontier else {})})
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in ("comparison.json", *sorted(texts))]
