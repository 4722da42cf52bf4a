"""Training a hypernetwork so that its delta serves an objective of the frozen target.

One step (arXiv:2505.14436, section 3.2):

1. the hypernetwork runs once and gives the changes of all chosen lines;
2. the objective gives the loss of the delta that is made of them, and gathers its gradient on the changes;
3. the weighted penalty on the changes is added;
4. the gathered gradient goes through the hypernetwork, the only thing that is trained, and AdamW steps.

The published objective is the language-model loss (`objectives.py`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from pkt.align.hypernetwork import penalty
from pkt.errors import TrainingError
from pkt.inject.delta import Delta
from pkt.models.determinism import deterministic
from pkt.progress import track

log = logging.getLogger(__name__)

MakeDelta = Callable[[], Delta]
"""Makes a step's delta, anew for every backward pass."""
StepLoss = Callable[[MakeDelta, int], float]
"""(make the delta, step counted from 0) -> the step's loss. Its gradient is left on what the delta is made of."""


class Objective(Protocol):
    """What a delta is trained for, beside the penalty on its size."""

    @property
    def term(self) -> str:
        """Name of its loss in the history."""

    def opened(self) -> AbstractContextManager[StepLoss]:
        """The loss of a step, while what it needs (a model, for example) is held."""


@dataclass(frozen=True)
class Schedule:
    """AdamW under a one-cycle cosine: 10 % warm-up from lr/25, back to lr/25, beta1 0.95 -> 0.85 -> 0.95."""

    lr: float
    total: int
    warmup: float = 0.1
    divisor: float = 25.0
    betas: tuple[float, float] = (0.95, 0.85)

    def at(self, step: int) -> tuple[float, float]:
        """Learning rate and beta1 of a step, counted from 0. A cycle too short for a warm-up starts at the peak."""
        peak, end = self.warmup * self.total - 1, self.total - 1
        if step <= peak and peak > 0:
            rise = _cosine(step / peak)
        else:
            rise = 1 - _cosine((step - max(peak, 0)) / max(end - max(peak, 0), 1))
        low, high = self.betas[0], self.betas[1]
        return self.lr / self.divisor + (self.lr - self.lr / self.divisor) * rise, low + (high - low) * rise


def _cosine(x: float) -> float:
    return (1 - math.cos(math.pi * x)) / 2


@dataclass(frozen=True)
class Options:
    """How to align."""

    steps: int
    schedule: Schedule
    norm_weight: float
    weight_decay: float = 0.05
    beta2: float = 0.95


def align(
    hyper: nn.Module,
    objective: Objective,
    slices_of: Callable[[int], dict[str, Tensor]],
    place: Callable[[dict[str, Tensor], int], Delta],
    options: Options,
    noise_of: Callable[[int], dict[str, Tensor]] | None = None,
) -> list[dict[str, float]]:
    """Train `hyper` in place.

    Args:
        hyper: slices (L, K, Ds) by part -> changes (L, K, Dt) by part.
        slices_of: step -> slices; place: changes, step -> delta.
        noise_of: step -> noise in the place of the slices, to measure how much the delta depends on them.

    Returns: one record per step: loss, the objective's term, penalty (unweighted), lr, and with `noise_of` those of `dependence`.

    Raises:
        TrainingError: a loss or a change is NaN or infinite.
    """
    optimizer = torch.optim.AdamW(hyper.parameters(), lr=options.schedule.lr, weight_decay=options.weight_decay)
    history: list[dict[str, float]] = []
    start = time.perf_counter()
    with objective.opened() as loss_of, deterministic():
        for step in track(range(options.steps), "alignment"):
            lr, beta1 = options.schedule.at(step)
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = lr, (beta1, options.beta2)
            changes = hyper(slices_of(step))
            leaves = {part: change.detach().requires_grad_() for part, change in changes.items()}
            loss = loss_of(partial(place, leaves, step), step)
            measured = {}
            if noise_of:
                with torch.no_grad():
                    measured = dependence(place(leaves, step), place(hyper(noise_of(step)), step))
            norm = penalty(leaves)
            if not norm.isfinite():
                raise TrainingError(
                    f"step {step + 1}: the delta is not finite; lower the learning rate or the initial scale"
                )
            (options.norm_weight * norm).backward()
            torch.autograd.backward(list(changes.values()), [leaf.grad for leaf in leaves.values()])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del changes, leaves  # as large as the delta: not to be held through the next forward pass
            history.append(
                {
                    "step": step + 1,
                    "loss": loss + options.norm_weight * float(norm.detach()),
                    objective.term: loss,
                    "penalty": float(norm.detach()),
                    "lr": lr,
                }
                | measured
            )
    log.info("aligned in %d steps, %.1f s", options.steps, time.perf_counter() - start)
    return history


def dependence(delta: Delta, of_noise: Delta) -> dict[str, float]:
    """Cosine of a delta with that of the same network fed with noise, and the norm of the latter over that of the former.

    Both near 1: what the network was fed hardly matters. A delta of zeros has neither: 0.
    """
    pairs = [(delta.changes[key].entries(), of_noise.changes[key].entries()) for key in delta.changes]
    norms = delta.norm(), of_noise.norm()
    dot = float(sum((a.float() * b.float()).sum() for a, b in pairs))
    return {
        "source_cosine": dot / (norms[0] * norms[1]) if all(norms) else 0.0,
        "noise_norm_ratio": norms[1] / norms[0] if norms[0] else 0.0,
    }
