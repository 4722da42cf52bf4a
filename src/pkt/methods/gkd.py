"""Generalised knowledge distillation (arXiv:2306.13649): the target learns the source's next-token distributions on its own text.

1. The data: prompts of the train split with their labelled completions, and on request prompts without labels, whose
   completions the source writes greedily (only steps that are not on-policy need them).
2. In a share `lmbda` of the steps the target samples its own completions, after the format's forced prefix; in the others it
   reads those of the data. A sampled completion ends at the end of sequence or after `max_new_tokens`.
3. The loss is the generalised Jensen-Shannon divergence between both models' distributions on the responses' tokens. Every
   parameter of the target is trained.

**Both models are in memory together**, the target in float32, with gradient and optimizer. Both must
mean the same by a token; padding of the vocabularies may differ.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Generator

from pkt.align.answers import answered, check_length
from pkt.align.finetune import FinetuneConfig, check_training, finetune
from pkt.align.full import trained, tune_on_labels
from pkt.errors import ConfigError, DataError
from pkt.inject.delta import Delta
from pkt.methods.base import method
from pkt.models.generation import check_room
from pkt.models.lm import LM
from pkt.models.tokens import check_same_tokens, num_tokens
from pkt.tasks.base import Example, Task, fingerprint
from pkt.tasks.losses import encode_all
from pkt.tasks.prompts import encode_prompt


class GkdConfig(FinetuneConfig):
    """Options of generalised knowledge distillation; `lmbda`, `beta` and `temperature` are the paper's."""

    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    lmbda: float = Field(
        0.5, ge=0, le=1, description="share of steps on completions that the target samples; at 1 no label is read"
    )
    beta: float = Field(
        0.5,
        ge=0,
        le=1,
        description="of the generalised Jensen-Shannon divergence: 0 is KL(source, target), 1 is KL(target, source)",
    )
    temperature: float = Field(
        1.0, gt=0, description="at which the target samples; the divergence itself is taken at temperature 1"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="longest completion that is sampled or written, in tokens; null means the format's"
    )
    unlabelled: int = Field(
        0, ge=0, description="prompts without labels that are used too; the first ones of the task's"
    )
    generation_batch: int = Field(16, ge=1, description="unlabelled prompts that the source answers at a time")


def requires(source: LM, target: LM, cfg: GkdConfig) -> None:
    """Equal token maps (vocabularies may be padded differently), trl, and `loss_on_prompt` false; both models are in memory together."""
    if importlib.util.find_spec("trl") is None:
        raise ConfigError("method gkd needs trl, which is not installed; run pip install 'pkt[distill]'")
    if cfg.loss_on_prompt:
        raise ConfigError("method.loss_on_prompt is true, but gkd scores completions alone; set it to false")
    check_same_tokens(source, target, "gkd")
    check_training(target, cfg)
    for lm in (source, target):
        check_length(lm, cfg.max_new_tokens)


def asked(source: LM, target: LM, task: Task, cfg: GkdConfig, style: str) -> tuple[list[Example], dict[str, int]]:
    """The examples, and how many of their responses are answers of the source. At `lmbda` 1 no response is read: none is kept."""
    labelled, more = task.split("train"), task.unlabelled(cfg.unlabelled)
    if cfg.lmbda == 1:
        return [task.format.answered(e, "", style) for e in (*labelled, *more)], {"answers": 0, "empty": 0}
    if not more:
        return labelled, {"answers": 0, "empty": 0}
    found = answered(source, task, more, style, max_new_tokens=cfg.max_new_tokens, batch_size=cfg.generation_batch)
    return [*labelled, *found.examples], {"answers": len(found.examples), "empty": found.empty}


def preparation(task: Task, cfg: GkdConfig) -> list[Any] | None:
    """What decides the answers; at `lmbda` 1, or without prompts that have no label, none are asked for."""
    if not cfg.unlabelled or cfg.lmbda == 1:
        return None
    asked = fingerprint(task.unlabelled(cfg.unlabelled))
    return [asked, cfg.max_new_tokens, cfg.generation_batch, *task.format.later_version]


def without_source(source: LM, target: LM, task: Task, cfg: GkdConfig, gen: Generator, *, style: str) -> Delta:
    """The control: fine-tuning on the labels of the train split. Nobody answers the unlabelled prompts, so they are left out."""
    return tune_on_labels(target, task, cfg, gen, style)


@method(
    config=GkdConfig,
    kind="baseline",
    paper="arXiv:2306.13649",
    requires=requires,
    splits=("train",),
    prepare=asked,
    preparation=preparation,
    trains_copy=True,
    together=True,
    no_source=without_source,
    learning_rate="lr",
)
def gkd(source: LM, target: LM, task: Task, cfg: GkdConfig, gen: Generator, *, style: str) -> Delta:
    """Distil the source's next-token distributions into every parameter of the target, on the target's own samples."""
    data, answers = asked(source, target, task, cfg, style)
    examples = encode_all(data, style, target, loss_on_prompt=False)
    for e in examples:
        if len(e.ids) > source.dims.context:
            raise DataError(
                f"example {e.id} has {len(e.ids)} tokens, but the context of {source.name} holds {source.dims.context}; shorten or remove it"
            )
    given = [
        encode_prompt(e, style, target.tokenizer, target.dims.context, prefix=task.format.opening(e, style))
        for e in data
    ]
    shared = min(num_tokens(source), num_tokens(target))
    longest = cfg.max_new_tokens or task.format.max_new_tokens
    for lm in (source, target) if cfg.lmbda else ():
        check_room(lm, given, longest)
    with source.teacher([e.prompt for e in examples]) as teacher:

        def train(model: Any) -> list[dict[str, float]]:
            from pkt.align.distillation import distillation

            def build(seed: int, out: Path) -> Any:
                return distillation(
                    model, teacher, target, examples, given, cfg, seed, out,
                    num_tokens=shared, lmbda=cfg.lmbda, beta=cfg.beta, temperature=cfg.temperature, max_new_tokens=longest,
                )  # fmt: skip

            return finetune(model, target, examples, cfg, gen, [*source.identity, repr(source), given], build)

        delta = trained(target, train)
    labels = len(task.split("train")) if cfg.lmbda < 1 else 0
    history = [step | {"divergence": step["loss"]} for step in delta.provenance["history"]]
    return Delta(delta.changes, delta.provenance | {"history": history, "labels": labels} | answers)
