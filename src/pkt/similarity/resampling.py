"""What chance would give, and how sure a similarity is.

*Chance*: the target's positions are permuted, and the measure is taken again. What makes that fair: positions of one text are
more alike than others in any model, so texts change places as wholes, and positions within their text; and those held out
from ridge regression stay held out. What is left is what two models share that know no more than which positions are of one
text.

*Interval*: a delete-a-group jackknife over texts. Texts are dealt to groups; the measure is taken without each group; with
theta_g those values, the squared standard error is (G - 1) / G sum (theta_g - mean)^2, and the interval is Student's with G - 1
degrees of freedom. Texts and not positions, since those of one text are not independent; a jackknife and no bootstrap,
since a position that is drawn twice is like itself, which biases an unbiased estimate upwards.

P positions, G groups, B permutations, Ls and Lt layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from pkt.similarity.measures import inner

LEVEL = 0.95
HELD_OUT = 0.25
"""Share of the texts that ridge regression is not fitted on."""


def hold_out(text_P: Tensor, gen: Generator, share: float = HELD_OUT) -> Tensor:
    """Whether a position is in a text that is held out, (P,) bool; one text at least is, and one is not."""
    num = int(text_P.max()) + 1
    held = torch.zeros(num, dtype=torch.bool)
    held[torch.randperm(num, generator=gen)[: min(max(1, round(share * num)), num - 1)]] = True
    return held[text_P]


def deal(text_P: Tensor, held_P: Tensor, groups: int, gen: Generator) -> Tensor:
    """The group of each position, (P,): whole texts, as many to each as can be, of the held-out ones too."""
    num = int(text_P.max()) + 1
    is_held = torch.zeros(num, dtype=torch.bool)
    is_held[text_P] = held_P
    order = torch.randperm(num, generator=gen)
    order = torch.cat([order[~is_held[order]], order[is_held[order]]])
    group = torch.empty(num, dtype=torch.long)
    group[order] = torch.arange(num) % groups
    return group[text_P]


def permutation(text_P: Tensor, held_P: Tensor, gen: Generator) -> Tensor:
    """Positions in an order that keeps those of a text together, and held-out ones in their places, (P,)."""
    found_P = torch.empty_like(text_P)
    key_P = torch.rand(int(text_P.max()) + 1, generator=gen, dtype=torch.float64)[text_P]
    inside_P = torch.randperm(len(text_P), generator=gen)
    for part_P in (held_P, ~held_P):
        at = part_P.nonzero()[:, 0]
        mixed = at[inside_P[at].argsort()]
        found_P[at] = mixed[key_P[mixed].argsort(stable=True)]
    return found_P


def by_chance(sources: Mapping[str, Tensor], target_LPP: Tensor, orders: Sequence[Tensor]) -> dict[str, Tensor]:
    """A measure with the target's positions in other orders, for every source (B, Ls, Lt) float64.

    Args: sources, target_LPP the measure's forms; float32 is enough here.
    """
    found: dict[str, list[Tensor]] = {role: [] for role in sources}
    for order in orders:
        mixed_LPP = target_LPP[:, order][:, :, order]
        for role, source_LPP in sources.items():
            found[role].append(inner(source_LPP, mixed_LPP).double())
    return {role: torch.stack(values) for role, values in found.items()}


def interval(value: Tensor, without_G: Tensor, level: float = LEVEL) -> tuple[Tensor, Tensor]:
    """The jackknife's interval around a value.

    Args: without_G the value without each group, (G, *shape of value).
    """
    from scipy.stats import t

    num = len(without_G)
    error = ((num - 1) / num * (without_G - without_G.mean(0)).pow(2).sum(0)).sqrt()
    half = float(t.ppf((1 + level) / 2, num - 1)) * error
    return value - half, value + half
