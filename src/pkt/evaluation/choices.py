"""lm-eval's requests for log-likelihoods, answered by one forward pass for all choices of a question where that can be done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pkt.evaluation.ranking import Likelihood, Question, likelihoods

TAIL, TAIL_TOKENS = 8, 2
"""Characters and tokens at the end of a context that decide how a choice after it is cut into tokens."""


def ranked(lm: Any, requests: Sequence[Any], plainly: Callable[[list[Any]], list[Likelihood]]) -> list[Likelihood]:
    """The answers to requests, in order.

    Args:
        lm: lm-eval's `HFLM`.
        requests: with `args` (context, continuation); those of one context are one question.
        plainly: lm-eval's own way, for questions whose choices branch at several places.
    """
    contexts: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        contexts.setdefault(request.args[0], []).append(number)
    encoder = _Encoder(lm)
    asked = {
        context: encoder.question(context, [requests[n].args[1] for n in numbers])
        for context, numbers in contexts.items()
    }
    fit = {c: q for c, q in asked.items() if q and q.is_rankable and len(q.ids) <= lm.max_length}
    rest = [n for context, numbers in contexts.items() if context not in fit for n in numbers]
    found: dict[int, Likelihood] = {}
    if fit:
        answers = likelihoods(lm.model, list(fit.values()), rows=lm.batch_size, device=lm.device)
        found |= _by_number((contexts[c] for c in fit), answers)
    if rest:
        found |= dict(zip(rest, plainly([requests[n] for n in rest]), strict=True))
    return [found[n] for n in range(len(requests))]


def _by_number(numbers: Iterable[list[int]], answers: Iterable[list[Likelihood]]) -> dict[int, Likelihood]:
    return {n: a for ns, of in zip(numbers, answers, strict=True) for n, a in zip(ns, of, strict=True)}


class _Encoder:
    """Token ids as lm-eval makes them, each context read once.

    lm-eval encodes a context with every choice behind it. How that cuts the choice is decided near the seam, so contexts that
    end in the same characters and tokens share it.
    """

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self._known: dict[tuple[Any, ...], tuple[int, ...]] = {}

    def question(self, context: str, choices: Sequence[str]) -> Question | None:
        """A context with its choices; None where lm-eval moves the seam."""
        if not context or context != context.rstrip():
            return None
        ids = tuple(self.lm.tok_encode(context))
        return Question(ids, tuple(self._choice(context, ids, choice) for choice in choices))

    def _choice(self, context: str, ids: tuple[int, ...], choice: str) -> tuple[int, ...]:
        key = context[-TAIL:], ids[-TAIL_TOKENS:], choice
        if key not in self._known:
            self._known[key] = tuple(self.lm.tok_encode(context + choice)[len(ids) :])
        return self._known[key]
