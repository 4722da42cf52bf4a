"""PiSSA: LoRA that starts at the target's own principal components (arXiv:2404.02948).

Per matrix `W = U S V^T`: `B0 = U_r sqrt(S_r)`, `A0 = sqrt(S_r) V_r^T`; the base is the rest.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Generator

from pkt.align.lora import LoraConfig, adapted, check_adapters, tune_lora
from pkt.align.low_rank import low_rank
from pkt.inject.changes import LowRank
from pkt.inject.delta import Delta, Key
from pkt.methods.base import fork, method
from pkt.models.lm import LM
from pkt.tasks.base import Task
from pkt.tasks.losses import encode_all


class PissaConfig(LoraConfig):
    """Options of PiSSA."""

    svd: Literal["exact", "randomized"] = Field(
        "exact", description="how components are found; `randomized` is faster on large matrices"
    )


def requires(source: LM, target: LM, cfg: PissaConfig) -> None:
    """Any target, with `rank` at most the smaller side of every adapted matrix; one that parts share (Phi-3) takes all of them or none.
    Nothing of the source."""
    check_adapters(target, cfg)


def principal(target: LM, cfg: PissaConfig, gen: Generator) -> dict[Key, LowRank]:
    """The start: `alpha / rank` times `B0 A0` is the part of the target's own matrix of that rank."""
    found = {}
    for key in adapted(target, cfg):
        weight = target.part(*key).to(target.torch_device)
        found[key] = low_rank(weight / cfg.scaling, cfg.rank, split="both", method=cfg.svd, gen=gen)
    return found


def start(source: LM, target: LM, task: Task, cfg: PissaConfig, gen: Generator, *, style: str) -> dict[Key, LowRank]:
    """The target's principal components."""
    return principal(target, cfg, fork(gen))


@method(
    config=PissaConfig,
    kind="baseline",
    paper="arXiv:2404.02948",
    requires=requires,
    splits=("train",),
    start=start,
    reads_source=False,
    trains_copy=True,
    learning_rate="lr",
)
def pissa(source: LM, target: LM, task: Task, cfg: PissaConfig, gen: Generator, *, style: str) -> Delta:
    """Train adapters that start at the target's own principal components."""
    begin = start(source, target, task, cfg, gen, style=style)
    examples = encode_all(task.split("train"), style, target, loss_on_prompt=cfg.loss_on_prompt)
    delta = tune_lora(target, examples, cfg, gen, begin)
    return Delta(delta.changes, delta.provenance | {"labels": len(examples)})
