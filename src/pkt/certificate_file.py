"""The certificate of a run folder beside the folder's recipe: the recipe keeps its section, and one of another recipe is moved aside."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.config import CertificateSection, Recipe, validate
from pkt.errors import ConfigError
from pkt.strict_yaml import read_yaml_file

if TYPE_CHECKING:
    from pkt.run import Run

log = logging.getLogger(__name__)


def with_certificate_of(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe with the `certificate` section of the folder's certificate, if it has none of its own."""
    path = folder / "recipe.yaml"
    if recipe.certificate != CertificateSection() or not path.is_file() or not (folder / "certificate.json").is_file():
        return recipe
    try:
        before = validate(Recipe, read_yaml_file(path), str(path))
    except ConfigError:  # of another version: it is written anew
        return recipe
    return recipe.model_copy(update={"certificate": before.certificate})


def own_certificate(run: Run) -> dict[str, Any] | None:
    """The content of the folder's `certificate.json`, if it is of the run's recipe; else it is moved aside."""
    path = run.folder / "certificate.json"
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    if found.get("hashes", {}).get("recipe") == run.certified_key():
        return found
    aside = path.with_name("certificate.stale.json")
    log.warning("%s is of another recipe: moved to %s; `pkt certify` makes it anew", path, aside.name)
    path.replace(aside)
    return None
