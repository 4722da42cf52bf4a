"""Sequence-level distillation: fine-tuning on the source's own answers.

1. The source answers the prompts of the train split, greedily, after the format's forced prefix; no label is read. On request
   it also answers prompts without labels. The answers are kept beside the located scores.
2. Every parameter of the target is fine-tuned on them. They are text: tokenizers and families may differ.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Generator

from pkt.align.answers import Answered, answered, check_length
from pkt.align.finetune import FinetuneConfig, check_training
from pkt.align.full import tune_all, tune_on_labels
from pkt.inject.delta import Delta
from pkt.methods.base import method
from pkt.models.lm import LM
from pkt.tasks.base import Task, fingerprint
from pkt.tasks.losses import encode_all


class SeqkdConfig(FinetuneConfig):
    """Options of sequence-level distillation."""

    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    unlabelled: int = Field(
        0, ge=0, description="prompts without labels that the source answers too; the first ones of the task's"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="longest answer of the source, in tokens; null means the format's"
    )
    generation_batch: int = Field(16, ge=1, description="prompts that the source answers at a time")


def requires(source: LM, target: LM, cfg: SeqkdConfig) -> None:
    """Any pair: text alone passes, so tokenizers and families may differ."""
    check_training(target, cfg)
    check_length(source, cfg.max_new_tokens)


def asked(source: LM, target: LM, task: Task, cfg: SeqkdConfig, style: str) -> Answered:
    """The source's answers to all prompts, from its memo once they are there."""
    prompts = [*task.split("train"), *task.unlabelled(cfg.unlabelled)]
    return answered(source, task, prompts, style, max_new_tokens=cfg.max_new_tokens, batch_size=cfg.generation_batch)


def preparation(task: Task, cfg: SeqkdConfig) -> list[Any]:
    """What decides the answers."""
    prompts = [*task.split("train"), *task.unlabelled(cfg.unlabelled)]
    return [fingerprint(prompts), cfg.max_new_tokens, cfg.generation_batch, *task.format.later_version]


def without_source(source: LM, target: LM, task: Task, cfg: SeqkdConfig, gen: Generator, *, style: str) -> Delta:
    """The control: fine-tuning on the labels of the train split. Nobody answers the unlabelled prompts, so they are left out."""
    return tune_on_labels(target, task, cfg, gen, style)


@method(
    config=SeqkdConfig,
    kind="baseline",
    paper="arXiv:1606.07947",
    requires=requires,
    splits=("train",),
    prepare=asked,
    preparation=preparation,
    trains_copy=True,
    no_source=without_source,
    learning_rate="lr",
)
def seqkd(source: LM, target: LM, task: Task, cfg: SeqkdConfig, gen: Generator, *, style: str) -> Delta:
    """Fine-tune every parameter of the target on the source's own answers."""
    found = asked(source, target, task, cfg, style)
    examples = encode_all(found.examples, style, target, loss_on_prompt=cfg.loss_on_prompt)
    delta = tune_all(target, examples, cfg, gen)
    return Delta(delta.changes, delta.provenance | {"labels": 0, "answers": len(examples), "empty": found.empty})
