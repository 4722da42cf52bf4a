"""The certificate of a run folder beside the folder's recipe: the recipe keeps its section, and one of another recipe is moved aside."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.config import CertificateSection, Recipe, validate
from pkt.errors import ConfigError
from pkt.files import read_record, write_json
from pkt.stages import MARK, WRITTEN
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


def disown(run: Run) -> None:
    """Where certificate or arms are of another recipe, they count no more, and what sums up the folder goes. Finished work is kept."""
    had = (run.folder / "certificate.json").is_file()
    is_other = had and own_certificate(run) is None
    mark = read_record(run.folder / MARK)
    if is_other or (mark and mark.get("recipe") != run.certified_key()):
        for file in (MARK, *WRITTEN):
            (run.folder / file).unlink(missing_ok=True)


def claim_arms(run: Run, others: Sequence[Path]) -> None:
    """Say that the folder's arms are those of its recipe, without the records of others, and without a certificate that rests on them."""
    if others and (run.folder / "certificate.json").is_file():
        _set_aside(run.folder, "rests on arms of another recipe, or of other weights, data or code")
    for path in others:
        path.unlink()
    mark = {"recipe": run.certified_key()}
    if read_record(run.folder / MARK) != mark:
        write_json(run.folder / MARK, mark)


def _set_aside(folder: Path, why: str) -> None:
    """Move a certificate to where nothing reads it."""
    path = folder / "certificate.json"
    aside = path.with_name("certificate.stale.json")
    log.warning("%s %s: moved to %s; `pkt certify` makes it anew", path, why, aside.name)
    path.replace(aside)


def own_certificate(run: Run) -> dict[str, Any] | None:
    """The content of the folder's `certificate.json`, if it is of the run's recipe; else it is moved aside."""
    path = run.folder / "certificate.json"
    if not path.is_file():
        return None
    found = read_record(path)
    hashes = found.get("hashes")
    if isinstance(hashes, dict) and hashes.get("recipe") == run.certified_key():
        return found
    _set_aside(run.folder, "is of another recipe")
    return None
