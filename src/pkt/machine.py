"""Where a run runs, and what it may do there."""

from __future__ import annotations

from dataclasses import dataclass

from pkt.evaluation.execution import NO_LEAVE, Execution


@dataclass(frozen=True)
class Machine:
    """Where a run runs; no part of its result."""

    device: str = "auto"
    batch_size: int = 64
    workers: int = 0
    """Processes for a certificate's arms; 0 means as many as cores and memory allow on a CPU, one on a GPU."""
    execution: Execution = NO_LEAVE
    """Leave to run code that a model has written."""
