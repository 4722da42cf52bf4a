"""Chance and intervals of similarities on data whose truth is known."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pkt.similarity.estimates import MEASURES, Design, Source, difference_of_means, estimates, mean_over_pairs
from pkt.similarity.grams import gram
from pkt.similarity.resampling import deal, hold_out, interval, permutation


def clustered(texts: int, each: int, *mixes: Tensor, gen: Generator) -> list[Tensor]:
    """Features that share a state which is half the text's: position by position `state @ mix`, with noise of its own."""
    of_text = torch.randn(texts, 1, 3, generator=gen, dtype=torch.float64).expand(-1, each, -1)
    state = (of_text + torch.randn(texts, each, 3, generator=gen, dtype=torch.float64)).flatten(0, 1) / 2**0.5
    return [
        state @ mix + 0.7 * torch.randn(texts * each, mix.shape[1], generator=gen, dtype=torch.float64) for mix in mixes
    ]


def estimate(name: str, x: Tensor, y: Tensor, design: Design, ridge: float = 0.1):
    return estimates(name, {"x": Source(gram(x)[None], x.shape[1])}, gram(y)[None], design, ridge=ridge)["x"]


def truth(mix_x: Tensor, mix_y: Tensor) -> float:
    """CKA of the population: of the covariance matrices."""
    x, y = (m.T @ m + 0.49 * torch.eye(m.shape[1], dtype=m.dtype) for m in (mix_x, mix_y))
    return float((mix_x.T @ mix_y).norm() ** 2 / (x.norm() * y.norm()))


def test_permutations_keep_texts_together_and_held_out_ones_apart():
    gen = Generator().manual_seed(0)
    text = torch.arange(12).repeat_interleave(3)
    held = hold_out(text, gen)
    assert int(held.sum()) == 3 * 3
    for _ in range(5):
        order = permutation(text, held, gen)
        assert sorted(order.tolist()) == list(range(36))
        assert torch.equal(held[order], held)
        assert all(len(set(block.tolist())) == 1 for block in text[order].view(12, 3))
    moved = torch.stack([permutation(text, held, gen) for _ in range(200)])
    assert (moved == torch.arange(36)).float().mean() < 0.1  # 3 held-out texts stay in place now and then, and no more


def test_groups_hold_whole_texts_of_both_kinds():
    gen = Generator().manual_seed(0)
    text = torch.arange(16).repeat_interleave(2)
    held = hold_out(text, gen)
    group = deal(text, held, 4, gen)
    assert group.view(16, 2).unique(dim=1).shape == (16, 1)
    assert group.bincount().tolist() == [8, 8, 8, 8]
    assert group[held].bincount(minlength=4).tolist() == [2, 2, 2, 2]


def test_chance_is_near_0_for_debiased_and_above_for_biased():
    gen = Generator().manual_seed(0)
    mixes = [torch.randn(3, 40, generator=gen, dtype=torch.float64) for _ in range(2)]
    x, y = clustered(32, 4, *mixes, gen=gen)
    design = Design.draw(torch.arange(32).repeat_interleave(4), 8, 50, gen)
    one, other = (estimate(name, x, y, design) for name in ("cka", "cka_biased"))
    assert abs(one.chance.mean()) < 0.05
    assert other.chance.mean() - one.chance.mean() > 0.01
    assert one.value > one.chance.max() + 0.2  # they do share a state
    ridge = estimate("ridge", x, y, design)
    assert ridge.value > 0.3
    assert ridge.chance.max() < 0.1


def test_intervals_cover_the_truth_though_positions_of_a_text_depend_on_each_other():
    gen = Generator().manual_seed(1)
    mix_x, mix_y = (torch.randn(3, 6, generator=gen, dtype=torch.float64) for _ in range(2))
    text = torch.arange(24).repeat_interleave(4)
    expected, covered, by_position = truth(mix_x, mix_y), 0, 0
    for _ in range(120):
        x, y = clustered(24, 4, mix_x, mix_y, gen=gen)
        design = Design.draw(text, 12, 0, gen)
        for group, is_text in ((design.group, True), (torch.randperm(96, generator=gen) % 12, False)):
            design_ = Design(design.held, group, [torch.arange(96)])
            found = estimate("cka", x, y, design_)
            low, high = found.bounds()
            inside = bool(low <= expected <= high)
            covered, by_position = covered + (inside and is_text), by_position + (inside and not is_text)
    assert covered >= 0.85 * 120
    assert by_position < covered  # groups of positions, of all texts alike, give intervals that are too short


def test_a_difference_on_the_same_texts_is_surer_than_both_apart():
    gen = Generator().manual_seed(2)
    mixes = [torch.randn(3, 6, generator=gen, dtype=torch.float64) for _ in range(2)]
    x, y = clustered(24, 4, *mixes, gen=gen)
    near = x + 0.05 * torch.randn(x.shape, generator=gen, dtype=torch.float64)
    design = Design.draw(torch.arange(24).repeat_interleave(4), 12, 1, gen)
    one, other = (estimate("cka", z, y, design) for z in (near, x))
    value, low, high = difference_of_means(one, other)
    apart_low, apart_high = interval(mean_over_pairs(one.value), mean_over_pairs(one.without))
    assert low <= value <= high
    assert high - low < 0.5 * float(apart_high - apart_low)
    assert difference_of_means(one, one) == (0, 0, 0)


def test_several_sources_at_once_are_each_by_itself():
    gen = Generator().manual_seed(3)
    mixes = [torch.randn(3, width, generator=gen, dtype=torch.float64) for width in (6, 9, 5)]
    x, wide, y = clustered(16, 4, *mixes, gen=gen)
    design = Design.draw(torch.arange(16).repeat_interleave(4), 5, 3, gen)
    for name in MEASURES:
        both = estimates(
            name, {"x": Source(gram(x)[None], 6), "wide": Source(gram(wide)[None], 9)}, gram(y)[None], design, ridge=0.1
        )
        for role, z in (("x", x), ("wide", wide)):
            alone = estimate(name, z, y, design)
            for one, other in zip(vars(both[role]).values(), vars(alone).values(), strict=True):
                assert torch.equal(one, other)
