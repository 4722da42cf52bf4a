"""What a delta can be trained for. Here: the published objective, the language-model loss on the task's responses.

The others, which read no label, are in `activations.py` and `moments.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from pkt.align.alignment import MakeDelta, StepLoss
from pkt.errors import TrainingError
from pkt.inject.apply import injected
from pkt.models.lm import LM
from pkt.tasks.losses import Labelled, example_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALIGN_EXAMPLES = 15
"""Align examples of one step, beside one extract example."""


class Named(Protocol):
    """An example with a name for messages."""

    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=Named)


@dataclass(frozen=True)
class Passes:
    """How a batch goes through the target; changes memory and time, not the loss."""

    micro_batch: int
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class LanguageLoss:
    """Mean over examples of the mean cross-entropy of their counted tokens (arXiv:2505.14436, section 3.2).

    The batch of step t is extract example t mod N and up to `ALIGN_EXAMPLES` align examples, drawn by `gen`.
    """

    target: LM
    extract: Sequence[Labelled]
    align_split: Sequence[Labelled]
    passes: Passes
    gen: Generator
    term: ClassVar[str] = "cross_entropy"

    @contextmanager
    def opened(self) -> Iterator[StepLoss]:
        with self.target.loaded() as model, checkpointing(model, self.passes.gradient_checkpointing):
            yield partial(self._step, model)

    def _step(self, model: PreTrainedModel, make_delta: MakeDelta, step: int) -> float:
        drawn = torch.randperm(len(self.align_split), generator=self.gen)[:ALIGN_EXAMPLES].tolist()
        batch = [self.extract[step % len(self.extract)], *(self.align_split[i] for i in drawn)]
        losses_of = partial(example_losses, model, self.target)
        return batch_loss(model, make_delta, batch, losses_of, self.passes.micro_batch, step)


def batch_loss(
    model: PreTrainedModel,
    make_delta: MakeDelta,
    batch: Sequence[E],
    losses_of: Callable[[Sequence[E]], Tensor],
    micro_batch: int,
    step: int,
) -> float:
    """Mean of the losses of a batch with the delta injected; its gradient gathers over micro-batches.

    Raises:
        TrainingError: the loss of an example is NaN or infinite.
    """
    total = 0.0
    for i in range(0, len(batch), micro_batch):
        part = batch[i : i + micro_batch]
        with injected(model, make_delta()):
            losses_B = losses_of(part)
            _check_finite(losses_B, part, step)
            (losses_B.sum() / len(batch)).backward()
        total += float(losses_B.detach().sum()) / len(batch)
    return total


def _check_finite(losses_B: Tensor, batch: Sequence[Any], step: int) -> None:
    bad = [e.id for e, fine in zip(batch, losses_B.isfinite().tolist(), strict=True) if not fine]
    if bad:
        raise TrainingError(
            f"step {step + 1}: the loss of example {bad[0]} is not finite (and of {len(bad) - 1} more); lower the learning rate or the "
            f"initial scale"
        )


@contextmanager
def checkpointing(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
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
