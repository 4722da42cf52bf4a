"""What guessing scores on a task."""

from __future__ import annotations

from pkt.models.checkpoint import is_nano
from pkt.nano.chance import chance

RANKED = {"mmlu": 0.25}
"""Of public tasks that rank their choices; who writes an answer guesses about none."""


def chance_of(task: str, tier: str) -> float:
    """Of nano tasks the best constant guess in a tier; of public ones 0 where an answer is written."""
    return chance(task, tier) if is_nano(task) else RANKED.get(task, 0.0)
