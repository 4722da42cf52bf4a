"""A recipe run as a whole: every stage that is not done yet."""

from __future__ import annotations

from pathlib import Path

from pkt.certificate_file import with_certificate_of
from pkt.checks import check
from pkt.config import Recipe
from pkt.files import locked
from pkt.machine import Machine
from pkt.processes import is_first
from pkt.run import Run


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
