"""Fine-tuning of every parameter, in float32, and the change that it makes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator

from pkt.align.finetune import FinetuneConfig, finetune
from pkt.errors import UnsupportedModelError
from pkt.inject.changes import Change, Dense
from pkt.inject.delta import Delta, Key
from pkt.models.lm import LM
from pkt.tasks.base import Task
from pkt.tasks.losses import Labelled, encode_all

log = logging.getLogger(__name__)

COPIES = 4
"""Float32 numbers per parameter while it is trained: weight, gradient and AdamW's two averages."""


def tune_all(target: LM, examples: Sequence[Labelled], cfg: FinetuneConfig, gen: Generator) -> Delta:
    """The change of every tensor by fine-tuning on `examples`; its size is logged before it starts."""
    return trained(target, lambda model: finetune(model, target, examples, cfg, gen))


def tune_on_labels(target: LM, task: Task, cfg: FinetuneConfig, gen: Generator, style: str) -> Delta:
    """That, on the labels of a task's train split."""
    examples = encode_all(task.split("train"), style, target, loss_on_prompt=cfg.loss_on_prompt)
    delta = tune_all(target, examples, cfg, gen)
    return Delta(delta.changes, delta.provenance | {"labels": len(examples)})


def trained(target: LM, train: Callable[[Any], list[dict[str, float]]]) -> Delta:
    """The change that `train` makes to a private float32 model of `target`.

    Args:
        train: trains the model in place and returns the history.
    """
    with target.private("float32") as model:
        num = sum(p.numel() for p in model.parameters())
        log.info("training all %.1f M parameters: %.2f GiB", num / 1e6, COPIES * 4 * num / 2**30)
        model.train()
        history = train(model)
        changes = difference(model, target)
    return Delta(changes, {"history": history, "trained_parameters": num, "steps": len(history)})


@torch.no_grad()
def difference(model: Any, target: LM) -> dict[Key, Change]:
    """What must be added to the stored target to get `model`: every tensor, float32, on the CPU.

    Raises:
        UnsupportedModelError: the model has a tensor that the family's row does not name.
    """
    keys = target.family.keys(target.dims.layers)
    found: dict[Key, Change] = {}
    for name, weight in model.named_parameters():
        if name not in keys:
            raise UnsupportedModelError(
                f"{target.name}: parameter {name} has no name in its family ({target.config.model_type}); train adapters instead"
            )
        found[keys[name]] = Dense(weight.float().cpu() - target.tensor(name))
    return found
