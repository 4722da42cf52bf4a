"""Function-preserving expansion and its inverse."""

from __future__ import annotations

import pytest
import torch

from pkt.nano.build import expanded
from pkt.nano.expansion import contract, expand


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.5])
def test_the_function_is_kept(tiny_target, noise):
    ids = torch.arange(3, 40).view(1, -1)
    with tiny_target.loaded() as model, torch.no_grad():
        big = expanded(model, noise)
        assert big.config.hidden_size == 2 * tiny_target.dims.width
        torch.testing.assert_close(big(ids).logits, model(ids).logits, rtol=1e-3, atol=2e-4)
        one, two = big.model.layers[0].mlp.up_proj.weight.chunk(2)
        assert torch.equal(one, two) == (noise == 0)


@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_contract_undoes_expand_and_is_linear(tiny_target, noise):
    with tiny_target.loaded() as model:
        weights = {k: v.clone() for k, v in model.state_dict().items()}
    gen = torch.Generator().manual_seed(0)
    big = expand(weights, noise, gen)
    back = contract(big)
    for name, w in weights.items():
        torch.testing.assert_close(back[name], w, rtol=1e-4, atol=1e-5)
    doubled = contract({name: 2 * w for name, w in big.items()})
    assert all(torch.allclose(doubled[name], 2 * back[name], atol=1e-5) for name in back)


def test_a_change_of_the_small_model_survives_the_way_there_and_back(tiny_target):
    """expand(w + d) - expand(w) with the same noise-free expansion contracts to d."""
    with tiny_target.loaded() as model:
        weights = {k: v.clone() for k, v in model.state_dict().items()}
    gen = torch.Generator().manual_seed(1)
    change = {k: torch.randn(v.shape, generator=gen) * 0.01 for k, v in weights.items()}
    before, after = (expand(w, 0.0, torch.Generator()) for w in (weights, {k: weights[k] + change[k] for k in weights}))
    back = contract({k: after[k] - before[k] for k in weights})
    assert all(torch.allclose(back[k], change[k], atol=1e-5) for k in weights)
