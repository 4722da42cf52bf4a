"""What a method is, and how it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Generator

    from pkt.inject.delta import Delta
    from pkt.models.lm import LM
    from pkt.tasks.base import Task


class MethodConfig(BaseModel):
    """Options of a method: strict, frozen, every field described."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Function(Protocol):
    """The shape of every method. `style` is the prompt style; both models stay as they were."""

    def __call__(self, source: LM, target: LM, task: Task, cfg: Any, gen: Generator, *, style: str) -> Delta: ...


@dataclass(frozen=True)
class Method:
    """A method function with what is declared beside it."""

    name: str
    function: Function
    config: type[MethodConfig]
    kind: str
    paper: str
    requires: Callable[[LM, LM, Any], None]
    """Raises UnsupportedModelError when the pair lacks what the method needs; reads headers only."""
    splits: tuple[str, ...]
    """Splits of the task that the method reads."""
    locate: Callable[[LM, LM, Task, Any, str], Any] | None = None
    """Scores both models, through the memo of their handles, so that it can run as a stage of its own."""
    locate_options: tuple[str, ...] = ()
    """Options that decide what `locate` finds."""

    def locate_key(self, cfg: MethodConfig) -> dict[str, Any]:
        """The options that decide what `locate` finds."""
        return cfg.model_dump(include=set(self.locate_options))

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def __call__(self, source: LM, target: LM, task: Task, cfg: Any, gen: Generator, *, style: str) -> Delta:
        self.requires(source, target, cfg)
        task.check_disjoint(*self.splits, "test")
        return self.function(source, target, task, cfg, gen, style=style)


def method(
    *,
    config: type[MethodConfig],
    kind: str,
    paper: str,
    requires: Callable[[LM, LM, Any], None],
    splits: tuple[str, ...],
    locate: Callable[[LM, LM, Task, Any, str], Any] | None = None,
    locate_options: tuple[str, ...] = (),
) -> Callable[[Function], Method]:
    """Declare a method: its options, its kind (`pre-align`, `post-align`, `baseline`), paper, needs and splits."""

    def declare(function: Function) -> Method:
        return Method(function.__name__, function, config, kind, paper, requires, splits, locate, locate_options)  # type: ignore[attr-defined]

    return declare
