"""Names of things that a recipe can ask for, resolved when they are first used."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

from pkt.errors import ConfigError


def nearest(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}"


class Registry:
    """A table of lazy `module:object` targets."""

    def __init__(self, what: str, targets: dict[str, str]) -> None:
        self.what, self.targets = what, targets

    def names(self) -> list[str]:
        return sorted(self.targets)

    def get(self, name: str) -> Any:
        """The object behind a name.

        Raises:
            ConfigError: no such name; says the nearest.
        """
        if name not in self.targets:
            raise ConfigError(f"unknown {self.what} {name!r}; {nearest(name, list(self.targets))}")
        module, _, attribute = self.targets[name].partition(":")
        return getattr(import_module(module), attribute)
