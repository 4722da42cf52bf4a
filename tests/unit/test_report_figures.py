"""Heat maps and dots: the same bytes, every number and name, nothing beyond the edge."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pkt.report.dots import Dot, dots
from pkt.report.heatmap import WIDTH, Panel, _plan, heatmaps
from pkt.report.numbers import decimals, percent, plain
from pkt.report.svg import ARM_COLOURS, HEAT

COLD = "var(--arm-3,"
WARM = "var(--heat,"


def panel(num_rows: int = 3, num_columns: int = 5, **other: Any) -> Panel:
    values: list[list[float | None]] = [
        [(7 * y + 3 * x) % 10 / 10 for x in range(num_columns)] for y in range(num_rows)
    ]
    given = {
        "title": "down_proj",
        "values": values,
        "rows": [str(y) for y in range(num_rows)],
        "columns": [str(x) for x in range(num_columns)],
        "xlabel": "source layer",
        "ylabel": "target layer",
    }
    return Panel(**{**given, **other})


def drawn(*panels: Panel) -> str:
    return heatmaps(panels, "map", "a map")


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def inside(svg: str) -> bool:
    """Every point of every path, and every text's anchor, is within the picture."""
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    body = re.sub(r"<defs>.*?</defs>", "", svg, flags=re.DOTALL)
    points = [
        tuple(map(float, pair))
        for d in re.findall(r'<path d="([^"]*)"', body)
        for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", d)
    ]
    points += [(float(x), float(y)) for x, y in re.findall(r'<text[^>]*? x="([-\d.]+)" y="([-\d.]+)"', body)]
    assert points
    return all(-0.5 <= x <= width + 0.5 and -0.5 <= y <= height + 0.5 for x, y in points)


def test_same_panels_same_bytes_and_ids_of_its_own() -> None:
    svg = drawn(panel(), panel())
    assert svg == drawn(panel(), panel())
    assert svg.startswith("<svg xmlns")
    assert 'aria-label="a map"' in svg
    assert all(i.startswith("map-") for i in re.findall(r' id="([^"]*)"', svg))
    assert not re.search(r"(?:fill|stroke): #", svg)


def test_row_0_is_at_the_bottom_and_every_number_is_in_its_cell() -> None:
    svg = drawn(panel(2, 2, values=[[0.11, 0.22], [0.33, 0.44]], rows=["low", "high"], columns=["left", "right"]))
    at = {t: (float(x), float(y)) for x, y, t in re.findall(r'x="([-\d.]+)" y="([-\d.]+)"[^>]*>([^<]*)</text>', svg)}
    assert at["0.11"][1] == at["0.22"][1] > at["0.33"][1] == at["0.44"][1]
    assert at["0.11"][0] == at["0.33"][0] < at["0.22"][0] == at["0.44"][0]
    assert abs(at["low"][1] - at["0.11"][1]) < 6


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_cells_without_a_number_are_dashes(missing: float | None) -> None:
    svg = drawn(panel(1, 3, values=[[missing, 0.5, missing]], rows=["0"], xlabel="", ylabel=""))
    assert sum(text == "0.50" for text in texts(svg)) == 1
    assert len(re.findall(r"<use [^>]*var\(--muted", svg)) >= 2
    assert not re.search(r"\b(nan|inf|None)\b", svg)
    assert inside(drawn(panel(1, 2, values=[[None, None]])))


def test_two_colours_around_zero_and_one_where_the_scale_starts_at_zero() -> None:
    values: list[list[float | None]] = [[-0.5, 0.5, 0.0]]
    both = drawn(panel(1, 3, values=values, low=-1))
    assert COLD in both
    assert WARM in both
    assert {"−0.50", "−1.00", "1.00"} <= set(texts(both))
    assert COLD not in drawn(panel(1, 3, values=values))
    one = panel(1, 1, low=-1)
    assert one.colour(-0.5) == (ARM_COLOURS[2], one.colour(0.5)[1])
    assert one.colour(0.5)[0] == HEAT


def test_colours_grow_with_the_number_and_stop_at_the_scales_ends() -> None:
    of = panel(low=0.2, high=0.6)
    shades = [of.colour(value)[1] for value in (-1, 0.2, 0.3, 0.4, 0.6, 7)]
    assert shades == [0, 0, 10, 20, 40, 40]
    assert panel(low=0, high=0).colour(0.0)[1] == 0


