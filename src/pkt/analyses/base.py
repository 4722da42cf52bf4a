"""What an analysis is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pkt.config import Section

if TYPE_CHECKING:
    from torch import Generator

    from pkt.run import Run

AnalysisConfig = Section
"""Options of an analysis: strict, frozen, every field described."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What an analysis found, as JSON values."""

    sentence: str
    """The finding in one plain sentence; the top of the report."""
    tables: dict[str, list[Row]]
    """By name; the rows of a table have equal keys. A NaN is None."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of these numbers."""


class Function(Protocol):
    """The shape of every analysis. It writes nothing but what its handles and the run's folder keep."""

    def __call__(self, run: Run, cfg: Any, gen: Generator) -> Result: ...


@dataclass(frozen=True)
class Analysis:
    """An analysis function with what is declared beside it."""

    name: str
    function: Function
    config: type[AnalysisConfig]
    paper: str
    version: int
    """Of its numbers: raise it when they change for the same inputs."""
    decides: Callable[[Run, Any], list[Any]]
    """What decides its numbers beside models, its options, and the recipe's method, dtype, seed and prompt style, as JSON values: data."""
    check: Callable[[Run, Any], None]
    """Raises PktError where the analysis cannot end well; reads headers and data, no weights."""

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def __call__(self, run: Run, cfg: Any, gen: Generator) -> Result:
        return self.function(run, cfg, gen)


def analysis(**declared: Any) -> Callable[[Function], Analysis]:
    """Declare an analysis.

    Args:
        declared: the fields of `Analysis`, but for name and function.
    """

    def declare(function: Function) -> Analysis:
        return Analysis(function.__name__, function, **declared)  # type: ignore[attr-defined]

    return declare
