"""LaTen: locate, then align. Pre-Align transfer of arXiv:2505.14436.

1. Attribution of layers and neurons in both models, on the extract split.
2. A layer map for attention and one for FFN: the source's highest-scoring layers, as many as the target has.
3. In every mapped layer the best `int(n_target * transfer_rate)` neurons of both models; source rank r meets target rank r.
4. The source's rows of `up_proj` and `v_proj` and columns of `down_proj` and `o_proj` are read from its files.
5. A hypernetwork is trained to turn them into changes of the target's lines, with a language-model loss on the target.
6. Its last output, placed on the target's neurons, is the delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from pkt.align.alignment import Options, Schedule, align, encode_all
from pkt.align.hypernetwork import FreeEntries, Hypernetwork
from pkt.errors import ConfigError, DataError, TrainingError
from pkt.extract.location import (
    LOCATE_OPTIONS,
    RANDOM_NEURONS,
    Located,
    LocationConfig,
    attributions,
    check_pair,
    counts,
    describe_layers,
    locate,
    ordered_scores,
)
from pkt.extract.slices import place, read_slices
from pkt.inject.delta import Delta
from pkt.methods.base import fork, method
from pkt.models.controls import RandomSource
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.tasks.base import Task

DIAGNOSTIC = -1
"""Seed of the diagnostic's noise; those of control arms are not negative."""


class LatenConfig(LocationConfig):
    """Options of LaTen; the defaults are the published values."""

    injection_rate: float | None = Field(
        None, gt=0, le=1, description="`transfer_rate` at injection; null means the same"
    )
    steps: int = Field(8, ge=1, description="alignment steps (optimizer updates)")
    schedule_steps: int | None = Field(
        None,
        ge=1,
        description="length of the one-cycle schedule in steps; null means the number of extract examples, as published, or `steps` "
        "if that is more",
    )
    lr: float = Field(3e-5, gt=0, description="peak learning rate")
    norm_weight: float = Field(
        1000.0, ge=0, description="weight of the penalty on the delta's mean squared entry, summed over module types"
    )
    weight_decay: float = Field(0.05, ge=0, description="weight decay of AdamW")
    hidden: int = Field(0, ge=0, description="hidden width of the hypernetwork; 0 means the source's width")
    bias: bool = Field(False, description="biases in the hypernetwork")
    init: Literal["published", "fan_in"] = Field(
        "published",
        description="initial weights: `published` N(0, 1e-5 squared); `fan_in` N(0, 1/fan_in), the second times `init_scale`",
    )
    init_scale: float = Field(
        1e-2, gt=0, description="factor on the second weight's initial scale when `init` is `fan_in`"
    )
    loss_on_prompt: bool = Field(False, description="count the prompt's tokens in the loss too")
    micro_batch: int = Field(16, ge=1, description="examples in memory at a time; does not change the step")
    gradient_checkpointing: bool = Field(
        False, description="recompute the target's activations in the backward pass to save memory"
    )
    source_dependence: bool = Field(
        False,
        description="at every step, compare the delta with that of the same hypernetwork fed with noise (a diagnostic; changes nothing)",
    )


def requires(source: LM, target: LM, cfg: LatenConfig) -> None:
    """LaTen needs as many source layers as target layers and as many source neurons as it selects."""
    check_pair(source, target, cfg.transfer_rate, cfg.injection_rate or cfg.transfer_rate)
    if cfg.schedule_steps is not None and cfg.steps > cfg.schedule_steps:
        raise ConfigError(
            f"method.steps is {cfg.steps}, but method.schedule_steps ends the schedule at {cfg.schedule_steps}; "
            f"set method.schedule_steps={cfg.steps} as well, or to null"
        )


def without_source(source: LM, target: LM, task: Task, cfg: LatenConfig, gen: Generator, *, style: str) -> Delta:
    """The control: the entries of the delta are trained themselves, from zero, in the same rows with the same penalty."""
    most = counts(target.dims, max(cfg.transfer_rate, cfg.injection_rate or 0))
    num = {part: most[kind] for kind, parts in KINDS.items() for part in parts}
    free = FreeEntries(target.dims.layers, num, target.dims.width)
    return _transfer(source, target, task, cfg, gen, style, lambda _: free)


