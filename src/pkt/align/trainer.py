"""transformers' Trainer as we use it. Imported when training starts, for it takes seconds."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from pkt.errors import TrainingError

log = logging.getLogger(__name__)

REPORTS = 10
"""Lines about progress in one training."""


class Checked:
    """Stops at a loss that is not finite, and names the examples. Mixed in before a Trainer class."""

    state: Any

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        names = inputs.pop("example_ids")
        found = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(found[0] if isinstance(found, tuple) else found):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss of examples {', '.join(names)} is not finite; lower the learning rate"
            )
        return found


class CheckedTrainer(Checked, Trainer):
    """The ordinary Trainer with that check."""


class Reports(TrainerCallback):
    """A few lines about progress."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        every = max(1, state.max_steps // REPORTS)
        if logs and "loss" in logs and state.global_step % every == 0 and state.is_world_process_zero:
            log.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, float(logs["loss"]))


def quiet(trainer: Trainer) -> Trainer:
    """Without the callbacks that print to stdout."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer
