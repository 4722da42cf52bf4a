"""Alignment by weight statistics alone: no text, no label, no forward pass.

The changed lines of each module of the target (its own lines plus the delta) are to have the moments of the source slices that
they come from. The moments of all entries of some lines of a module, with mean m and standard deviation s:

    mean m / u,   deviation s / u,   skewness E[((w - m) / s)^3],   excess kurtosis E[((w - m) / s)^4] - 3

where u is the standard deviation of all entries of that module in its own model. The loss is the mean squared difference over
the four moments, all module types and layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from pkt.align.alignment import MakeDelta, StepLoss
from pkt.errors import TrainingError
from pkt.extract.location import Located
from pkt.extract.slices import line_index
from pkt.inject.changes import Lines
from pkt.inject.delta import Key
from pkt.models.families import KINDS
from pkt.models.lm import LM


@dataclass(frozen=True)
class Goal:
    """What the changed lines of one module start from, and the moments that they are to have."""

    own: Tensor
    """The target's distinct lines, in order, (R, Dt) on its device."""
    unit: Tensor
    """Standard deviation of the target's whole module."""
    moments: Tensor
    """Of the source's slices, (4,)."""


def moments(lines: Tensor, unit: Tensor) -> Tensor:
    """Mean and standard deviation in units of `unit`, skewness and excess kurtosis of all entries, (4,) float32."""
    mean = lines.mean()
    centred = lines - mean
    deviation = centred.pow(2).mean().sqrt()
    standard = centred / deviation
    return torch.stack([mean / unit, deviation / unit, standard.pow(3).mean(), standard.pow(4).mean() - 3])


def goal_maker(source: LM, target: LM) -> Callable[[Located], dict[Key, Goal]]:
    """Goals for located neurons. A whole module is read once for its unit, one at a time: 4 bytes for each of its entries."""

    @cache
    def unit(lm: LM, part: str, layer: int) -> Tensor:
        return lm.part(layer, part).std(correction=0)

    def goals(at: Located) -> dict[Key, Goal]:
        found: dict[Key, Goal] = {}
        for kind, parts in KINDS.items():
            pairs = list(zip(at.source.layers[kind], at.target.layers[kind], strict=True))
            for part in parts:
                chosen = at.target.index[kind].tolist()
                lines = {
                    layer: sorted(set(line_index(part, neurons, target.dims)))
                    for (_, layer), neurons in zip(pairs, chosen, strict=True)
                }
                own = target.slices(part, lines)
                for i, (given, layer) in enumerate(pairs):
                    slices_KD = at.slices[part][i]
                    found[layer, part] = Goal(
                        own[layer].to(slices_KD.device),
                        unit(target, part, layer).to(slices_KD.device),
                        moments(slices_KD, unit(source, part, given).to(slices_KD.device)),
                    )
        return found

    return goals


@dataclass(frozen=True)
class MomentLoss:
    """Mean squared difference of the moments of all changed modules.

    Args:
        goals_of: step -> goals by layer and part.
    """

    goals_of: Callable[[int], dict[Key, Goal]]
    term: ClassVar[str] = "moment_error"

    @contextmanager
    def opened(self) -> Iterator[StepLoss]:
        yield self._step

    def _step(self, make_delta: MakeDelta, step: int) -> float:
        delta, errors = make_delta(), []
        for key, goal in self.goals_of(step).items():
            change = delta.changes[key]
            assert isinstance(change, Lines)
            error = (moments(goal.own + change.values, goal.unit) - goal.moments).pow(2).mean()
            if not error.isfinite():
                raise TrainingError(
                    f"step {step + 1}: the moments of {key[1]}_proj in layer {key[0]} are not finite; lower the learning rate or the "
                    f"initial scale"
                )
            errors.append(error)
        loss = torch.stack(errors).mean()
        loss.backward()
        return float(loss.detach())
