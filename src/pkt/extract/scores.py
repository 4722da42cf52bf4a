"""What every locator gives, scores of a model's layers and neurons, and the files that keep them between runs.

E examples, L layers, N neurons of a layer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from pkt.config import Section
from pkt.memo import remembered
from pkt.models.lm import LM
from pkt.tasks.base import Example, fingerprint
from pkt.tasks.prompts import encode, strip_trailing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attribution:
    """Scores of all layers and neurons, in the locator's unit.

    `layers[kind]` (E, L) and `neurons[kind]` (E, L, N) float32, or (1, ...) where they are summed over examples.
    `refined[kind]` (E, L, N) bool, for every example the neurons that hold it, where the locator names some; never summed.
    """

    layers: dict[str, Tensor]
    neurons: dict[str, Tensor]
    refined: dict[str, Tensor] | None = None

    def summed(self) -> Attribution:
        """Sums over the examples."""
        layers, neurons = ({k: t.sum(0, keepdim=True) for k, t in part.items()} for part in (self.layers, self.neurons))
        return Attribution(layers, neurons, self.refined)

    def example(self, e: int) -> Attribution:
        """The scores of one example."""
        layers, neurons = ({k: t[e : e + 1] for k, t in part.items()} for part in (self.layers, self.neurons))
        return Attribution(layers, neurons, self.refined and {k: t[e : e + 1] for k, t in self.refined.items()})

    def with_random_neurons(self, gen: Generator) -> Attribution:
        """The same layers, with neurons in random order."""
        neurons = {k: torch.rand(t.shape, generator=gen) for k, t in self.neurons.items()}
        return Attribution(self.layers, neurons)


class Score(Protocol):
    """The shape of every locator: scores of each example by itself.

    `cfg` are the locator's own options; `memory` bytes are for work above the model and the result. Reads the model through
    `lm.for_location()` and leaves it as it was.
    """

    def __call__(self, lm: LM, examples: Sequence[Example], style: str, cfg: Any, memory: int, /) -> Attribution: ...


@dataclass(frozen=True)
class Work:
    """What decides how long a locator takes."""

    examples: int
    prompts: int
    """Examples with their paraphrases, where the locator asks them."""
    tokens: float
    """Of a prompt, on average."""


@dataclass(frozen=True)
class Locator:
    """A way to score layers and neurons, with what is declared beside it."""

    name: str
    paper: str
    version: int
    """Of the scores: raised when they change for the same inputs."""
    score: Score
    encode: Callable[[LM, Sequence[Example], str], Any]
    """Encodes what the locator asks; raises DataError for an example that it cannot use. Reads no weights."""
    flop: Callable[[LM, Work, Any], float]
    """Floating-point operations, for `pkt plan`."""
    requires: Callable[[LM], None] | None = None
    """Raises UnsupportedModelError for a model that the locator cannot score; reads the config only."""
    config: type[Section] = Section
    section: str | None = None
    """The option of a method that holds the locator's own options."""
    paraphrases: bool = False
    """Whether it asks the examples in other words too."""


def locate(
    locator: Locator,
    lm: LM,
    examples: Sequence[Example],
    style: str,
    cfg: Section | None = None,
    *,
    per_example: bool = False,
    memory: int = 256 << 20,
) -> Attribution:
    """Score all layers and neurons of `lm` on `examples`; what is in the handle's memo is read from there.

    Args:
        style: prompt style.
        cfg: the locator's own options; None means its defaults.
        per_example: keep the examples apart, else sum over them.
        memory: bytes to work in, above the model and the result.

    Raises:
        DataError: the locator cannot use an example.
    """
    cfg = cfg or locator.config()
    path = (
        lm.memo / f"attribution-{_key(locator, lm, examples, style, cfg, per_example)[:16]}.safetensors"
        if lm.memo
        else None
    )

    def make() -> dict[str, Tensor]:
        start = time.perf_counter()
        found = locator.score(lm, examples, style, cfg, memory)
        seconds = time.perf_counter() - start
        log.info("scored %s by %s on %d examples in %.1f s", lm.name, locator.name, len(examples), seconds)
        return _tensors(found if per_example else found.summed())

    header = {"model": lm.name, "weights": lm.digest, "examples": str(len(examples)), "style": style}
    return _attribution(remembered(path, header | {"locator": locator.name}, make))


def encode_answers(lm: LM, examples: Sequence[Example], style: str) -> list[list[int]]:
    """Token ids up to the one that carries the answer: the last is predicted from the position before it.

    Raises:
        DataError: an example has no scorable token or is longer than the context.
    """
    return [strip_trailing(encode(e, style, lm.tokenizer, lm.dims.context), lm.tokenizer, e) for e in examples]


def _key(locator: Locator, lm: LM, examples: Sequence[Example], style: str, cfg: Section, per_example: bool) -> str:
    asked = fingerprint(list(examples))
    parts = [locator.name, locator.version, *lm.identity, lm.dtype, asked, style, cfg.model_dump(), per_example]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tensors(found: Attribution) -> dict[str, Tensor]:
    parts = {"layers": found.layers, "neurons": found.neurons, "refined": found.refined or {}}
    return {f"{part}.{k}": t for part, kinds in parts.items() for k, t in kinds.items()}


def _attribution(tensors: dict[str, Tensor]) -> Attribution:
    """What `_tensors` took apart."""
    parts: dict[str, dict[str, Tensor]] = {"layers": {}, "neurons": {}, "refined": {}}
    for name, tensor in tensors.items():
        part, _, kind = name.partition(".")
        parts[part][kind] = tensor
    return Attribution(parts["layers"], parts["neurons"], parts["refined"] or None)
