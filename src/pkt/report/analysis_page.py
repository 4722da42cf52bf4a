"""The page of an analysis, from the content of its JSON file. Self-contained: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pkt.files import write_text
from pkt.registry import Registry
from pkt.report.figures import Figure
from pkt.report.html import templates

PICTURES = Registry(
    "analysis",
    {
        "parametric": "pkt.report.parametric:figures",
        "representation": "pkt.report.representation:figures",
        "stability": "pkt.report.stability:figures",
    },
)
"""What draws an analysis: content of its JSON file -> figures in the order of the page."""
TITLES = {
    "parametric": "Parametric similarity",
    "representation": "Representation similarity",
    "stability": "Stability",
}


def page(found: Mapping[str, Any]) -> str:
    """The page. The same content gives the same text."""
    draw: Callable[[Mapping[str, Any]], list[Figure]] = PICTURES.get(found["analysis"])
    title = TITLES[found["analysis"]]
    return templates().get_template("analysis.html.j2").render(found=found, pictures=draw(found), title=title)


def write(found: Mapping[str, Any], folder: Path) -> Path:
    """Write `NAME.html` into a folder; returns its path."""
    path = folder / f"{found['analysis']}.html"
    write_text(path, page(found))
    return path
