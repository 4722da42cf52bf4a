"""What a method is, and how it says so."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pkt.config import Section
from pkt.models.checkpoint import file_digest
from pkt.tasks.base import UNLABELLED, fingerprint

if TYPE_CHECKING:
    from torch import Generator

    from pkt.extract.intervene import Sets
    from pkt.inject.changes import LowRank
    from pkt.inject.delta import Delta, Key
    from pkt.models.lm import LM
    from pkt.tasks.base import Task


MethodConfig = Section
"""Options of a method: strict, frozen, every field described."""


class Function(Protocol):
    """The shape of every method. `style` is the prompt style; both models stay as they were."""

    def __call__(self, source: LM, target: LM, task: Task, cfg: Any, gen: Generator, *, style: str) -> Delta: ...


class Start(Protocol):
    """The start `B0`, `A0` of a method's adapters, drawn from `gen` as the method itself draws it; None: peft's own, where B is zero."""

    def __call__(
        self, source: LM, target: LM, task: Task, cfg: Any, gen: Generator, *, style: str
    ) -> Mapping[Key, LowRank] | None: ...


@dataclass(frozen=True)
class Method:
    """A method function with what is declared beside it."""

    name: str
    function: Function
    config: type[MethodConfig]
    kind: str
    paper: str
    requires: Callable[[LM, LM, Any], None]
    """Raises UnsupportedModelError when the pair lacks what the method needs; reads headers only. Its docstring says what that is, for
    `pkt methods NAME`."""
    splits: tuple[str, ...]
    """Splits of the task that the method reads, beside the prompts that an option `unlabelled` may ask for."""
    locate: Callable[[LM, LM, Task, Any, str], Any] | None = None
    """Scores both models, through the memo of their handles, so that it can run as a stage of its own."""
    location: Callable[[Task, Any], list[Any]] | None = None
    """What decides what `locate` finds beside models and prompt style, as JSON values; None: the examples and all options."""
    located_neurons: Callable[[LM, LM, Task, Any, str], tuple[list[Sets], list[Sets]]] | None = None
    """For every example to locate with, the neurons of source and target that hold it: `pkt locate --verify` intervenes on them."""
    prepare: Callable[[LM, LM, Task, Any, str], Any] | None = None
    """Makes what its runs share beside located scores, through the memos of the handles; a stage of its own."""
    preparation: Callable[[Task, Any], list[Any] | None] | None = None
    """What decides what `prepare` makes beside models and prompt style, as JSON values, or None where there is nothing to make;
    not declared: all options."""
    start: Start | None = None
    """Of a method that trains adapters: what they start from, by matrix, for analyses."""
    reads_source: bool = True
    """Whether anything comes from the source; without it, transfer is impossible by construction."""
    trains_copy: bool = False
    """Whether it works on a copy of the target that it loads itself, or loads the source: then no other model is held beside."""
    together: bool = False
    """Whether both models are in memory at the same time."""
    no_source: Function | None = None
    """Control arm: the same with nothing from a source. It gets the target in the place of the source."""
    random_neurons: Mapping[str, Any] | None = None
    """Control arm: the options that make it choose neurons at random."""
    without: Mapping[str, str] = field(default_factory=dict)
    """Control arms that this method does not have, with the reason."""
    without_for: Callable[[Any], Mapping[str, str]] | None = None
    """Options -> further control arms that it does not have with them, with the reason."""
    learning_rate: str | None = None
    """The option that holds its learning rate, if it trains."""

    def __post_init__(self) -> None:
        _ = self.code  # of the files as they are imported, whatever is written into them later
        if self.reads_source and self.learning_rate and not self.no_source and "no_source" not in self.without:
            raise TypeError(
                f"method {self.name} trains on what it reads: declare `no_source`, or say in `without` why it has none"
            )

    def location_key(self, task: Task, cfg: MethodConfig) -> list[Any] | None:
        """What decides what `locate` finds, beside models and prompt style; None where there is nothing to locate."""
        if self.locate is None:
            return None
        if self.location is None:
            return [fingerprint(task.location), cfg.model_dump()]
        return self.location(task, cfg)

    def preparation_key(self, task: Task, cfg: MethodConfig) -> list[Any] | None:
        """What decides what `prepare` makes, beside models and prompt style; None where there is nothing to make."""
        if self.prepare is None:
            return None
        return [cfg.model_dump()] if self.preparation is None else self.preparation(task, cfg)

    def reads(self, cfg: MethodConfig) -> tuple[str, ...]:
        """Splits of the task that the method reads with these options."""
        return (*self.splits, UNLABELLED) if getattr(cfg, UNLABELLED, 0) else self.splits

    @cached_property
    def code(self) -> list[str]:
        """Hashes of the files of a user's own method, so that a changed method is run again."""
        own = (
            self.function,
            self.requires,
            self.locate,
            self.location,
            self.prepare,
            self.preparation,
            self.located_neurons,
            self.start,
            self.no_source,
            self.without_for,
        )
        files = {inspect.getsourcefile(f) for f in own if inspect.isfunction(f) and not f.__module__.startswith("pkt.")}
        return [file_digest(Path(file)) for file in sorted(filter(None, files))]

    def lacks(self, cfg: MethodConfig) -> dict[str, str]:
        """Control arms that this method does not have with these options, with the reason."""
        return {**self.without, **(self.without_for(cfg) if self.without_for else {})}

    @property
    def needs(self) -> str:
        """What it needs of a pair, in words: the docstring of `requires`, in one line."""
        return " ".join((self.requires.__doc__ or "").split())

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def __call__(self, source: LM, target: LM, task: Task, cfg: Any, gen: Generator, *, style: str) -> Delta:
        self.requires(source, target, cfg)
        task.check_disjoint(*self.reads(cfg), "test")
        return self.function(source, target, task, cfg, gen, style=style)


def method(
    *,
    config: type[MethodConfig],
    kind: str,
    paper: str,
    requires: Callable[[LM, LM, Any], None],
    splits: tuple[str, ...],
    **declared: Any,
) -> Callable[[Function], Method]:
    """Declare a method: its options, its kind (`pre-align`, `post-align`, `baseline`), paper, needs and splits.

    Args:
        declared: further fields of `Method`.
    """

    def declare(function: Function) -> Method:
        name = function.__name__  # type: ignore[attr-defined]
        return Method(name, function, config, kind, paper, requires, splits, **declared)

    return declare


def fork(gen: Generator) -> Generator:
    """A generator of its own, seeded by a draw from `gen`."""
    import torch

    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=gen)))
