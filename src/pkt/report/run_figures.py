"""The pictures of a run with their words, from the content of `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report import plots
from pkt.report.figures import Figure
from pkt.report.locator_words import layer_words
from pkt.report.numbers import finite, percent
from pkt.report.table import score_rows
from pkt.report.words import paired_by, shared_layers

ORIGIN = "summary.json"
DEPENDENCE = ("source_cosine", "noise_norm_ratio")
TRAINED_FOR = {
    "state_error": "mean squared difference of the target's states, with the change applied, to the mapped states of the source, "
    "over the variance of the target's own states, in each step's batch of prompts. No label is read.",
    "moment_error": "mean squared difference of the moments of the changed lines to those of the source's slices. No text is read.",
    "divergence": "mean divergence of the target's next-token distributions from the source's, over the response tokens of each "
    "step's batch; in steps on the target's own samples, over these.",
}
CROSS_ENTROPY = "mean cross-entropy of the {tokens} in each step's batch, with the change applied."


def figures(summary: Mapping[str, Any], layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """Those for which the run has numbers.

    Args:
        layers: of `summary`, the kinds that have layer scores.
    """
    history, delta = summary.get("history", []), summary.get("delta", [])
    found = {}
    if summary.get("scores"):
        found["scores"] = _scores(summary)
    if layers:
        found["layer_scores"] = _layer_scores(layers)
        found["layer_maps"] = _layer_maps(layers)
    if plots.trained_for(history):
        found["losses"] = _losses(
            history, "tokens of prompts and responses" if summary.get("loss_on_prompt") else "response tokens"
        )
    if any(finite(step.get(key)) for step in history for key in DEPENDENCE):
        found["source_dependence"] = _source_dependence(history)
    if any(row.get("relative_rms") is not None for row in delta):
        found["delta_sizes"] = _delta_sizes(delta)
    return found


def _scores(summary: Mapping[str, Any]) -> Figure:
    rows = score_rows(summary)
    moved = {way: [r.tier for r in rows if r.change and r.change.verdict == way] for way in ("up", "down")}
    here = "; ".join(f"{way} on {', '.join(tiers)}" for way, tiers in moved.items() if tiers)
    compared = any(row.change for row in rows)
    known = any(row.chance is not None for row in rows)
    return Figure(
        "scores",
        "Scores per tier",
        plots.scores(summary),
        shown="One bar per model and tier: its share of right answers, 0 to 1. The thin line on a bar is one standard error to each side.",
        read="Compare result with target: they answer the same items, so a change is visible where the mean of the items' changes is two of its "
        "standard errors or more from zero, even if the lines of the bars overlap. The source shows how much there would be to gain."
        + (f" Here the result is visibly {here}." if here else " Here no tier differs visibly." if compared else ""),
        chance=(
            "A model that knows nothing of the units would reach the dashed line, where it is known."
            if known
            else "What a model that knows nothing would score is not known for these tiers."
        )
        + " Of twenty tiers that did not change, about one would still seem to.",
        origin=ORIGIN,
    )


def _layer_scores(layers: Mapping[str, Mapping[str, Any]]) -> Figure:
    tops = "; ".join(
        f"{plots.KINDS.get(kind, kind)}, source layer {_top(layers[kind]['source_scores'])} and target layer "
        f"{_top(layers[kind]['target_scores'])}"
        for kind in plots.kinds_of(layers)
    )
    words = layer_words(layers)
    return Figure(
        "layer-scores",
        "Layer scores",
        plots.layer_scores(layers, words.unit),
        shown=f"{words.shown}; layer 0 is next to the input. Filled source layers were chosen.",
        read=f"High points are layers that the locator would choose. Here the highest are: {tops}.",
        chance=words.chance,
        origin=ORIGIN,
    )


def _top(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda layer: scores[layer])


def _layer_maps(layers: Mapping[str, Mapping[str, Any]]) -> Figure:
    return Figure(
        "layer-maps",
        "Layer maps",
        plots.layer_maps(layers),
        shown=f"{paired_by(layers)} Each line runs from a source layer to the target layer that received from it; height is relative depth, filled dots were chosen.",
        read="Level lines join layers of equal relative depth. Chosen layers are paired in depth order, so lines that do not cross are no finding.",
        chance=shared_layers(layers)
        or "Layers drawn at random would give such lines too: the picture alone shows no agreement.",
        origin=ORIGIN,
    )


def _losses(history: Sequence[Mapping[str, Any]], tokens: str) -> Figure:
    key = plots.trained_for(history)
    assert key is not None
    penalised = all("penalty" in record for record in history)
    text = TRAINED_FOR.get(key) or CROSS_ENTROPY.format(tokens=tokens)
    first, last = history[0], history[-1]
    return Figure(
        "losses",
        "Loss",
        plots.losses(history),
        shown=f"Left: {text} Right: the penalty on the size of the change, before it is weighted and added."
        if penalised
        else text[0].upper() + text[1:],
        read=f"Lower is better fitted: here {first[key]:.4g} at step {first['step']}, {last[key]:.4g} at step {last['step']}. "
        "A falling curve is no sign of transfer: a change made from noise can be trained to fit the same examples.",
        chance="No batches are drawn, so ups and downs are the optimizer's."
        if key == "moment_error"
        else "Batches differ, so single steps go up and down by chance.",
        origin=ORIGIN,
    )


def _source_dependence(history: Sequence[Mapping[str, Any]]) -> Figure:
    return Figure(
        "source-dependence",
        "Does the change depend on the source?",
        plots.source_dependence(history),
        shown="At each step the same hypernetwork is also fed with noise in place of the source's slices. The cosine compares the directions "
        "of the two changes, the ratio their sizes (noise-fed over real).",
        read="Both near 1 (dashed): the output hardly depends on what it was fed, so it can carry little from this source. A change that does "
        "depend on the source need not be of use: that is for control arms to show.",
        chance="Two unrelated changes would have a cosine near 0.",
        origin=ORIGIN,
    )


def _delta_sizes(delta: Sequence[Mapping[str, Any]]) -> Figure:
    held = [row for row in delta if finite(row.get("relative_rms"))]
    most = max(held, key=lambda row: row["relative_rms"], default=None)
    layer = f"{'' if most is None or most['layer'] is None else ' of layer ' + str(most['layer'])}"
    return Figure(
        "delta-sizes",
        "Size by layer and module",
        plots.delta_sizes(delta),
        shown="Root mean square of the change over that of the target's own weights in the same place; layer 0 is next to the input, "
        "a dash stands where nothing changed.",
        read="0\u00a0% leaves the weights as they were; at 100\u00a0% the change is as large as they are."
        + (f" Here it is largest in {most['part']}{layer}: {percent(most['relative_rms'])}." if most else ""),
        chance="There is no level that chance would give: the size follows from method, steps and learning rate, whatever the source.",
        origin=ORIGIN,
    )
