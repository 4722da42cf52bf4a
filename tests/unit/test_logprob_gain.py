"""The fast score against the plain one, neuron by neuron in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pkt.extract import logprob_gain, soft_cap
from pkt.extract.logprob_gain import Lens
from pkt.extract.neurons import ranked


def problem(examples: int, width: int, neurons: int, vocabulary: int, size: float, seed: int):
    gen = torch.Generator().manual_seed(seed)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen)

    return {
        "unembed": r(vocabulary, width),
        "norm": r(width).abs() + 0.1,
        "base": r(examples, width),
        "act": r(examples, neurons) * size,
        "value": r(width, neurons) * size,
        "scale": r(examples).abs() + 0.2,
        "answer": torch.randint(vocabulary, (examples,), generator=gen),
    }


def one_by_one(p: dict, cap: float | None = None) -> torch.Tensor:
    """lp(b + a w) - lp(b), one neuron at a time, float64."""
    p = {k: v.double() if v.is_floating_point() else v for k, v in p.items()}

    def lp(state, e):
        logits = (state * p["scale"][e] * p["norm"]) @ p["unembed"].T
        return (cap * torch.tanh(logits / cap) if cap else logits).log_softmax(-1)[p["answer"][e]]

    return torch.tensor(
        [
            [
                lp(p["base"][e] + p["act"][e, k] * p["value"][:, k], e) - lp(p["base"][e], e)
                for k in range(p["value"].shape[1])
            ]
            for e in range(len(p["base"]))
        ],
        dtype=torch.float64,
    )


def fast(p: dict, memory: int = 1 << 26, cap: float | None = None) -> torch.Tensor:
    return Lens(p["unembed"], p["norm"], memory, cap).gain(p["base"], p["act"], p["value"], p["scale"], p["answer"])


@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0])
def test_equals_the_one_neuron_loop_in_float64(size):
    p = problem(3, 24, 40, 97, size, 0)
    want, got = one_by_one(p), fast(p)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-7)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(2, 60),
    st.sampled_from([1e-4, 0.05, 0.5]),
    st.integers(0, 999),
)
@example(2, 8, 16, 30, 0.5, 572)
@example(2, 7, 19, 44, 0.5, 737)  # takes 0.9975 of the base distribution's mass away: log1p alone would be off by 4e-4
def test_any_shape(examples, width, neurons, vocabulary, size, seed):
    p = problem(examples, width, neurons, vocabulary, size, seed)
    # in float32 logits of 20 are known to 2e-6, and so are probabilities; it shows where a neuron changes them by as much as 1
    atol = 1e-5 if size == 0.5 else 3e-7
    torch.testing.assert_close(fast(p).double(), one_by_one(p), rtol=1e-4, atol=atol)


def test_tiny_scores_keep_their_order():
    """Attention scores are of 1e-6 nats: the plain float32 difference ranks them wrongly, the stable form does not."""
    p = problem(2, 64, 300, 500, 2e-3, 1)
    want = one_by_one(p)
    assert want.abs().median() < 2e-5
    plain = []
    for e in range(2):
        state = p["base"][e] + p["act"][e][:, None] * p["value"].T

        def lp(x, e=e):
            return ((x * p["scale"][e] * p["norm"]) @ p["unembed"].T).log_softmax(-1)[..., p["answer"][e]]

        plain.append(lp(state) - lp(p["base"][e]))
    assert (fast(p) - want).abs().max() < 1e-7
    assert (torch.stack(plain) - want).abs().max() > 1e-7
    best = [set(row.tolist()) for row in ranked(fast(p), 30)[0]]
    assert best == [set(row.tolist()) for row in ranked(want, 30)[0]]


@pytest.mark.parametrize("tile", [1, 7, 64])
def test_tiles_do_not_matter(tile, monkeypatch):
    p = problem(3, 24, 40, 97, 0.1, 2)
    whole = fast(p)
    monkeypatch.setattr(logprob_gain, "TILE", tile)
    torch.testing.assert_close(fast(p), whole, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fast(p, memory=4096), whole, rtol=1e-5, atol=1e-7)


def test_a_saturated_neuron_gives_no_nan():
    """A change that lifts one logit by hundreds of nats, or sinks the answer by as much, stays finite and right."""
    p = problem(1, 8, 4, 50, 1.0, 3)
    p["act"] = torch.tensor([[100.0, -100.0, 30.0, 0.0]])
    got = fast(p)
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), one_by_one(p), rtol=1e-4, atol=1e-4)


def test_ties_go_to_the_lower_index():
    index, values = ranked(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 4)
    assert index.tolist() == [[1, 2, 4, 3]]
    assert values.tolist() == [[3.0, 3.0, 3.0, 2.0]]


@pytest.mark.parametrize("cap", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0, 30.0])
def test_capped_logits_equal_the_one_neuron_loop(cap, size):
    """Nothing is linearised: by the series, by expm1, and where the distribution is taken away, whatever the cap."""
    p = problem(3, 24, 40, 97, size, 1)
    want, got = one_by_one(p, cap), fast(p, cap=cap)
    assert (want - one_by_one(p)).abs().max() > 1e-6, "the cap must be felt"
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=3e-7 if size < 1 else 1e-5)
    if size <= 1:  # larger writes leave near ties behind the cap
        assert torch.equal(ranked(got, 8)[0], ranked(want, 8)[0])
    torch.testing.assert_close(fast(p, memory=1 << 14, cap=cap), got, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cap", [0.5, 6.0, 30.0])
def test_series_of_the_cap(cap):
    """Coefficients against derivatives by autograd; what is cut off stays below what is promised."""
    z = torch.linspace(-3 * cap, 3 * cap, 13, dtype=torch.float64)
    found = soft_cap.coefficients(z, cap, logprob_gain.TERMS)
    x = torch.zeros_like(z, requires_grad=True)
    derivative = torch.exp(cap * (torch.tanh((z + x) / cap) - torch.tanh(z / cap)))
    factorial = 1.0
    for j in range(1, 5):
        (derivative,) = torch.autograd.grad(derivative.sum(), x, create_graph=True)
        factorial *= j
        torch.testing.assert_close(found[j - 1], derivative.detach() / factorial, rtol=1e-9, atol=1e-12)
    for sign in (1, -1):
        step = torch.full_like(z, sign * soft_cap.reach(cap, logprob_gain.TERMS))
        series = sum(a * step ** (j + 1) for j, a in enumerate(found))
        exact = torch.expm1(cap * (torch.tanh((z + step) / cap) - torch.tanh(z / cap)))
        assert (series - exact).abs().max() < soft_cap.ERROR


def test_change_behind_the_cap_keeps_small_digits_and_large_values():
    z = torch.tensor([0.0, 5.0, -40.0, 1e4, 29.0])
    x = torch.tensor([[1e-6], [1e-2], [-3.0], [50.0], [-1e3], [1e5]])
    want = 30 * (torch.tanh((z.double() + x.double()) / 30) - torch.tanh(z.double() / 30))
    torch.testing.assert_close(soft_cap.change(z, x, 30.0).double(), want, rtol=2e-5, atol=1e-12)
