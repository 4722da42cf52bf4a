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
    """A table of lazy `module:object` targets.

    Args:
        what: the kind of thing, for messages.
        cls: of what a user's own `module:object` must be; None means that there is nothing but the table.
    """

    def __init__(self, what: str, targets: dict[str, str], cls: str | None = None) -> None:
        self.what, self.targets, self.cls = what, targets, cls

    def names(self) -> list[str]:
        return sorted(self.targets)

    def get(self, name: str) -> Any:
        """The object behind a name.

        Raises:
            ConfigError: no such name; says the nearest.
        """
        if self.cls and ":" in name:
            return self._own(name, self.cls)
        if name not in self.targets:
            raise ConfigError(f"unknown {self.what} {name!r}; {nearest(name, list(self.targets))}")
        return _load(self.targets[name])

    def _own(self, name: str, cls: str) -> Any:
        """A user's own, by its module and name."""
        module, _, attribute = name.partition(":")
        try:
            found = getattr(import_module(module), attribute, None)
        except (ImportError, ValueError, TypeError, SyntaxError) as e:
            raise ConfigError(f"{self.what} {name!r}: {e}; put the folder of its file on PYTHONPATH") from e
        if not isinstance(found, _load(cls)):
            raise ConfigError(f"{self.what} {name!r}: {module} has no {cls.partition(':')[2]} of that name")
        return found


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
