"""Fine-tuning of all parameters on the train split: what the same labels give without a source."""

from __future__ import annotations

from pydantic import Field
from torch import Generator

from pkt.align.finetune import FinetuneConfig, check_training
from pkt.align.full import tune_on_labels
from pkt.inject.delta import Delta
from pkt.methods.base import method
from pkt.models.lm import LM
from pkt.tasks.base import Task


class SftConfig(FinetuneConfig):
    """Options of full fine-tuning."""

    lr: float = Field(2e-5, gt=0, description="peak learning rate")


def requires(source: LM, target: LM, cfg: SftConfig) -> None:
    """Any target. Nothing of the source."""
    check_training(target, cfg)


@method(
    config=SftConfig,
    kind="baseline",
    paper="none",
    requires=requires,
    splits=("train",),
    reads_source=False,
    trains_copy=True,
    learning_rate="lr",
)
def sft(source: LM, target: LM, task: Task, cfg: SftConfig, gen: Generator, *, style: str) -> Delta:
    """Fine-tune every parameter of the target on the train split."""
    return tune_on_labels(target, task, cfg, gen, style)
