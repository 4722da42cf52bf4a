"""What the report reads from a run folder, checked before anything is drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from pkt.errors import DataError
from pkt.strict_yaml import read_yaml

T = TypeVar("T")

Count = Annotated[int, Field(ge=0)]
Score = Annotated[FiniteFloat, Field(ge=0, le=1)]
Layer = Annotated[int, Field(ge=0)]


class ModelInfo(TypedDict):
    name: str
    parameters: NotRequired[Count]
    num_layers: NotRequired[Count]
    width: NotRequired[Count]
    weights: NotRequired[str]


class PassAt(TypedDict):
    k: Count
    score: Score
    standard_error: FiniteFloat | None


class ScoreLine(TypedDict):
    arm: str
    tier: str
    score: Score
    standard_error: NotRequired[FiniteFloat | None]
    num_items: Count
    num_units: Count
    seeds: NotRequired[Count]
    chance: NotRequired[Score | None]
    change: NotRequired[FiniteFloat]
    change_error: NotRequired[FiniteFloat | None]
    pass_at: NotRequired[list[PassAt]]


class PartLine(TypedDict):
    arm: str
    kind: str
    name: str
    score: Score
    standard_error: FiniteFloat | None
    num_items: Count


class ProtocolInfo(TypedDict):
    version: Count
    shots: Count
    samples: Count
    temperature: FiniteFloat
    top_p: FiniteFloat
    too_long: str


class LayerScores(TypedDict):
    source_scores: list[FiniteFloat]
    target_scores: list[FiniteFloat]
    map: list[tuple[Layer, Layer]]
    locator: NotRequired[str]
    examples: NotRequired[Count]
    layer_map: NotRequired[str]
    similarity: NotRequired[list[FiniteFloat]]
    similarity_at_depth: NotRequired[list[FiniteFloat]]


class Step(TypedDict):
    step: Count
    loss: NotRequired[FiniteFloat]
    cross_entropy: NotRequired[FiniteFloat]
    divergence: NotRequired[FiniteFloat]
    state_error: NotRequired[FiniteFloat]
    moment_error: NotRequired[FiniteFloat]
    penalty: NotRequired[FiniteFloat]
    source_cosine: NotRequired[FiniteFloat | None]
    noise_norm_ratio: NotRequired[FiniteFloat | None]


class DeltaLine(TypedDict):
    layer: Layer | None
    part: str
    num_lines: Count
    line_axis: str
    num_entries: NotRequired[Count]
    delta_norm: float
    weight_norm: NotRequired[float | None]
    relative_rms: NotRequired[float | None]
    delta_max: float


class Export(TypedDict):
    dtype: str
    kept_share: FiniteFloat
    kept_cosine: FiniteFloat
    changed_tensors: Count
    target_dtype: NotRequired[str]
    rounded_cosine: NotRequired[FiniteFloat]


class Cost(TypedDict):
    stage: str
    seconds: FiniteFloat
    peak_memory_gib: NotRequired[FiniteFloat | None]
    flop: NotRequired[Annotated[FiniteFloat, Field(ge=0)] | None]


class Summary(TypedDict):
    """`summary.json`: see docs/run_folder.md. Keys that the report does not know are ignored."""

    name: str
    task: str
    method: str
    source: ModelInfo
    target: ModelInfo
    protocol: NotRequired[ProtocolInfo]
    scores: NotRequired[list[ScoreLine]]
    parts: NotRequired[list[PartLine]]
    trained_parameters: NotRequired[Count | None]
    labels: NotRequired[Count | None]
    steps: NotRequired[Count | None]
    flop: NotRequired[Annotated[FiniteFloat, Field(ge=0)] | None]
    perplexity: NotRequired[dict[str, float | str | None] | None]
    loss_on_prompt: NotRequired[bool]
    layers: NotRequired[dict[str, LayerScores]]
    reads_source: NotRequired[bool]
    history: NotRequired[list[Step]]
    delta: NotRequired[list[DeltaLine]]
    export: NotRequired[Export]
    costs: NotRequired[list[Cost]]
    warnings: NotRequired[list[str]]


_SUMMARY: TypeAdapter[Summary] = TypeAdapter(Summary)


@dataclass(frozen=True)
class RunFolder:
    """The files of a run that the report shows."""

    summary: Summary
    recipe: str | None
    """Text of `recipe.yaml`."""
    environment: Mapping[str, Any]
    """Content of `env.json`; empty if the file is missing."""

    @property
    def is_whole(self) -> bool:
        """Whether the recipe says that all items of the test split are scored: it sets no `evaluate.limit`."""
        try:
            recipe = read_yaml(self.recipe or "", "recipe.yaml")
        except (ValueError, TypeError):  # no recipe, but text to be shown
            return False
        evaluate = recipe.get("evaluate", {}) if isinstance(recipe, dict) else None
        return isinstance(evaluate, dict) and evaluate.get("limit") is None


def read(folder: Path) -> RunFolder:
    """Read what the report shows.

    Raises:
        DataError: `summary.json` is missing, or a file is not what docs/run_folder.md says.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the folder of a run that `pkt run` or `pkt certify` has finished")
    summary = checked(_SUMMARY, path, _anew(folder))
    recipe, env = folder / "recipe.yaml", folder / "env.json"
    environment = load_json(env, _anew(folder)) if env.is_file() else {}
    if not isinstance(environment, dict):
        raise DataError(f"{env}: expected a JSON object, found {type(environment).__name__}; delete it or run anew")
    return RunFolder(summary, recipe.read_text(encoding="utf-8") if recipe.is_file() else None, environment)


def _anew(folder: Path) -> str:
    """What to do about a damaged file. A folder of `pkt certify` alone has no delta, so that `pkt evaluate` refuses it."""
    made = (folder / "delta.safetensors").is_file()
    return f"write it anew with `pkt {f'evaluate {folder}' if made else f'certify RECIPE --out {folder}'}`"


def checked(adapter: TypeAdapter[T], path: Path, advice: str) -> T:
    """A JSON file of a declared form.

    Args:
        advice: what the user can do; ends the message.

    Raises:
        DataError: the file is not JSON or not of that form; names the first key that is wrong.
    """
    return fitting(adapter, load_json(path, advice), path, advice)


def fitting(adapter: TypeAdapter[T], content: Any, path: Path, advice: str) -> T:
    """The content of a file, if it has the declared form; else as `checked`."""
    try:
        return adapter.validate_python(content)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{path}: {where}: {first['msg']}; {advice}") from e


def load_json(path: Path, advice: str) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise DataError(f"{path}: not valid JSON ({e}); {advice}") from e
