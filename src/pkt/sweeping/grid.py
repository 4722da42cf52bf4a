"""What a sweep runs: recipes times the values of every axis, each point at some seeds.

A sweep is asked for on the command line, or by a YAML file that is read as strictly as a recipe:

    question: How many alignment steps?
    recipes: [nano_tuned]
    over: {method.steps: [2, 4, 8, 16]}
    seeds: 3
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pkt.config import Recipe, Section, validate
from pkt.errors import ConfigError, PktError
from pkt.methods import method_of
from pkt.recipe_files import RECIPES, find_recipe, override, parse_override, read_recipe
from pkt.strict_yaml import read_keys, read_yaml, read_yaml_file

SWEEPS = Path(__file__).parents[1] / "sweeps"
Scalar = bool | int | float | str | None
MOST = 10_000
"""Runs of one sweep: more are a slip of the pen."""
LONGEST = 120
"""Characters of a point's name; a longer one ends in a hash."""
OWN = {
    "name": "it is the run's name, not a setting",
    "seed": "say how many with --seeds N; they count on from the recipe's",
    "certificate.seeds": "say how many with --seeds N",
    "evaluate.arms": "a sweep scores target, source and result",
}
"""Keys that are no axes, with the reason."""


class Sweep(Section):
    """A sweep's file."""

    question: str = Field("", description="what it answers, in a sentence")
    recipes: list[str] = Field(min_length=1, description="recipes: shipped names, or files beside the sweep's")
    over: dict[str, list[Scalar]] = Field({}, description="axes: recipe key -> its values")
    set: list[str] = Field([], description="KEY=VALUE overrides of every recipe, as `--set` has them")
    seeds: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="seeds of every point, from the recipe's on; null means 1, or with `--certify` as many as the recipe's certificate has",
    )


@dataclass(frozen=True)
class Point:
    """One setting of one recipe."""

    name: str
    """Its settings as people read them, and the name of its folder."""
    recipe: Recipe
    """With the settings, at the first seed."""
    settings: dict[str, Scalar]
    """Values by axis, as far as they are the axis's: the recipe is told by `recipe.name`."""

    def seeded(self, number: int) -> Recipe:
        """The recipe at the seed `number`, counted from 0: the same test items at all of them."""
        scoring = self.recipe.evaluate.model_copy(update={"seed": self.recipe.scoring_seed})
        return self.recipe.model_copy(update={"seed": self.recipe.seed + number, "evaluate": scoring})

    def certified(self, seeds: int | None) -> Recipe:
        """The recipe with a certificate of so many seeds; None leaves the recipe's number.

        Raises:
            ConfigError: fewer than two.
        """
        if seeds is None:
            return self.recipe
        if seeds < 2:
            raise ConfigError("--certify needs two seeds at least; say --seeds 3, or more")
        section = self.recipe.certificate.model_copy(update={"seeds": seeds})
        return self.recipe.model_copy(update={"certificate": section})


