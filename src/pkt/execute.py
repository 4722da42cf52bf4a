"""A recipe run as a whole: every stage that is not done yet."""

from __future__ import annotations

from pathlib import Path

from pkt.checks import check
from pkt.config import CertificateSection, Recipe, validate
from pkt.errors import ConfigError
from pkt.files import locked
from pkt.machine import Machine
from pkt.processes import is_first
from pkt.run import Run
from pkt.strict_yaml import read_yaml_file


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


def execute(recipe: Recipe, folder: Path, machine: Machine | None = None, memo: Path | None = None) -> Run:
    """All stages, then the summary, the model card and the report.

    Args:
        memo: where runs share what was computed on the models; None means the folder's own.
    """
    from pkt.report.html import write
    from pkt.summary import write_summary

    run = Run(with_certificate_of(folder, recipe), folder, machine, memo)
    if not is_first():
        run.help_align()
        return run
    check(run)
    with locked(folder):
        run.start()
        if run.method.locate is not None:
            run.locate()
        run.align()
        run.inject()
        run.evaluate()
        write_summary(run)
        write(folder)
    return run
