"""The figures and the sentence of the stability analysis on numbers that are known."""

from __future__ import annotations

import pytest

from pkt.report.stability import chance_levels, figures
from pkt.report.stability_words import alike, sentence
from pkt.report.words import joined


def jaccard(between: str, mean: float, layer: object = "all", kind: str = "ffn", model: str = "target", **more) -> dict:
    row = {
        "between": between,
        "kind": kind,
        "model": model,
        "layer": layer,
        "mean": mean,
        "sd": 0.1,
        "min": mean,
        "max": mean,
    }
    row |= {"pairs": 3, "chance": 0.05, "chance_sd": 0.02, "ratio": mean / 0.05, "corrected": (mean - 0.05) / 0.95}
    return row | {"chosen": 10, "of": 100} | more


def delta(part: str, cosine: float | None) -> dict:
    sd = None if cosine is None else 0.01
    return {
        "one": 0,
        "other": 1,
        "part": part,
        "cosine": cosine,
        "random_sd": sd,
        "entries": 10000,
        "lines_jaccard": None,
        "lines_chance": None,
    }


def extent(part: str, zero: bool = False) -> dict:
    names = ("min", "max", "rms", "q01", "q25", "q50", "q75", "q99")
    row = {
        "seed": 0,
        "layer": 0,
        "part": part,
        "entries": 4,
        "max_ratio": None if zero else 0.5,
        "rms_ratio": None if zero else 0.25,
    }
    return row | {f"{of}{name}": 0.0 if zero else 0.1 for of in ("", "weight_") for name in names}


def score(tier: str, low: float, high: float) -> dict:
    return {
        "tier": tier, "seeds": 3, "mean": (low + high) / 2, "variance": 0.01, "sd": 0.1, "min": low, "max": high, "range": high - low,
        "target": 0.5, "change": 0.0, "change_min": -0.1, "change_max": 0.2, "item_error": 0.02, "items": 50, "chance": 0.1,
    }  # fmt: skip


def found(**tables) -> dict:
    usual = {"deltas": [delta("all", 0.4), delta("up", 0.3)], "ranges": [extent("up")]}
    return {"analysis": "stability", "tables": usual | tables}


def test_the_sentence_says_what_the_numbers_say():
    rows = [
        jaccard("examples", 0.06),
        jaccard("seeds", 0.4),
        jaccard("tasks", 0.39),
        jaccard("dtypes", 0.99),
        jaccard("tasks", 0.0, 1),
    ]
    text = sentence(
        found(jaccard=rows, scores=[score("all", 0.4, 0.6), score("new", 0.1, 0.2)])["tables"], "neurons", "laten"
    )
    assert text == (
        "laten: located neurons are no more alike than by chance for two single examples (0.06), mostly different for two halves of the "
        "extract split (0.40) and two tasks (0.39), almost the same for two dtypes (0.99), where chance gives 0.05 (Jaccard index); over 3 "
        "seeds the score on new runs from 0.100 to 0.200 (target 0.500; standard error over items 0.020); the deltas of two seeds have a "
        "cosine of 0.400 on average (random directions: 0 ± 0.0100)."
    )


def test_deltas_that_are_zero_or_equal_are_said_to_be():
    assert sentence(found(deltas=[delta("all", None)])["tables"], "", "lora") == "lora: the deltas are zero."
    assert (
        sentence(found(deltas=[delta("all", 1.0)])["tables"], "", "direct")
        == "direct: the deltas of all seeds are the same."
    )


def test_words_follow_the_share_above_chance():
    assert [alike(x)[:9] for x in (1, 0.9, 0.6, 0.3, 0.1, 0.0, -0.1)] == ["almost th"] * 2 + [
        "largely t", "mostly di", "little mo", "no more a", "no more a",
    ]  # fmt: skip
    assert joined(["a"]) == "a"
    assert joined(["a", "b", "c"]) == "a, b and c"


def test_where_everything_is_chosen_there_is_nothing_to_compare():
    every = {"chance": 1.0, "corrected": None}
    tables = {"jaccard": [jaccard("seeds", 1.0, **every)], "deltas": [delta("all", None)]}
    assert sentence(tables, "blocks", "seeking") == (
        "seeking: located blocks are all there is, so the same for two halves of the extract split (1.00), where chance gives 1.00 "
        "(Jaccard index); the deltas are zero."
    )
    tables["jaccard"].append(jaccard("seeds", 0.05, model="source"))  # of the source there is something left to choose
    assert "no more alike than by chance for two halves of the extract split (0.05)" in sentence(
        tables, "neurons", "laten"
    )


def test_chance_is_one_line_or_its_ends():
    assert chance_levels([jaccard("tasks", 0.1), jaccard("tasks", 0.1, chance=0.055)]) == {"chance": 0.055}
    assert chance_levels([jaccard("tasks", 0.1), jaccard("tasks", 0.1, chance=0.3)]) == {
        "lowest chance": 0.05,
        "highest chance": 0.3,
    }


@pytest.mark.parametrize("zero", [False, True])
def test_every_figure_has_its_words_and_shows_what_is_there(zero):
    pair = {
        "between": "tasks",
        "one": "nano/mmlu",
        "other": "nano/mbpp",
        "kind": "embed",
        "model": "source",
        "jaccard": 0.31,
        "chance": 0.05,
    }
    layer = {
        "kind": "block",
        "source_layer": 0,
        "examples": 3,
        "of_examples": 4,
        "share_examples": 0.75,
        "halves": 0,
        "of_halves": 0,
    }
    rows = [jaccard("tasks", 0.31, at, "embed", "source", sd=None) for at in ("all", None)]
    drawn = figures(
        found(
            jaccard=rows,
            pairs=[{**pair, "corrected": 0.2}],
            layers=[{**layer, "share_halves": None, "chosen": True, "chance": 0.5}],
            scores=[score("all", 0.4, 0.6)],
            seeds=[],
            deltas=[delta("all", None if zero else 0.4), delta("up", None if zero else 0.3)],
            ranges=[extent("up", zero)],
        )
    )
    assert "Triangles: the layers that the recipe's own delta was made from (all matrices 0)." in drawn[3].shown
    assert drawn[3].columns[-1] == "chosen by the recipe"
    tables = {"jaccard": rows, "layers": [{**layer, "share_halves": None, "chosen": False, "chance": 0.5}]}
    (unsaid,) = (
        figure for figure in figures(found(**tables)) if figure.name == "layers"
    )  # a method that says no layers
    assert "Triangles" not in unsaid.shown
    assert unsaid.columns[-1] == "halves"
    assert len(unsaid.rows[0]) == len(unsaid.columns)
    assert [figure.name for figure in drawn] == [
        "agreement",
        "by-layer",
        "tasks",
        "layers",
        "scores",
        "deltas",
        "ranges",
    ]
    for figure in drawn:
        assert figure.svg.startswith("<svg")
        assert all(text.endswith(".") for text in (figure.shown, figure.read, figure.chance))
        assert figure.origin == "stability.json"
        assert {len(row) for row in figure.rows} <= {len(figure.columns)}
    by_name = {figure.name: figure for figure in drawn}
    assert by_name["agreement"].rows[0][:3] == ["tasks", "embed", "0.310"]
    assert "nano/mmlu and nano/mbpp (embed): 0.31" in by_name["tasks"].read
    assert ("zero" in by_name["deltas"].read) == zero
