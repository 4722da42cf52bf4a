"""Fine-tuning of all parameters on the train split: what the same labels give without a source."""

from __future__ import annotations

from pydantic import Field
from torch import Generator

from pkt.align.finetune import FinetuneConfig
from pkt.align.full import tune_all
from pkt.inject.delta import Delta
from pkt.methods.base import method
from pkt.models.lm import LM
from pkt.tasks.base import Task
from pkt.tasks.losses import encode_all


class SftConfig(FinetuneConfig):
    """Options of full fine-tuning."""

    lr: float = Field(2e-5, gt=0, description="peak learning rate")


def requires(source: LM, target: LM, cfg: SftConfig) -> None:
    """Any target."""


@method(
    config=SftConfig,
    kind="baseline",
    paper="none",
    requires=requires,
    splits=("train",),
    reads_source=False,
    learning_rate="lr",
)
def sft(source: LM, target: LM, task: Task, cfg: SftConfig, gen: Generator, *, style: str) -> Delta:
    """Fine-tune every parameter of the target on the train split."""
    examples = encode_all(task.split("train"), style, target, loss_on_prompt=cfg.loss_on_prompt)
    delta = tune_all(target, examples, cfg, gen)
    return Delta(delta.changes, delta.provenance | {"labels": len(examples)})
