"""LaTen: locate, then align. Pre-Align transfer of arXiv:2505.14436.

1. Scores of layers and neurons in both models, by the option `locator` on the extract split.
2. A layer map for attention and one for FFN, by the option `layer_map`: as published, the source's highest-scoring layers, as many as
   the target has.
3. In every mapped layer the best `int(n_target * transfer_rate)` neurons of both models; source rank r meets target rank r.
4. The source's rows of `up_proj` and `v_proj` and columns of `down_proj` and `o_proj` are read from its files.
5. A hypernetwork is trained to turn them into changes of the target's lines, with a language-model loss on the target, or
   with an objective that reads no label.
6. Its last output, placed on the target's neurons, is the delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from pkt.align.activations import ActivationLoss, map_states, prompts
from pkt.align.alignment import Objective, Options, Schedule, align
from pkt.align.hypernetwork import FreeEntries, Hypernetwork
from pkt.align.moments import Goal, MomentLoss, goal_maker
from pkt.align.objectives import LanguageLoss, Passes
from pkt.errors import ConfigError, DataError, TrainingError
from pkt.extract.location import (
    RANDOM_NEURONS,
    Located,
    LocationConfig,
    check_pair,
    counts,
    describe_layers,
    locate,
    located_neurons,
    location_key,
    measure,
    ordered_scores,
    picked,
)
from pkt.extract.pairing import Pairing, pairing_of
from pkt.extract.scores import Attribution
from pkt.extract.slices import place, read_slices
from pkt.inject.delta import Delta, Key
from pkt.methods.base import fork, method
from pkt.models.controls import RandomSource
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.models.tokens import check_same_tokens
from pkt.tasks.base import Example, Task, fingerprint
from pkt.tasks.losses import encode_all

DIAGNOSTIC = -1
"""Seed of the diagnostic's noise; those of control arms are not negative."""


def _is_published_depth(depth: int) -> bool:
    """Left out of what is written and hashed: older recipes do not have the key."""
    return depth == 2


class LatenConfig(LocationConfig):
    """Options of LaTen; the defaults are the published values."""

    injection_rate: float | None = Field(
        None, gt=0, le=1, description="`transfer_rate` at injection; null means the same"
    )
    alignment: Literal["language", "activations", "moments"] = Field(
        "language",
        description="what is trained for: `language`, as published, the loss on the labels of extract and align; without labels: "
        "`activations`, the source's states on align prompts, mapped to the target; `moments` of the source's slices",
    )
    ridge: float = Field(
        0.01,
        gt=0,
        description="for `activations`: ridge of the maps, relative to the mean variance of the source's states",
    )
    unlabelled: int = Field(
        0, ge=0, description="for `activations`: prompts without labels to align on too; the first ones of the task's"
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
    depth: int = Field(
        2,
        ge=1,
        le=16,
        exclude_if=_is_published_depth,
        description="layers of the hypernetwork, with a ReLU between two; 1 is a linear map, which has no hidden width",
    )
    bias: bool = Field(False, description="biases in the hypernetwork")
    init: Literal["published", "fan_in"] = Field(
        "published",
        description="initial weights: `published` N(0, 1e-5 squared); `fan_in` N(0, 1/fan_in), the last times `init_scale`",
    )
    init_scale: float = Field(
        1e-2, gt=0, description="factor on the last weight's initial scale when `init` is `fan_in`"
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
    """A source with at least as many layers as the target, and per layer as many neurons as are chosen in the target; with
    `locator: query_neurons`, models without capped logits (not Gemma 2). Tokenizers and
    families may differ, but for `alignment: activations`, which needs equal token maps."""
    check_pair(source, target, cfg, cfg.transfer_rate, cfg.injection_rate or cfg.transfer_rate)
    if cfg.alignment == "activations":
        check_same_tokens(source, target, "alignment on activations")
    elif cfg.unlabelled:
        raise ConfigError(
            f"method.unlabelled is {cfg.unlabelled}, but method.alignment is {cfg.alignment}: only `activations` reads prompts without labels"
        )
    if cfg.loss_on_prompt and cfg.alignment != "language":
        raise ConfigError(
            f"method.loss_on_prompt is true, but method.alignment is {cfg.alignment}, whose loss reads no labels; set it to false"
        )
    if cfg.schedule_steps is not None and cfg.steps > cfg.schedule_steps:
        raise ConfigError(
            f"method.steps is {cfg.steps}, but method.schedule_steps ends the schedule at {cfg.schedule_steps}; "
            f"set method.schedule_steps={cfg.steps} as well, or to null"
        )


def locations(source: LM, target: LM, task: Task, cfg: LatenConfig, style: str) -> None:
    """What location rests on and, for `activations`, states of both models, in the memo, one model in memory at a time."""
    ids = prompts(_asked(task, cfg), style, source, target, task.format) if cfg.alignment == "activations" else []
    measure(source, target, task, cfg, style)
    if ids:
        for lm in (source, target):
            lm.residuals(ids, [])  # none are wanted yet: a memo records all


def _asked(task: Task, cfg: LatenConfig) -> list[Example]:
    """Whose prompts `activations` reads."""
    return [*task.split("align"), *task.unlabelled(cfg.unlabelled)]


def lacking(cfg: LatenConfig) -> dict[str, str]:
    """Control arms that an objective leaves without meaning."""
    if cfg.alignment == "language":
        return {}
    return {"no_source": f"without a source there is nothing to train for: method.alignment is {cfg.alignment}"}


def location(task: Task, cfg: LatenConfig) -> list[Any]:
    """What decides `locations`."""
    states = [fingerprint(_asked(task, cfg))] if cfg.alignment == "activations" else []
    return [*location_key(task, cfg), cfg.alignment, *states]


def without_source(source: LM, target: LM, task: Task, cfg: LatenConfig, gen: Generator, *, style: str) -> Delta:
    """The control: the entries of the delta are trained themselves, from zero, in the same rows with the same penalty."""
    if "no_source" in (reasons := lacking(cfg)):
        raise ConfigError(f"no_source: {reasons['no_source']}")
    at = counts(target.dims, cfg.transfer_rate)  # what is injected beyond these is never trained
    num = {part: at[kind] for kind, parts in KINDS.items() for part in parts}
    free = FreeEntries(target.dims.layers, num, target.dims.width)
    return _transfer(source, target, task, cfg, gen, style, lambda _: free)


@method(
    config=LatenConfig,
    kind="pre-align",
    paper="arXiv:2505.14436",
    requires=requires,
    splits=("extract", "align"),
    locate=locations,
    location=location,
    located_neurons=located_neurons,
    no_source=without_source,
    random_neurons=RANDOM_NEURONS,
    without_for=lacking,
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
            depth=cfg.depth,
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
    _check_splits(task, cfg)
    # one stream each, so that control arms of another size still draw the same batches
    weights, batches, chance = fork(gen), fork(gen), fork(gen)
    scores = ordered_scores(source, target, task, cfg, style, chance)
    pairing = pairing_of(source, target, task, cfg, style)
    at, into = (counts(target.dims, rate) for rate in (cfg.transfer_rate, cfg.injection_rate or cfg.transfer_rate))
    per_example, num_located = cfg.locate == "per_example", len(task.location)

    def located(example: int | None, num: dict[str, int]) -> Located:
        return locate(source, target, picked(scores, example), num, pairing)

    @lru_cache(maxsize=1)  # slices of a large source are gigabytes: one set at a time
    def of_example(example: int | None) -> Located:
        return located(example, at)

    def example_of(step: int) -> int | None:
        return step % num_located if per_example else None

    @lru_cache(maxsize=1)
    def noise_for(example: int | None) -> dict[str, Tensor]:
        noise = read_slices(RandomSource(source, DIAGNOSTIC), of_example(example).source)
        return {part: t.to(target.torch_device) for part, t in noise.items()}

    make_goals = goal_maker(source, target)
    goals_for = lru_cache(maxsize=1)(lambda example: make_goals(of_example(example)))
    objective, described = _objective(
        source, target, task, cfg, style, batches, scores, pairing, lambda step: goals_for(example_of(step))
    )
    hyper = network(weights).to(target.torch_device)
    schedule = Schedule(cfg.lr, cfg.schedule_steps or max(len(task.split("extract")), cfg.steps))
    history = align(
        hyper,
        objective,
        slices_of=lambda step: of_example(example_of(step)).slices,
        place=lambda changes, step: place(changes, of_example(example_of(step)).target, target.dims),
        options=Options(cfg.steps, schedule, cfg.norm_weight, cfg.weight_decay),
        noise_of=(lambda step: noise_for(example_of(step))) if cfg.source_dependence else None,
    )
    drawn = int(torch.randint(num_located, (), generator=batches)) if per_example else None
    final = located(drawn, into)
    with torch.no_grad():
        delta = place(hyper(final.slices), final.target, target.dims).detach()
    if not math.isfinite(delta.norm()):
        raise TrainingError(f"the delta is not finite after step {cfg.steps}; lower method.lr or method.init_scale")
    found = {
        "layers": describe_layers(scores, final, pairing, cfg, drawn),
        "history": history,
        "trained_parameters": sum(p.numel() for p in hyper.parameters()),
        "labels": _labels(task, cfg),
        "steps": cfg.steps,
    }
    return Delta(delta.changes, found | described)


def _objective(
    source: LM,
    target: LM,
    task: Task,
    cfg: LatenConfig,
    style: str,
    gen: Generator,
    scores: tuple[Attribution, Attribution],
    pairing: Pairing,
    goals_of: Callable[[int], dict[Key, Goal]],
) -> tuple[Objective, dict[str, Any]]:
    """What the delta is trained for, and what the report should know of it."""
    passes = Passes(cfg.micro_batch, cfg.gradient_checkpointing)
    if cfg.alignment == "language":
        extract, aligned = (
            encode_all(task.split(name), style, target, loss_on_prompt=cfg.loss_on_prompt)
            for name in ("extract", "align")
        )
        return LanguageLoss(target, extract, aligned, passes, gen), {}
    if cfg.alignment == "moments":
        return MomentLoss(goals_of), {}
    layers = pairing.layers(scores[0].summed().layers["ffn"][0], target.dims.layers, source.name, ["ffn"])
    asked = _asked(task, cfg)
    ids = prompts(asked, style, source, target, task.format)
    states = map_states(source, target, asked, ids, layers, cfg.ridge, gen)
    return ActivationLoss(target, states, passes, gen), {"state_maps": states.described}


def _check_splits(task: Task, cfg: LatenConfig) -> None:
    """Raise DataError for an empty split that is needed."""
    for name in ("extract", "align") if cfg.alignment != "moments" else ("extract",):
        if not task.split(name):
            raise DataError(f"{task.name}: LaTen needs at least one {name} example; the split is empty")


def _labels(task: Task, cfg: LatenConfig) -> int:
    """Labelled examples that are read: those to locate with, and those of the language-model loss."""
    trained_on = [*task.split("extract"), *task.split("align")] if cfg.alignment == "language" else []
    return len({(e.id, e.prompt) for e in [*task.location, *trained_on]})
