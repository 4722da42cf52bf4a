"""How a benchmark is asked: examples before the question, samples of an answer, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass


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
