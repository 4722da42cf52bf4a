"""What the report reads from `certificate.json`, checked before anything is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NotRequired

from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from pkt.report.data import Count, ModelInfo, Score, checked

Probability = Annotated[FiniteFloat, Field(ge=0, le=1)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]


class Location(TypedDict):
    answer: str
    reason: str


class Gain(TypedDict):
    arm: str
    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class Items(TypedDict):
    tier: str
    num_items: Count
    num_units: Count


class Levels(TypedDict):
    target: Score
    source: NotRequired[Score | None]


class Comparison(TypedDict):
    """The method with its real source minus one arm."""

    arm: str
    kind: Literal["target", "source", "locator"]
    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    p: Probability | None
    p_holm: Probability | None
    num_seeds: Count
    num_units: Count


class Guard(TypedDict):
    """Something that the change should leave alone; below zero is worse."""

    name: str
    unit: str
    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    margin: NotNegative | None
    p: Probability | None
    p_holm: Probability | None
    harmed: bool | None


class Needed(TypedDict):
    """Totals that would settle an undecided verdict; None where no number of them would."""

    seeds: Count | None
    units: Count | None


class CurvePoint(TypedDict):
    lr: Positive
    loss: FiniteFloat | None
    """None where training diverged."""


class Arm(TypedDict):
    arm: str
    kind: Literal["real", "source", "locator"]
    what: str
    reason: str | None
    """Why it does not apply; None where it ran."""
    lr: FiniteFloat | None
    lr_from: str | None
    curve: list[CurvePoint]
    at_edge: bool | None
    trained_parameters: Count | None
    labels: NotRequired[Count | None]
    steps: NotRequired[Count | None]
    flop: NotRequired[NotNegative | None]
    delta_seconds: NotRequired[NotNegative | None]
    score: Score | None
    seed_scores: list[Score]
    seconds: NotNegative | None
    peak_memory_gib: NotNegative | None


class Code(TypedDict):
    pkt: NotRequired[str | None]
    commit: NotRequired[str | None]


class Certificate(TypedDict):
    """`certificate.json`: see docs/certificate.md. Keys that the report does not know are ignored."""

    format: Literal["certificate 1"]
    name: str
    method: str
    task: str
    source: ModelInfo
    target: ModelInfo
    verdict: Literal["transfer", "tuning", "no_effect", "undecided"]
    preliminary: bool
    preliminary_for: NotRequired[list[str]]
    reason: str
    rule: str
    harm: bool | None
    location: Location | None
    gain: Gain | None
    items: Items
    seeds: list[int]
    selection_seed: int | None
    level: Annotated[FiniteFloat, Field(gt=0, lt=1)]
    margin: NotNegative | None
    lead: FiniteFloat | None
    scores: Levels
    comparisons: list[Comparison]
    guards: list[Guard]
    needed: Needed | None
    arms: list[Arm]
    code: NotRequired[Code]


_CERTIFICATE: TypeAdapter[Certificate] = TypeAdapter(Certificate)


def read_certificate(folder: Path) -> Certificate | None:
    """The certificate of a run folder; None if it has none.

    Raises:
        DataError: the file is not what docs/certificate.md says.
    """
    path = folder / "certificate.json"
    if not path.is_file():
        return None
    return checked(_CERTIFICATE, path, f"write it anew with `pkt certify RECIPE --out {folder}`")