def parse_over(texts: Sequence[str]) -> dict[str, list[Scalar]]:
    """Axes from `KEY=V1,V2,...`, whose values are YAML scalars.

    Raises:
        ConfigError: not of that form, a key or a value stands twice, or a value is no scalar.
    """
    found: dict[str, list[Scalar]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        where = f"--over {text!r}"
        if not equals or not key or not values.strip():
            raise ConfigError(f"{where}: expected KEY=V1,V2,..., for example method.steps=2,4,8")
        if key in found:
            raise ConfigError(f"{where}: {key} stands twice; put all its values into one --over")
        read = read_yaml(f"[{values}]", where)
        if not isinstance(read, list):  # a bracket too many ends the list early
            raise ConfigError(f"{where}: expected values with commas between them; put quotes around odd ones")
        found[key] = read
        _check_values(key, read, where)
    return found


def _check_values(key: str, values: Sequence[Any], where: str) -> None:
    """Raise ConfigError for an axis that cannot be one."""
    if key in OWN:
        raise ConfigError(f"{where}: {key} cannot be swept: {OWN[key]}")
    for value in values:
        if isinstance(value, dict | list) or not isinstance(value, Scalar):
            raise ConfigError(f"{where}: found {value!r} among the values of {key}; expected scalars, without brackets")
    if not values:
        raise ConfigError(f"{where}: {key} has no values; name one at least")
    twice = [value for value, number in Counter(map(_text, values)).items() if number > 1]
    if twice:
        raise ConfigError(f"{where}: {twice[0]} stands twice among the values of {key}; name it once")


def find_sweep(names: Sequence[str]) -> Path | None:
    """The file of the sweep that `names` names, if it is one and not recipes.

    Raises:
        ConfigError: a sweep with something beside it.
    """
    paths = [path for name in names if (path := _sweep_file(name))]
    if paths and len(names) > 1:
        raise ConfigError(f"{paths[0]} is a sweep, which stands alone; name one sweep, or recipes")
    return paths[0] if paths else None


def _sweep_file(name: str) -> Path | None:
    path = Path(name)
    if path.is_file():
        data = read_yaml_file(path)
        return path if isinstance(data, dict) and ("recipes" in data or "over" in data) else None
    return {p.stem: p for p in SWEEPS.glob("*.yaml")}.get(name)


def load_sweep(
    names: Sequence[str],
    over: Mapping[str, Sequence[Scalar]] | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
) -> Sweep:
    """A sweep of recipes, or of a sweep's file with what is said beside it: further axes or other values, overrides, seeds.

    Raises:
        ConfigError: a name, a key or a value is wrong.
    """
    over = {key: list(values) for key, values in (over or {}).items()}
    for key, values in over.items():
        _check_values(key, values, "--over")
    path = find_sweep(names)
    if path is None:
        files = [str(_recipe_file(name)) if Path(name).is_file() else name for name in names]
        return validate(Sweep, {"recipes": files, "over": over, "set": list(overrides), "seeds": seeds}, "sweep")
    data = read_keys(path)
    if isinstance(axes := data.get("over"), dict):
        for key, values in axes.items():
            _check_values(key, values if isinstance(values, list) else [values], f"{path}: over")
    held = validate(Sweep, data, str(path))
    files = [str(_recipe_file(name, path)) if not _is_shipped(name) else name for name in held.recipes]
    return held.model_copy(
        update={
            "recipes": files,
            "over": {**held.over, **over},
            "set": [*held.set, *overrides],
            "seeds": held.seeds if seeds is None else seeds,
        }
    )


def _is_shipped(name: str) -> bool:
    return (RECIPES / f"{name}.yaml").is_file()


def _recipe_file(name: str, sweep: Path | None = None) -> Path:
    """A recipe's file, looked for beside a sweep's file first."""
    if sweep is not None and (sweep.parent / name).is_file():
        return (sweep.parent / name).absolute()
    if sweep is None:
        return find_recipe(name, [path.stem for path in SWEEPS.glob("*.yaml")]).absolute()
    try:
        return find_recipe(name).absolute()
    except ConfigError as e:
        raise ConfigError(f"{sweep}: {e}") from None


def points(sweep: Sweep) -> list[Point]:
    """All points, recipes first, then the axes in their order. Every recipe and its method's options are checked; no model is read.

    Raises:
        ConfigError: a recipe, a key or a value is wrong, with the point; or two recipes have one name, or there are too many runs.
    """
    number = len(sweep.recipes) * math.prod(map(len, sweep.over.values())) * (sweep.seeds or 1)
    if number > MOST:
        raise ConfigError(f"the sweep has {number:,} runs, and {MOST:,} at most; name fewer values")
    bases = [_base(name, sweep) for name in sweep.recipes]
    names = Counter(data["name"] for data in bases)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigError(f"two recipes have the name {twice[0]!r}; give each its own `name`")
    found = []
    for data in bases:
        for values in itertools.product(*sweep.over.values()):
            settings = dict(zip(sweep.over, values, strict=True))
            shown = _shown(data["name"] if len(bases) > 1 or not settings else None, settings)
            found.append(Point(shown, _with(data, sweep.set, settings, shown), settings))
    return _told_apart(found)


def _base(name: str, sweep: Sweep) -> dict[str, Any]:
    """A recipe's keys, and its name with the sweep's overrides."""
    data = read_recipe(_recipe_file(name))
    for text in sweep.set:
        key, value, _ = parse_override(text)
        if key in sweep.over:
            raise ConfigError(f"{key} is both set and swept; leave out --set {text}, or its --over")
        if key == "name":
            data["name"] = value
    if not isinstance(data["name"], str):
        validate(Recipe, data, name)
    return data


def _with(data: Mapping[str, Any], overrides: Sequence[str], settings: Mapping[str, Scalar], name: str) -> Recipe:
    """A recipe with overrides and settings, checked down to its method's options."""
    own = copy.deepcopy(dict(data))
    where = f"point {name}"
    given = [(key, value, f"{where}, --over {key}") for key, value in settings.items()]
    override(own, [*map(parse_override, overrides), *given])
    recipe = validate(Recipe, own, where)
    try:
        method_of(recipe)
    except PktError as e:
        raise ConfigError(f"{where}: {e}") from None
    if not {"target", "result"} <= set(recipe.evaluate.arms):
        raise ConfigError(
            f"{where}: evaluate.arms is {recipe.evaluate.arms}, but a sweep compares the result with the target; "
            f"set evaluate.arms to [target, source, result]"
        )
    return recipe


def _shown(recipe: str | None, settings: Mapping[str, Scalar]) -> str:
    """`steps=8,transfer_rate=0.1`, with the recipe's name first where there are several."""
    short = Counter(key.rpartition(".")[2] for key in settings)
    parts = [] if recipe is None else [recipe]
    for key, value in settings.items():
        last = key.rpartition(".")[2]
        parts.append(f"{last if short[last] == 1 else key}={_text(value)}")
    return ",".join(parts)


def _text(value: Scalar) -> str:
    """A value as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


def folder_name(shown: str) -> str:
    """A name that every file system takes: `/` and other odd characters are dashes."""
    safe = re.sub(r"[^\w.,=+-]", "-", shown, flags=re.ASCII)
    if len(safe) > LONGEST:
        safe = f"{safe[: LONGEST - 9]}-{_hash(shown)}"
    return safe if safe.strip(".") else f"point-{_hash(shown)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _told_apart(found: Sequence[Point]) -> list[Point]:
    """The points, with a hash at the end of folder names that two of them would share."""
    taken = Counter(folder_name(point.name) for point in found)
    return [
        point
        if taken[folder_name(point.name)] == 1
        else Point(f"{point.name}~{_hash(json.dumps([point.name, point.settings]))}", point.recipe, point.settings)
        for point in found
    ]
