"""Whether located neurons hold the answers: interventions on both models of a run, in `neurons/verification.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pkt.errors import ConfigError
from pkt.extract.location import DRAWN
from pkt.files import write_json
from pkt.run import Run
from pkt.stages import key_of

FILE = "verification.json"


def check_verifiable(run: Run) -> None:
    """Raise ConfigError if the run's method locates no neurons."""
    name = run.method.name
    if run.method.locate is None:
        raise ConfigError(f"method {name!r} locates nothing, so there is nothing to verify; leave --verify out")
    if run.method.located_neurons is None:
        raise ConfigError(
            f"method {name!r} locates, but not neurons, so there is nothing to silence; leave --verify out"
        )
    if getattr(run.options, "is_random", False):
        raise ConfigError(DRAWN)


def verify_location(run: Run) -> dict[str, Any]:
    """Suppress and amplify the located neurons of both models, and random ones; a stage of its own.

    Raises:
        ConfigError: the method locates no neurons, or draws them at random.
    """
    from pkt.extract.intervene import VERSION

    check_verifiable(run)
    path = run.memo / FILE
    what = [run.options.model_dump(), run.recipe.dtype, run.recipe.seed]

    def make() -> list[Path]:
        write_json(path, _measure(run))
        return [path]

    run.stages.run("verify location", key_of("verify location", VERSION, run.inputs(), *what), make)
    return json.loads(path.read_text(encoding="utf-8"))


def _measure(run: Run) -> dict[str, Any]:
    from torch import Generator

    from pkt.extract.intervene import interventions, mean_and_error
    from pkt.extract.locators import locator_of

    assert run.method.located_neurons is not None
    examples = run.task.location
    located = run.method.located_neurons(run.source, run.target, run.task, run.options, run.style)
    models: dict[str, Any] = {}
    rows = []
    for role, lm, sets in zip(("source", "target"), (run.source, run.target), located, strict=True):
        gen = Generator().manual_seed(run.recipe.seed)
        probability_E, changes = interventions(lm, examples, run.style, sets, gen)
        models[role] = {"name": lm.name, "probability": float(probability_E.mean())}
        for change in changes:
            row: dict[str, Any] = {"model": role, "kind": change.kind, "intervention": change.intervention}
            for what in ("located", "random"):
                mean, error = mean_and_error(getattr(change, what))
                row[what] = {"mean": mean, "error": error}
            rows.append({**row, "neurons": change.neurons})
    about = {"method": run.method.name, "locator": locator_of(run.options).name, "task": run.task.name}
    return {**about, "examples": len(examples), "seed": run.recipe.seed, "models": models, "rows": rows}


def table_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for the terminal: change of the answer's probability, mean and standard error."""

    def shown(value: dict[str, Any]) -> str:
        error = "" if value["error"] is None else f" ± {value['error']:.3f}"
        return f"{value['mean']:+.3f}{error}"

    return [
        {
            "model": row["model"],
            "kind": row["kind"],
            "intervention": row["intervention"],
            "located": shown(row["located"]),
            "random": shown(row["random"]),
            "neurons": f"{row['neurons']:.1f}",
        }
        for row in found["rows"]
    ]
