"""Matplotlib figures as inline SVG that follows the page: its fonts, its colours, light or dark.

Figures are drawn in placeholder colours, which stand for CSS variables of the page. Outside the page each variable
falls back to a colour for a light background. The same figure always gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, HEAT = "#010101", "#010102", "#010103", "#010104"
ARM_COLOURS = tuple(f"#01020{i}" for i in range(1, 8))
"""Target, source, result, then further arms."""

_CSS = {
    INK: "currentColor",
    MUTED: "var(--muted, #5d6672)",
    GRID: "var(--line, #d5dae1)",
    HEAT: "var(--heat, #c2571a)",
    **{
        colour: f"var(--arm-{i}, {fallback})"
        for i, (colour, fallback) in enumerate(
            zip(
                ARM_COLOURS,
                ("#75818f", "#c77700", "#0b62c4", "#8a4fbf", "#1b8a5a", "#b8326a", "#6b7000"),
                strict=True,
            ),
            start=1,
        )
    },
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names with a dollar sign are names
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw inside this block: the library's defaults and the page's style, whatever the user's own settings say."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")  # the browser has fonts that matplotlib lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; one point of its fonts is one CSS pixel.

    Args: width, height in CSS pixels.
    """
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def to_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element; call it inside `drawing()`.

    Args:
        name: unique on the page; every id starts with it.
        label: what a screen reader says.
    """
    matplotlib.rcParams["svg.hashsalt"] = name
    FigureCanvasSVG(figure)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    ids = {found: f"{name}-{i}" for i, found in enumerate(dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', svg)))}

    def adapt(tag: re.Match[str]) -> str:
        found = re.sub(r' id="([^"]*)"', lambda m: f' id="{ids[m[1]]}"' if m[1] in ids else "", tag[0])
        found = re.sub(r'xlink:href="#([^"]+)', lambda m: f'href="#{ids[m[1]]}', found)
        found = re.sub(r"url\(#([^)]+)", lambda m: f"url(#{ids[m[1]]}", found)
        found = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "var(--sans, sans-serif)", found)
        return re.sub("|".join(_CSS), lambda m: _CSS[m[0]], found)

    svg = re.sub(r"<[^>]*>", adapt, svg)
    width, height = (round(size * 72) for size in figure.get_size_inches())
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}" style="--wide: {width}px; max-width: {width}px; min-width: {min(width, 640)}px; stroke-linejoin: round">'
    )
    return head + re.sub(r"\s*\n\s*", "\n", svg[svg.index(">") + 1 :]).strip()