@method(
    config=LatenConfig,
    kind="pre-align",
    paper="arXiv:2505.14436",
    requires=requires,
    splits=("extract", "align"),
    locate=attributions,
    locate_options=LOCATE_OPTIONS,
    no_source=without_source,
    random_neurons=RANDOM_NEURONS,
    learning_rate="lr",
)
def laten(source: LM, target: LM, task: Task, cfg: LatenConfig, gen: Generator, *, style: str) -> Delta:
    """Locate neurons in both models, train a hypernetwork between them, return its update."""

    def hypernetwork(gen: Generator) -> nn.Module:
        return Hypernetwork(
            source.dims.width,
            target.dims.width,
            gen,
            hidden=cfg.hidden,
            bias=cfg.bias,
            init=cfg.init,
            scale=cfg.init_scale,
        )

    return _transfer(source, target, task, cfg, gen, style, hypernetwork)


def _transfer(
    source: LM,
    target: LM,
    task: Task,
    cfg: LatenConfig,
    gen: Generator,
    style: str,
    network: Callable[[Generator], nn.Module],
) -> Delta:
    """LaTen with any network from slices to changes."""
    extract, aligned = task.split("extract"), task.split("align")
    for name, split in (("extract", extract), ("align", aligned)):
        if not split:
            raise DataError(f"{task.name}: LaTen needs at least one {name} example; the split is empty")
    # one stream each, so that control arms of another size still draw the same batches
    weights, batches, chance = fork(gen), fork(gen), fork(gen)
    scores = ordered_scores(source, target, task, cfg, style, chance)
    at, into = (counts(target.dims, rate) for rate in (cfg.transfer_rate, cfg.injection_rate or cfg.transfer_rate))
    per_example, num_located = cfg.locate == "per_example", len(task.location)

    def located(example: int | None, num: dict[str, int]) -> Located:
        picked = scores if example is None else (scores[0].example(example), scores[1].example(example))
        return locate(source, target, picked, num)

    @lru_cache(maxsize=1)  # slices of a large source are gigabytes: one set at a time
    def of_example(example: int | None) -> Located:
        return located(example, at)

    def of_step(step: int) -> Located:
        return of_example(step % num_located if per_example else None)

    @lru_cache(maxsize=1)
    def noise_for(example: int | None) -> dict[str, Tensor]:
        noise = read_slices(RandomSource(source, DIAGNOSTIC), of_example(example).source)
        return {part: t.to(target.torch_device) for part, t in noise.items()}

    def noise_of(step: int) -> dict[str, Tensor]:
        return noise_for(step % num_located if per_example else None)

    hyper = network(weights).to(target.torch_device)
    schedule = Schedule(cfg.lr, cfg.schedule_steps or max(len(extract), cfg.steps))
    history = align(
        hyper,
        target,
        encode_all(extract, style, target, loss_on_prompt=cfg.loss_on_prompt),
        encode_all(aligned, style, target, loss_on_prompt=cfg.loss_on_prompt),
        slices_of=lambda step: of_step(step).slices,
        place=lambda changes, step: place(changes, of_step(step).target, target.dims),
        options=Options(
            cfg.steps, schedule, cfg.norm_weight, cfg.micro_batch, cfg.gradient_checkpointing, cfg.weight_decay
        ),
        gen=batches,
        noise_of=noise_of if cfg.source_dependence else None,
    )
    final = located(int(torch.randint(num_located, (), generator=batches)) if per_example else None, into)
    with torch.no_grad():
        delta = place(hyper(final.slices), final.target, target.dims).detach()
    if not math.isfinite(delta.norm()):
        raise TrainingError(f"the delta is not finite after step {cfg.steps}; lower method.lr or method.init_scale")
    found = {
        "layers": describe_layers(scores, final),
        "history": history,
        "trained_parameters": sum(p.numel() for p in hyper.parameters()),
    }
    return Delta(delta.changes, found)
