"""The arms of a certificate: the method on the real source, and on what stands in its place.

Source arms decide the verdict; locator arms tell whether location mattered. Every arm has the same steps, data and, for
one seed, the same batches; where a source is asked, prompts that it leaves without an answer are left out, and `no_source` has labelled prompts
alone, and fewer steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pkt.errors import ConfigError
from pkt.inject.delta import Delta
from pkt.methods.base import Method, MethodConfig
from pkt.models.controls import RandomSource, ShuffledSource
from pkt.models.lm import LM
from pkt.registry import nearest
from pkt.tasks.base import Example, Task

REAL = "real_source"
SOURCE_ARMS = {
    "random_source": "noise with the mean and variance of what is read of the source; a re-initialised model where it is asked",
    "shuffled_source": "what is read of the source in other places; its answers or logits for other prompts",
    "self_source": "the target in the place of the source",
    "no_source": "the same training with nothing of a source: of the same entries from zero, of a plain adapter, or on labels",
}
LOCATOR_ARMS = {
    "random_neurons": "neurons, or blocks, chosen at random",
    "wrong_task": "neurons, or blocks, located on another task",
}
ARMS = {REAL: "the source's own values", **SOURCE_ARMS, **LOCATOR_ARMS}


@dataclass(frozen=True)
class Setting:
    """What all arms share."""

    method: Method
    source: LM
    target: LM
    task: Task
    style: str
    wrong_examples: Sequence[Example] | None = None
    """Examples of another task, for `wrong_task`."""


def kind(arm: str) -> str:
    """`real`, `source` or `locator`."""
    return "real" if arm == REAL else "source" if arm in SOURCE_ARMS else "locator"


def missing(method: Method, cfg: MethodConfig, arm: str, *, has_wrong_task: bool) -> str | None:
    """Why a method with these options does not have an arm; None if it has."""
    lacking = method.lacks(cfg)
    if arm in lacking:
        return lacking[arm]
    if arm in SOURCE_ARMS and not method.reads_source:
        return f"{method.name} reads no source"
    if arm == "no_source" and method.no_source is None:
        return f"{method.name} does nothing without a source"
    if arm == "random_neurons" and method.random_neurons is None:
        return f"{method.name} chooses no neurons"
    if arm == "wrong_task" and method.locate is None:
        return f"{method.name} locates nothing"
    if arm == "wrong_task" and not has_wrong_task:
        return "no other task was named: set certificate.wrong_task"
    return None


def check_names(names: Iterable[str], where: str, *, real: bool = False) -> None:
    """Raise ConfigError for a name that is no arm; `real`: the real source is one too."""
    known = [arm for arm in ARMS if real or arm != REAL]
    for name in names:
        if name == REAL and not real:
            raise ConfigError(f"{where}: {name} always runs; name control arms only: {', '.join(known)}")
        if name not in known:
            raise ConfigError(f"{where}: unknown arm {name!r}; {nearest(name, known)}")


def transfer(arm: str, setting: Setting, cfg: MethodConfig, seed: int) -> Delta:
    """The delta of one arm at one seed."""
    method, source, target, task = setting.method, setting.source, setting.target, setting.task
    gen = torch.Generator().manual_seed(seed)
    if arm == "no_source":
        assert method.no_source is not None
        return method.no_source(target, target, task, cfg, gen, style=setting.style)
    if arm == "wrong_task":
        task = task.located_with(setting.wrong_examples)
    if arm == "random_neurons":
        cfg = cfg.model_copy(update=dict(method.random_neurons or {}))
    values: dict[str, Any] = {
        "random_source": lambda: RandomSource(source, seed),
        "shuffled_source": lambda: ShuffledSource(source, seed),
        "self_source": lambda: target,
    }
    given = values[arm]() if arm in values else source
    return method(given, target, task, cfg, gen, style=setting.style)
