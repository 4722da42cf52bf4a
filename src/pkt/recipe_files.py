"""Recipes by name: found, read, overridden."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pkt.config import Recipe, validate
from pkt.errors import ConfigError
from pkt.registry import nearest
from pkt.strict_yaml import read_keys, read_yaml

RECIPES = Path(__file__).parent / "recipes"
METHOD = "method.name"
Override = tuple[str, Any, str]
"""A key path, the value for it, and where that was said, for messages."""


def find_recipe(name: str, sweeps: Sequence[str] = ()) -> Path:
    """The file of a recipe: a path, or the name of a shipped one.

    Args: sweeps names of sweeps, where one would do as well, for the message.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in RECIPES.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"{name}: no such file; give a recipe's file, or the name of a shipped recipe")
    what = "recipe or sweep" if sweeps else "recipe"
    raise ConfigError(f"no {what} {name!r}: neither a file nor a shipped one; {nearest(name, [*shipped, *sweeps])}")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides; with another `method.name` the recipe's options of its method are
    left out, and the recipe is named by both.

    Raises:
        ConfigError: with file, key path and what would be right.
    """
    path = find_recipe(name)
    data = read_recipe(path)
    given = [parse_override(text) for text in overrides]
    own = data.get("method")
    method = next((value for key, value, _ in reversed(given) if key == METHOD), None)
    if all(isinstance(x, str) for x in (method, data["name"])) and isinstance(own, dict) and own.get("name") != method:
        data["name"] = f"{data['name']}_{method}"
    override(data, given)
    return validate(Recipe, data, " ".join([str(path), *(f"--set {text}" for text in overrides)]))


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a recipe's file, with a name, before they are checked."""
    data = read_keys(path)
    data.setdefault("name", path.stem)
    return data


def parse_override(given: str) -> Override:
    """`key.path=value` in its parts.

    Raises:
        ConfigError: it is not of that form, or its value is not YAML.
    """
    key, equals, text = given.partition("=")
    where = f"--set {given!r}"
    if not equals or not key:
        raise ConfigError(f"{where}: expected key.path=value, for example method.steps=8")
    return key, read_yaml(text, where) if text else None, where


def override(data: dict[str, Any], given: Iterable[Override]) -> None:
    """Put values at their keys, the method's name first, for its options are its own.

    Raises:
        ConfigError: a key of a path holds no keys.
    """
    for key, value, where in sorted(given, key=lambda one: one[0] != METHOD):
        method = data.get("method")
        if key == METHOD and isinstance(method, dict) and method.get("name") != value:
            data["method"] = {"name": value}  # it starts from its own defaults: the recipe's options are another's
        else:
            _put(data, key.split("."), value, where)


def _put(data: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    *parents, last = path
    at = data
    for parent in parents:
        below = at.setdefault(parent, {})
        if isinstance(below, str) and parent in ("source", "target", "task"):
            below = at[parent] = {"name": below}
        if not isinstance(below, dict):
            raise ConfigError(f"{where}: {parent} holds {below!r}, not keys")
        at = below
    at[last] = value