def test_marked_cells_are_framed() -> None:
    def frames(svg: str) -> int:
        return len(re.findall(r"<path [^>]*fill: none; stroke: currentColor; stroke-width: 1\.9", svg))

    assert frames(drawn(panel())) == 0
    assert frames(drawn(panel(marks=frozenset({(0, 0), (2, 4)})))) == 2


@pytest.mark.parametrize(
    ("panels", "numbers"),
    [
        ([panel()], True),
        ([panel(1, 1)], True),
        ([panel(1, 4, title="t" * 300, rows=["r" * 90], columns=["c" * 90] * 4, xlabel="x" * 99, ylabel="y" * 99)], True),
        ([panel(num_columns=12)] * 5, True),
        ([panel(48, 40)] * 3, False),
        ([panel(48, 3, columns=["q_proj", "v_proj", "a" * 60])], True),
        ([panel(3, 200)], False),
        ([panel(1, 9, columns=["gate_proj"] * 9, low=-1)] * 2, True),
        ([panel(), panel(high=0.1), panel(low=-0.01, high=0.01)], True),
    ],
)  # fmt: skip
def test_nothing_is_beyond_the_edge(panels: list[Panel], numbers: bool) -> None:
    svg = drawn(*panels)
    width = int(re.findall(r'viewBox="0 0 (\d+)', svg)[0])
    assert width <= WIDTH
    assert inside(svg)
    assert _plan(panels).numbers is numbers
    cells = sum(len(row) for panel in panels for row in panel.values)
    assert (sum(re.fullmatch(r"0\.\d{2,}", text) is not None for text in texts(svg)) >= cells) is numbers


def test_many_layers_keep_readable_names_and_few_bytes() -> None:
    svg = drawn(*[panel(48, 40)] * 4)
    assert _plan([panel(48, 40)] * 4).across == 2
    assert {"0", "46"} <= set(texts(svg))
    assert "47" not in texts(svg)  # every second
    assert len(svg) < 800_000


def test_panels_of_one_scale_share_it_and_others_have_their_own() -> None:
    assert texts(drawn(panel(), panel())).count("1.00") == 1
    assert {"0.30", "1.00"} <= set(texts(drawn(panel(high=0.3), panel())))


def test_numbers_may_be_written_in_another_way() -> None:
    assert "50\u00a0%" in texts(drawn(panel(1, 1, values=[[0.5]], show=percent)))


@pytest.mark.parametrize(
    ("extent", "places", "value", "said"),
    [
        (1, 2, 0.5, "0.50"), (1.5, 1, 1.5, "1.5"), (0.5, 2, -0.004, "0.00"), (0.1, 3, -0.0501, "−0.050"), (12, 0, 11.6, "12"),
        (0, 2, 0, "0.00"), (1e-12, 6, 0, "0.000000"),
    ],
)  # fmt: skip
def test_decimals_follow_the_scale(extent: float, places: int, value: float, said: str) -> None:
    assert decimals(extent) == places
    assert plain(value, places) == said


def rows_of_dots() -> list[Dot]:
    return [
        Dot("a", 0.2, 0.1, 0.3, "between seeds"),
        Dot("b", -0.25, -0.3, -0.2, "between tasks"),
        Dot("n" * 99, 0.5, group="between tasks"),
    ]


def test_dots_say_their_numbers_their_groups_and_the_references() -> None:
    svg = dots(rows_of_dots(), xlabel="Jaccard", references={"chance": 0.111, "r" * 99: 0.9}, name="d", label="dots")
    assert svg == dots(
        rows_of_dots(), xlabel="Jaccard", references={"chance": 0.111, "r" * 99: 0.9}, name="d", label="dots"
    )
    assert {
        "0.200 [0.100, 0.300]",
        "−0.250 [−0.300, −0.200]",
        "0.500",
        "between seeds",
        "between tasks",
        "Jaccard",
    } <= set(texts(svg))
    assert "chance (0.111)" in texts(svg)
    assert inside(svg)
    assert len(re.findall("stroke-dasharray", svg)) == 2 * 2 + 2  # in both panels and in the legend


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 123456.0])
def test_one_dot_without_width(value: float) -> None:
    svg = dots([Dot("a", value, value, value)], xlabel="x", references={}, name="d", label="one")
    assert inside(svg)
    assert "nan" not in svg


def test_many_dots_stay_inside() -> None:
    rows = [Dot(str(i), i / 100, i / 100 - 0.1, i / 100 + 0.1, f"group {i % 9}") for i in range(100)]
    assert inside(dots(rows, xlabel="x", references={"chance": -2.0}, name="d", label="many"))
