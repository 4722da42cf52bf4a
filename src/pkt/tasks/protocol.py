"""How a benchmark is asked: examples before the question, samples of an answer, and how they are drawn."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pkt.errors import ConfigError

if TYPE_CHECKING:
    from pkt.tasks.format import Format

TooLong = Literal["stop", "wrong", "cut"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """What decides a score beside the model, the items and the prompt style."""

    shots: int = 0
    """Worked examples before the question."""
    samples: int = 1
    """Answers to every question; with more than one, the score is the share that is right."""
    temperature: float = 0.0
    """Of sampling; 0 is greedy."""
    top_p: float = 1.0
    """Share of the probability that sampling draws from."""
    too_long: TooLong = "stop"
    """A prompt that leaves no room for its answer: an error, a wrong answer, or cut at its beginning."""

    def differs(self) -> dict[str, Any]:
        """What is not as in a greedy answer without worked examples."""
        usual = asdict(GREEDY)
        return {key: value for key, value in asdict(self).items() if value != usual[key]}


GREEDY = Protocol()
"""One greedy answer, without worked examples."""


def resolved(form: Format, name: str, **given: Any) -> Protocol:
    """A format's protocol with what a recipe says otherwise; None means as the format has it.

    Args:
        name: of the task, for messages.
        given: fields of `Protocol`.

    Raises:
        ConfigError: the format cannot be asked so.
    """
    set_ = {key: value for key, value in given.items() if value is not None}
    check(form, name, made := replace(form.protocol, **set_))
    if set_.get("top_p", 1.0) < 1 and not made.temperature:
        raise ConfigError(
            f"evaluate.top_p is {made.top_p:g}, but {name} is answered greedily (temperature 0), which draws nothing; set "
            f"evaluate.temperature above 0, or leave top_p out (`pkt evaluate --temperature`, `--top-p`)"
        )
    return made


def check(form: Format, name: str, protocol: Protocol) -> None:
    """Raise ConfigError if a format cannot be asked as a protocol says."""
    if protocol.shots and form.shown is None:
        raise ConfigError(f"evaluate.shots is {protocol.shots}, but {name} has no worked examples; set it to 0")
    if form.ranks and (protocol.samples, protocol.temperature, protocol.top_p) != (1, 0, 1):
        raise ConfigError(
            f"{name} ranks its choices and writes nothing; leave evaluate.samples, temperature and top_p out"
        )
    if protocol.samples > 1 and not protocol.temperature:
        raise ConfigError(
            f"evaluate.samples is {protocol.samples}, but {name} is answered greedily (temperature 0), which gives the same answer each "
            f"time; set evaluate.temperature above 0, or evaluate.samples to 1 (`pkt evaluate --temperature`, `--samples`)"
        )
