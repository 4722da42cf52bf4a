"""What a run found, gathered from its folder: `summary.json` and the exported model's card."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.certificate_file import own_certificate
from pkt.evaluation.statistics import by_part, summarise
from pkt.files import write_json, write_text
from pkt.inject.changes import Change, Lines, LowRank
from pkt.inject.delta import Delta
from pkt.inject.ranges import weights_under
from pkt.models.checkpoint import file_digest, is_nano
from pkt.models.lm import LM
from pkt.overlap import folder_warnings
from pkt.protocols import protocol_of
from pkt.report.verdict import harm_flag
from pkt.report.words import changed_in_words
from pkt.scores import Line
from pkt.stages import flop_of
from pkt.tasks.chance import chance_of

if TYPE_CHECKING:
    from pkt.run import Run

log = logging.getLogger(__name__)


def write_summary(run: Run) -> dict[str, Any]:
    """Write `summary.json` and `model/README.md`; parts whose stage has not run are left out."""
    folder, records = run.folder, run.stages.records()
    certificate = own_certificate(run)
    lines = [line for line in run.scores.lines() if f"evaluate {line['arm']}" in records]
    summary: dict[str, Any] = {
        "name": run.recipe.name,
        "task": run.task.name,
        "method": run.method.name,
        "reads_source": run.method.reads_source,
        "source": _model(run.source),
        "target": _model(run.target),
        "protocol": _protocol(run),
        "scores": _scores(run, lines),
        "parts": by_part(lines) if run.task.format.name == "mmlu" and not is_nano(run.task.name) else [],
        "perplexity": _perplexity(run),
        **effort(run),
        "history": [],
        "delta": [],
        "costs": [
            {"stage": name, **{k: s[k] for k in ("seconds", "peak_memory_gib", "flop") if k in s}}
            for name, s in sorted(records.items(), key=lambda item: _order(item[0], run))
        ],
        "warnings": folder_warnings(folder),
    }
    if "align" in records and (folder / "delta.safetensors").is_file():
        delta = Delta.load(folder / "delta.safetensors")
        summary["history"] = delta.provenance.get("history", [])
        if getattr(run.options, "loss_on_prompt", False):
            summary["loss_on_prompt"] = True
        if "layers" in delta.provenance:
            summary["layers"] = delta.provenance["layers"]
        summary["delta"] = _sizes(delta, run.target)
        summary["warnings"] += _warnings(delta, run)
    if "inject" in records and (folder / "export.json").is_file():
        summary["export"] = json.loads((folder / "export.json").read_text())
    write_json(folder / "summary.json", summary)
    if "inject" in records and (folder / "model").is_dir():
        write_text(folder / "model" / "README.md", card(run, summary, certificate))
    return summary


def effort(run: Run) -> dict[str, int | None]:
    """What the delta took: trained parameters, labels and steps as its method says, operations as its stages counted them."""
    path = run.folder / "delta.safetensors"
    said = Delta.where_from(path) if path.is_file() and "align" in run.stages.records() else {}
    return {key: said.get(key) for key in ("trained_parameters", "labels", "steps")} | {
        "flop": flop_of(run.stages.records()) if said else None
    }


def _order(stage: str, run: Run) -> tuple[int, int]:
    """Where a stage stands in a run: `evaluate result` after `inject`, arms as in the recipe."""
    from pkt.stages import STAGES

    name, _, arm = stage.partition(" ")
    arms = list(run.recipe.evaluate.arms)
    return STAGES.index(name) if name in STAGES else len(STAGES), arms.index(arm) if arm in arms else len(arms)


def _model(lm: LM) -> dict[str, Any]:
    return {
        "name": lm.name,
        "parameters": lm.parameters(),
        "num_layers": lm.dims.layers,
        "width": lm.dims.width,
        "weights": lm.digest,
    }


def _scores(run: Run, lines: list[Line]) -> list[dict[str, Any]]:
    """Per model and tier, with chance where guessing scores anything."""
    rows = summarise(lines)
    for row in rows:
        if guessed := chance_of(run.task.name, row["tier"]):
            row["chance"] = guessed
    return rows


def _protocol(run: Run) -> dict[str, Any]:
    """How the task was asked, and the version of its prompts and grades."""
    return {"version": run.task.format.version, **asdict(protocol_of(run.recipe, run.task))}


def _perplexity(run: Run) -> dict[str, Any] | None:
    records = run.stages.records()
    arms = [arm for arm in run.recipe.evaluate.arms if f"evaluate {arm}" in records]
    found = {arm: value for arm, value in run.scores.perplexities().items() if arm in arms}
    if not any(found.values()):
        return None
    return found | {"text": run.recipe.evaluate.perplexity_text or "neutral sentences of the nano world"}


def _sizes(delta: Delta, target: LM) -> list[dict[str, Any]]:
    """Size of the change of every part, beside the target's weights in the same lines."""
    rows = []
    for (layer, part), change in delta.changes.items():
        entries = change.entries().float()
        weight_norm = float(weights_under(target, (layer, part), change).norm())
        rows.append(
            {
                "layer": layer,
                "part": part,
                **_extent(change),
                "num_entries": change.size(),
                "delta_norm": float(entries.norm()),
                "weight_norm": weight_norm,
                "relative_rms": float(entries.norm()) / weight_norm if weight_norm else None,
                "delta_max": float(entries.abs().max()),
            }
        )
    return rows


