"""Alignment without labels: the target's residual stream is drawn to the source's, mapped to its width.

1. Texts are prompts with the format's forced start of a response, after which the answer would come: of the align split, and on
   request of prompts that have no label. Responses are not looked at. Both models read the same token ids. The first position of a text is left out: it sees one token only, and in large models its state is an
   outlier that drowns the others.
2. Source layers are those of the FFN's layer map: an FFN's output completes the stream that a layer leaves.
3. For every pair of layers a linear map with an intercept is fitted once, by ridge regression in float64, from the source's
   state to the target's own state, on one half of the texts.
4. The loss of a step is taken on the other half: the mean squared difference between the target's state with the delta
   injected and the mapped source state, over the variance of the target's own state, averaged over positions, texts and
   layers. 1 is what the target's mean state would cost.

So what the source knows and the target does not is in what the map, fitted elsewhere, brings over, together with the map's
own errors. States are recorded with one model in memory at a time, before anything is trained.

B batch, T tokens of a text, P positions of many, L target layers, Ds and Dt widths of source and target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from pkt.align.alignment import MakeDelta, StepLoss
from pkt.align.objectives import Passes, batch_loss, checkpointing
from pkt.errors import DataError
from pkt.models.hooks import record
from pkt.models.lm import LM
from pkt.tasks.base import Example
from pkt.tasks.prompts import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pkt.tasks.format import Format

TEXTS = 16
"""Texts of one step."""


@dataclass(frozen=True)
class Text:
    """A prompt and where the target's states are drawn to."""

    id: str
    ids: list[int]
    goal: Tensor
    """Mapped source states after the first position, (L, T - 1, Dt) float32 on the CPU."""


@dataclass(frozen=True)
class MappedStates:
    """The texts to train on, the variance of the target's own states on them, and how well the maps fit."""

    texts: list[Text]
    variance: Tensor
    """Mean over channels of the variance over positions, (L,) float32."""
    described: list[dict[str, Any]]
    """Per target layer: `source` and `target` layer, and `r2` of the map on the texts that it was not fitted on."""


def prompts(examples: Sequence[Example], style: str, source: LM, target: LM, form: Format) -> list[list[int]]:
    """Token ids of the prompts with the forced start of a response, for both models.

    Raises:
        DataError: there are fewer than two, or a prompt has fewer than two tokens or more than a model's context.
    """
    if len(examples) < 2:
        raise DataError(
            f"alignment on activations needs two align examples at least, found {len(examples)}: half of them fit the maps"
        )
    longest = min(source.dims.context, target.dims.context)
    found = [encode_prompt(e, style, target.tokenizer, longest, prefix=form.opening(e, style)) for e in examples]
    for example, ids in zip(examples, found, strict=True):
        if len(ids) < 2:
            raise DataError(f"the prompt of example {example.id} has fewer than two tokens; remove it")
    return found


