"""YAML without surprises: no key twice, and 1e-4 is a number."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pkt.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, and reads 1e-4 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConfigError(f"key {key!r} is no text (line {key_node.start_mark.line + 1}); put it in quotes")
            if key in seen:
                raise ConfigError(f"key {key!r} stands twice (line {key_node.start_mark.line + 1}); remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _StrictDumper(yaml.SafeDumper):
    """Puts texts in quotes that the loader would read as numbers."""


for _each in (_StrictLoader, _StrictDumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def yaml_text(data: Any) -> str:
    """YAML that `read_yaml` reads back as it was, keys in their order."""
    return yaml.dump(data, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML strictly.

    Raises:
        ConfigError: not YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}: not valid YAML{line}: {getattr(e, 'problem', None) or e}") from None
    except (ValueError, TypeError, RecursionError) as e:
        # an impossible date, a number of too many digits, too many brackets
        raise ConfigError(f"{where}: not valid YAML: {e}; put texts in quotes") from None


def read_yaml_file(path: Path) -> Any:
    """Parse a YAML file strictly.

    Raises:
        ConfigError: as `read_yaml`, or the file is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 (byte {e.start}); save it as UTF-8") from None
    return read_yaml(text, str(path))


def read_keys(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: as `read_yaml_file`, or the file holds something else.
    """
    data = read_yaml_file(path)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path}: expected keys and values, found {'nothing' if data is None else type(data).__name__}"
        )
    return data
