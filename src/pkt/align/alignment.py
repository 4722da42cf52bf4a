"""Training a hypernetwork so that its delta, injected into a frozen target, lowers the loss on a task.

One step (arXiv:2505.14436, section 3.2):

1. the hypernetwork runs once and gives the changes of all chosen lines;
2. the batch, one extract example and up to 15 align examples, passes through the target with the delta hooked in, in
   micro-batches whose gradients gather on the changes;
3. the loss is the mean over examples of the mean cross-entropy of their tokens, plus the weighted penalty;
4. the gathered gradient goes through the hypernetwork, the only thing that is trained, and AdamW steps.

The losses are those of `pkt.tasks.losses`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from pkt.align.hypernetwork import penalty
from pkt.errors import TrainingError
from pkt.inject.apply import injected
from pkt.inject.delta import Delta
from pkt.models.determinism import deterministic
from pkt.models.lm import LM
from pkt.progress import track
from pkt.tasks.losses import Encoded, encode_all, example_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Encoded", "Options", "Schedule", "align", "dependence", "encode_all", "example_losses", "mean_loss"]

log = logging.getLogger(__name__)

ALIGN_EXAMPLES = 15
"""Align examples of one step, beside one extract example."""


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
    micro_batch: int
    gradient_checkpointing: bool
    weight_decay: float = 0.05
    beta2: float = 0.95


def align(
    hyper: nn.Module,
    target: LM,
    extract: Sequence[Encoded],
    align_split: Sequence[Encoded],
    slices_of: Callable[[int], dict[str, Tensor]],
    place: Callable[[dict[str, Tensor], int], Delta],
    options: Options,
    gen: Generator,
    noise_of: Callable[[int], dict[str, Tensor]] | None = None,
) -> list[dict[str, float]]:
    """Train `hyper` in place.

    Args:
        hyper: slices (L, K, Ds) by part -> changes (L, K, Dt) by part.
        slices_of: step -> slices; place: changes, step -> delta.
        gen: draws the align examples.
        noise_of: step -> noise in the place of the slices, to measure how much the delta depends on them.

    Returns: one record per step: loss, cross_entropy, penalty (unweighted), lr, and with `noise_of` those of `dependence`.

    Raises:
        TrainingError: the loss of an example is NaN or infinite.
    """
    optimizer = torch.optim.AdamW(hyper.parameters(), lr=options.schedule.lr, weight_decay=options.weight_decay)
    history: list[dict[str, float]] = []
    start = time.perf_counter()
    with target.loaded() as model, _checkpointing(model, options.gradient_checkpointing), deterministic():
        for step in track(range(options.steps), "alignment"):
            lr, beta1 = options.schedule.at(step)
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = lr, (beta1, options.beta2)
            drawn = torch.randperm(len(align_split), generator=gen)[:ALIGN_EXAMPLES].tolist()
            batch = [extract[step % len(extract)], *(align_split[i] for i in drawn)]

            changes = hyper(slices_of(step))
            leaves = {part: change.detach().requires_grad_() for part, change in changes.items()}
            entropy = 0.0
            for i in range(0, len(batch), options.micro_batch):
                part = batch[i : i + options.micro_batch]
                with injected(model, place(leaves, step)):
                    losses_B = example_losses(model, target, part)
                    _check_finite(losses_B, part, step)
                    (losses_B.sum() / len(batch)).backward()
                entropy += float(losses_B.detach().sum()) / len(batch)
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
                    "loss": entropy + options.norm_weight * float(norm.detach()),
                    "cross_entropy": entropy,
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


def mean_loss(model: PreTrainedModel, target: LM, examples: Sequence[Encoded], batch_size: int) -> float:
    """Mean over examples of their mean cross-entropy, in nats. The model runs as it is, hooks included."""
    with torch.no_grad():
        parts = [
            example_losses(model, target, examples[i : i + batch_size]).cpu()
            for i in range(0, len(examples), batch_size)
        ]
    return float(torch.cat(parts).mean())


def _check_finite(losses_B: Tensor, batch: Sequence[Encoded], step: int) -> None:
    bad = [e.id for e, fine in zip(batch, losses_B.isfinite().tolist(), strict=True) if not fine]
    if bad:
        raise TrainingError(
            f"step {step + 1}: the loss of example {bad[0]} is not finite (and of {len(bad) - 1} more); lower the learning rate or the "
            f"initial scale"
        )


@contextmanager
def _checkpointing(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Recompute activations in the backward pass.

    transformers does so in training mode only, which is set on the layers alone: below them it would turn dropout on.
    """
    if not wanted:
        yield
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.activation_checkpointing_enable()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
    try:
        yield
    finally:
        model.activation_checkpointing_disable()
        model.eval()