def map_states(
    source: LM,
    target: LM,
    examples: Sequence[Example],
    ids: Sequence[list[int]],
    layers: Sequence[int],
    ridge: float,
    gen: Generator,
) -> MappedStates:
    """Record both models' states, fit the maps on half of the texts, and map the source's states of the other half.

    Args:
        ids: token ids of every example's text, from `prompts`.
        layers: the source layer for every target layer. ridge: as for `fit`. gen: draws the halves.
    """
    of_source = source.residuals(ids, sorted(set(layers)))
    of_target = target.residuals(ids, range(target.dims.layers))
    order = torch.randperm(len(ids), generator=gen).tolist()
    fitting, training = sorted(order[: len(ids) // 2]), sorted(order[len(ids) // 2 :])
    ends = torch.tensor([len(text) for text in ids]).cumsum(0).tolist()
    after = [torch.arange(end - len(text) + 1, end) for text, end in zip(ids, ends, strict=True)]
    fit_P, train_P = (torch.cat([after[i] for i in half]) for half in (fitting, training))
    goals, variances, described = [], [], []
    for layer, given in enumerate(layers):
        own_PD = of_target.pop(layer)
        linear = fit(of_source[given][fit_P], own_PD[fit_P], ridge)
        goal_PD, held_PD = linear(of_source[given][train_P]), own_PD[train_P]
        variance = (held_PD - held_PD.mean(0)).pow(2).mean()
        goals.append(goal_PD)
        variances.append(variance)
        error = (held_PD - goal_PD).pow(2).mean()
        described.append({"source": given, "target": layer, "r2": float(1 - error / variance)})
    sizes = [len(ids[i]) - 1 for i in training]
    each = zip(*(goal_PD.split(sizes) for goal_PD in goals), strict=True)
    texts = [Text(examples[i].id, ids[i], torch.stack(goal)) for i, goal in zip(training, each, strict=True)]
    return MappedStates(texts, torch.stack(variances), described)


@dataclass(frozen=True)
class LinearMap:
    """x -> (x - mean) weight + intercept, in float64; gives float32."""

    mean: Tensor
    weight: Tensor
    intercept: Tensor

    def __call__(self, x_PD: Tensor) -> Tensor:
        return ((x_PD.double() - self.mean) @ self.weight + self.intercept).float()


def fit(x_PDs: Tensor, y_PDt: Tensor, ridge: float) -> LinearMap:
    """Ridge regression with an intercept that is not penalised.

    Args:
        ridge: the penalty on the weight's squared entries, relative to the mean variance of a channel of x, when the squared
            error is a mean over positions.
    """
    mean_D, intercept_D = x_PDs.double().mean(0), y_PDt.double().mean(0)
    x, y = x_PDs.double() - mean_D, y_PDt.double() - intercept_D
    covariance_DD = x.T @ x / len(x)
    penalty = (ridge * covariance_DD.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny)
    covariance_DD.diagonal().add_(penalty)
    return LinearMap(mean_D, torch.linalg.solve(covariance_DD, x.T @ y / len(x)), intercept_D)


@dataclass(frozen=True)
class ActivationLoss:
    """The loss of step 4 above. A step's batch is `TEXTS` texts, or all if there are fewer, drawn by `gen`."""

    target: LM
    states: MappedStates
    passes: Passes
    gen: Generator
    term: ClassVar[str] = "state_error"

    @contextmanager
    def opened(self) -> Iterator[StepLoss]:
        with self.target.loaded() as model, checkpointing(model, self.passes.gradient_checkpointing):
            yield partial(self._step, model)

    def _step(self, model: PreTrainedModel, make_delta: MakeDelta, step: int) -> float:
        texts = self.states.texts
        batch = [texts[i] for i in torch.randperm(len(texts), generator=self.gen)[:TEXTS].tolist()]
        losses_of = partial(state_errors, model, self.target, self.states.variance)
        return batch_loss(model, make_delta, batch, losses_of, self.passes.micro_batch, step)


def state_errors(model: PreTrainedModel, target: LM, variance_L: Tensor, batch: Sequence[Text]) -> Tensor:
    """Mean over layers and positions of the squared difference to the goal, over the variance, (B,) float32."""
    device = target.torch_device
    ids_BT = pad_sequence([torch.tensor(text.ids) for text in batch], True, target.tokenizer.pad_token_id).to(device)
    mask_BT = pad_sequence([torch.ones(len(text.ids), dtype=torch.long) for text in batch], True).to(device)
    paths = [target.family.layer.format(i=i) for i in range(target.dims.layers)]
    with record(model, (), paths, detach=False) as kept:
        model.get_submodule(target.family.decoder)(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    counted_BT1 = mask_BT[:, 1:, None].bool()
    errors_B = torch.zeros(len(batch), device=device)
    for layer, path in enumerate(paths):
        goal_BTD = pad_sequence([text.goal[layer] for text in batch], True).to(device)
        state_BTD = kept[f"{path}:out"][:, 1:].float().to(device)
        squared_BTD = torch.where(counted_BT1, state_BTD - goal_BTD, 0).pow(2)
        size_B = counted_BT1.sum((1, 2)) * goal_BTD.shape[-1]
        errors_B = errors_B + squared_BTD.sum((1, 2)) / size_B / variance_L[layer].to(device)
    return errors_B / len(paths)
