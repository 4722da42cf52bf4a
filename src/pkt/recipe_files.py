"""Recipes by name: found, read, overridden."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pkt.config import Recipe, validate
from pkt.errors import ConfigError
from pkt.registry import nearest
from pkt.strict_yaml import read_yaml, read_yaml_file

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in RECIPES.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    raise ConfigError(f"no recipe {name!r}: neither a file nor a shipped recipe; {nearest(name, list(shipped))}")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides.

    Raises:
        ConfigError: with file, key path and what would be right.
    """
    path = find_recipe(name)
    data = read_recipe(path)
    for text in overrides:
        override(data, text)
    return validate(Recipe, data, str(path))


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a recipe's file, with a name, before they are checked."""
    data = read_yaml_file(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(data).__name__}")
    data.setdefault("name", path.stem)
    return data


def override(data: dict[str, Any], given: str) -> None:
    """Put one `key.path=value` into nested keys.

    Raises:
        ConfigError: it is not of that form, or its value is not YAML.
    """
    key, equals, text = given.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {given!r}: expected key.path=value, for example method.steps=8")
    put(data, key, read_yaml(text, f"--set {given!r}") if text else None, f"--set {given!r}")


def put(data: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Put a value at a `key.path` of nested keys.

    Raises:
        ConfigError: a key of the path holds no keys.
    """
    *parents, last = key.split(".")
    at = data
    for parent in parents:
        below = at.setdefault(parent, {})
        if isinstance(below, str) and parent in ("source", "target", "task"):
            below = at[parent] = {"name": below}
        if not isinstance(below, dict):
            raise ConfigError(f"{where}: {parent} holds {below!r}, not keys")
        at = below
    at[last] = value
