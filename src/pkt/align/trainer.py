"""transformers' Trainer as we use it. Imported when training starts, for it takes seconds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from pkt.errors import TrainingError
from pkt.memo_costs import Cost

log = logging.getLogger(__name__)

REPORTS = 10
"""Lines about progress in one training."""
SHOWN = 3
"""Examples that an error names."""
COST = "cost.json"
"""The file of a checkpoint that says what it took to get there."""


class Checked:
    """Stops at a loss that is not finite, and names the examples. Mixed in before a Trainer class."""

    state: Any

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        names = inputs.pop("example_ids")
        found = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(found[0] if isinstance(found, tuple) else found):
            shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss of examples {shown} is not finite; lower the learning rate"
            )
        return found


class FillersLast(Sampler[int]):
    """The order that one process would read in, anew for every epoch, and the fillers after it.

    Args:
        count: examples. fillers: rows behind them in the data set.
    """

    def __init__(self, count: int, fillers: int, seed: int) -> None:
        self.order = SeedableRandomSampler(range(count), data_seed=seed)
        self.fillers = range(count, count + fillers)

    def __len__(self) -> int:
        return len(self.order) + len(self.fillers)

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from self.fillers

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)


class Shared:
    """Several processes read what one would. Mixed in before a Trainer class.

    Where the examples are no multiple of what all processes hold at a time, accelerate would fill the last step of an epoch with the
    epoch's first examples, which would be trained on twice; here it is filled with rows that count nothing.
    """

    args: Any
    train_dataset: Any
    fillers = 0
    """Rows at the end of the data set that count nothing."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if not self.fillers:
            return super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        return FillersLast(len(self.train_dataset) - self.fillers, self.fillers, self.args.data_seed)

    def get_train_dataloader(self) -> Any:
        """As the Trainer's. accelerate tells the number of an epoch that is resumed to a sampler that it finds there, as to its own."""
        loader = super().get_train_dataloader()  # type: ignore[misc]
        if self.fillers:
            loader.set_sampler(loader.batch_sampler.batch_sampler.sampler)
        return loader


class CheckedTrainer(Checked, Shared, Trainer):
    """The ordinary Trainer with both."""


class Reports(TrainerCallback):
    """A few lines about progress."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        every = max(1, state.max_steps // REPORTS)
        if logs and "loss" in logs and state.global_step % every == 0 and state.is_world_process_zero:
            log.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, float(logs["loss"]))


class Spends(TrainerCallback):
    """Says beside every checkpoint what it took to get there.

    Args:
        spent: what the training took so far.
    """

    def __init__(self, spent: Callable[[], Cost]) -> None:
        self.spent = spent

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.spent().write(Path(args.output_dir, f"checkpoint-{state.global_step}", COST))


def quiet(trainer: Trainer) -> Trainer:
    """Without the callbacks that print to stdout."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer
