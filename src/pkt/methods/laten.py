"""LaTen: locate, then align. Pre-Align transfer of arXiv:2505.14436.

1. Scores of layers and neurons in both models, by the option `locator` on the extract split.
2. A layer map for attention and one for FFN: the source's highest-scoring layers, as many as the target has.
3. In every mapped layer the best `int(n_target * transfer_rate)` neurons of both models; source rank r meets target rank r.
4. The source's rows of `up_proj` and `v_proj` and columns of `down_proj` and `o_proj` are read from its files.
5. A hypernetwork is trained to turn them into changes of the target's lines, with a language-model loss on the target.
6. Its last output, placed on the target's neurons, is the delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from pkt.align.alignment import Options, Schedule, align, encode_all
from pkt.align.hypernetwork import FreeEntries, Hypernetwork
from pkt.errors import ConfigError, DataError, TrainingError
from pkt.extract.intervene import Sets, of_layers, refined_sets
from pkt.extract.layers import top_scores
from pkt.extract.locators import LOCATE_OPTIONS, LocatorOptions, scores_of
from pkt.extract.neurons import NeuronSet, num_chosen, select
from pkt.extract.scores import Attribution
from pkt.extract.slices import place, read_slices
from pkt.inject.delta import Delta
from pkt.methods.base import fork, method
from pkt.models.controls import RandomSource
from pkt.models.families import KINDS, Dims
from pkt.models.lm import LM
from pkt.tasks.base import Task

DIAGNOSTIC = -1
"""Seed of the diagnostic's noise; those of control arms are not negative."""


class LatenConfig(LocatorOptions):
    """Options of LaTen; the defaults are the published values."""

    transfer_rate: float = Field(
        0.1, gt=0, le=1, description="share of a target layer's neurons that is updated, during alignment"
    )
    injection_rate: float | None = Field(
        None, gt=0, le=1, description="the same at injection; null means `transfer_rate`"
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
    locate: Literal["summed", "per_example"] = Field(
        "summed",
        description="neurons: `summed` scores over the extract split; `per_example`, as released: each step on its own example, "
        "injection on one drawn example",
    )
    micro_batch: int = Field(16, ge=1, description="examples in memory at a time; does not change the step")
    gradient_checkpointing: bool = Field(
        False, description="recompute the target's activations in the backward pass to save memory"
    )
    source_dependence: bool = Field(
        False,
        description="at every step, compare the delta with that of the same hypernetwork fed with noise (a diagnostic; changes nothing)",
    )


def counts(dims: Dims, rate: float) -> dict[str, int]:
    """Neurons per target layer and kind at a rate."""
    return {kind: num_chosen(dims.neurons(kind), rate, kind) for kind in KINDS}


def requires(source: LM, target: LM, cfg: LatenConfig) -> None:
    """LaTen needs as many source layers as target layers and as many source neurons as it selects."""
    top_scores(torch.zeros(source.dims.layers), target.dims.layers, source.name)
    for rate in (cfg.transfer_rate, cfg.injection_rate or cfg.transfer_rate):
        for kind, k in counts(target.dims, rate).items():
            if source.dims.neurons(kind) < k:
                raise ConfigError(
                    f"{source.name} has {source.dims.neurons(kind)} {kind} neurons per layer, but rate {rate} takes {k} in "
                    f"{target.name}; use a rate of at most {math.floor(1000 * source.dims.neurons(kind) / target.dims.neurons(kind)) / 1000}"
                )
    if cfg.schedule_steps is not None and cfg.steps > cfg.schedule_steps:
        raise ConfigError(
            f"method.steps is {cfg.steps}, but method.schedule_steps ends the schedule at {cfg.schedule_steps}; "
            f"set method.schedule_steps={cfg.steps} as well, or to null"
        )


@dataclass(frozen=True)
class Located:
    """Both models' chosen neurons at one rate, and the source's slices (part -> (L, K, Ds)) on the target's device."""

    source: NeuronSet
    target: NeuronSet
    slices: dict[str, Tensor]


def choose(
    source: LM, target: LM, scores: tuple[Attribution, Attribution], num: dict[str, int]
) -> tuple[NeuronSet, NeuronSet]:
    """Layers and neurons of both models by summed scores."""
    of_source, of_target = (a.summed() for a in scores)
    maps = {kind: top_scores(of_source.layers[kind][0], target.dims.layers, source.name) for kind in KINDS}
    every = {kind: list(range(target.dims.layers)) for kind in KINDS}
    chosen = select({k: t[0] for k, t in of_source.neurons.items()}, maps, num, source.name)
    return chosen, select({k: t[0] for k, t in of_target.neurons.items()}, every, num, target.name)


def locate(source: LM, target: LM, scores: tuple[Attribution, Attribution], num: dict[str, int]) -> Located:
    """Choose layers and neurons by summed scores and read the source's slices."""
    chosen, placed = choose(source, target, scores, num)
    slices = {part: t.to(target.torch_device) for part, t in read_slices(source, chosen).items()}
    return Located(chosen, placed, slices)


def attributions(source: LM, target: LM, task: Task, cfg: LatenConfig, style: str) -> tuple[Attribution, Attribution]:
    """Scores of both models on the extract split, one model in memory at a time."""
    found = scores_of((source, target), task, cfg, style, per_example=cfg.locate == "per_example")
    return found[0], found[1]


def located_neurons(source: LM, target: LM, task: Task, cfg: LatenConfig, style: str) -> tuple[list[Sets], list[Sets]]:
    """For every example, the neurons of both models that hold it: the refined ones where the locator names them, else the chosen.

    Raises:
        ConfigError: neurons are chosen at random.
    """
    if cfg.is_random:
        raise ConfigError(
            "method.locator: neurons are drawn at random here, which locates nothing; verify another locator (random neurons stand "
            "beside it)"
        )
    scores = attributions(source, target, task, cfg, style)
    if all(found.refined for found in scores):
        return refined_sets(scores[0]), refined_sets(scores[1])
    num, found = counts(target.dims, cfg.transfer_rate), []
    for e in range(len(task.location)):
        per_example = (scores[0].example(e), scores[1].example(e)) if cfg.locate == "per_example" else scores
        found.append(choose(source, target, per_example, num))
    return [of_layers(s, source.dims) for s, _ in found], [of_layers(t, target.dims) for _, t in found]


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
    locate_options=("locate", *LOCATE_OPTIONS),
    located_neurons=located_neurons,
    no_source=without_source,
    random_neurons={"neurons": "random"},
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
    scores = attributions(source, target, task, cfg, style)
    if cfg.is_random:
        scores = (scores[0].with_random_neurons(chance), scores[1].with_random_neurons(chance))
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


def describe_layers(scores: tuple[Attribution, Attribution], final: Located) -> dict[str, dict]:
    """Layer scores (nats, summed over the extract split) and the pairs (source layer, target layer), for the report."""
    of_source, of_target = (a.summed() for a in scores)
    return {
        kind: {
            "source_scores": of_source.layers[kind][0].tolist(),
            "target_scores": of_target.layers[kind][0].tolist(),
            "map": [list(p) for p in zip(final.source.layers[kind], final.target.layers[kind], strict=True)],
        }
        for kind in KINDS
    }