def _extent(change: Change) -> dict[str, Any]:
    """How much of a tensor changes: some rows or columns, all by a low rank, or every entry."""
    if isinstance(change, Lines):
        return {"num_lines": len(change.index), "line_axis": "rows" if change.axis == 0 else "columns"}
    if isinstance(change, LowRank):
        return {"num_lines": len(change.a), "line_axis": "rank"}
    return {"num_lines": change.size(), "line_axis": "entries"}


def _warnings(delta: Delta, run: Run) -> list[str]:
    """What a reader should know before believing the scores."""
    found = []
    chosen = {key: c for key, c in delta.changes.items() if key[1] in ("o", "v") and isinstance(c, Lines)}
    rows, columns = (sum(len(c.index) for (_, p), c in chosen.items() if p == part) for part in ("v", "o"))
    if rows < columns:
        found.append(
            f"grouped key-value heads: {columns} attention neurons fall on {rows} rows of v_proj; changes of one row were averaged"
        )
    if run.source.digest == run.target.digest:
        found.append("source and target have the same weights: there is nothing to transfer, so this is a control")
    if getattr(run.options, "embeddings", False) and run.target.config.tie_word_embeddings:
        found.append(
            f"embedding and LM head of {run.target.name} are tied and got no adapter; `pkt untie` makes a target where they are apart"
        )
    if delta.norm() == 0:
        found.append("the delta is zero: the result is the target")
    return found


def card(run: Run, summary: dict[str, Any], certificate: dict[str, Any] | None) -> str:
    """The model card: what this is, what differs from the base model, scores, recipe and hashes."""
    recipe, delta = run.recipe, run.folder / "delta.safetensors"
    lines = "\n".join(
        f"| {row['arm']} | {row['tier']} | {row['score']:.3f} ± {_error(row)} | {row['num_items']} | {row['num_units']} |"
        for row in summary["scores"]
    )
    kept = summary.get("export", {})
    base = recipe.target.name
    return f"""---
base_model: {base}
license: {_licence(run.target)}
library_name: transformers
tags: [pkt, parametric-knowledge-transfer, {run.method.name}]
---

# {base} changed by {run.method.name}{f" from {recipe.source.name}" if run.method.reads_source else ""}

Made by `pkt` with the method `{run.method.name}` ({run.method.paper}) for the task `{run.task.name}`.
Every tensor equals that of `{base}` but for {changed_in_words(summary["delta"]) or "nothing"}, stored in
{kept.get("dtype", "the target's dtype")}; {kept.get("kept_share", 1):.1%} of the changed entries survive its rounding (cosine {kept.get("kept_cosine", 1):.4f}).

{_verdict(certificate)}

| model | tier | score ± one standard error | items | units |
| --- | --- | --- | --- | --- |
{lines}

## Recipe

```yaml
{recipe.to_yaml().strip()}
```

## Hashes (SHA-256)

- source weights: `{run.source.digest}`
- target weights: `{run.target.digest}`
- delta.safetensors: `{file_digest(delta) if delta.is_file() else "none"}`
- exported weights: `{LM(run.folder / "model").digest}`
"""


def _verdict(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "Without a certificate (`pkt certify`) these scores do not say whether the gain, if any, comes from the source."
    early = ", preliminary" if certificate["preliminary"] else ""
    return f"Certificate over {len(certificate['seeds'])} seeds: **{certificate['verdict']}**{early}; {harm_flag(certificate)}. {certificate['reason']}"


def _error(row: dict[str, Any]) -> str:
    """The standard error, which one unit alone does not have."""
    return "–" if row["standard_error"] is None else f"{row['standard_error']:.3f}"


def _licence(target: LM) -> str:
    """The base model's licence as its own card states it, else `other`."""
    path = Path(target.checkpoint.folder) / "README.md"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.startswith("license:"):
                return line.removeprefix("license:").strip()
    return "other"
