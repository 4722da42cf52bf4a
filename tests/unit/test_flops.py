"""Operations that were counted against those worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pkt.flops import counted

B, T, D, F = 2, 7, 5, 3
PRODUCT = 2 * B * T * D * F
"""A linear map from D to F of B * T vectors; each of its two gradients costs as much."""


def random(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_(grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_forward_and_backward(bias, dtype):
    layer = nn.Linear(D, F, bias=bias, dtype=dtype)
    with counted() as count:
        out = layer(random(B, T, D, grad=True).to(dtype))
        assert count.flop == PRODUCT
        out.sum().backward()
    assert count.flop == 3 * PRODUCT


def test_a_frozen_weight_has_no_gradient_to_count():
    layer = nn.Linear(D, F).requires_grad_(False)
    with counted() as count:
        layer(random(B, T, D, grad=True)).sum().backward()
    assert count.flop == 2 * PRODUCT


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    with counted() as count, context():
        nn.Linear(D, F)(random(B, T, D))
    assert count.flop == PRODUCT


@pytest.mark.parametrize(
    ("do", "flop"),
    [
        (lambda: random(4, 5) @ random(5, 6), 2 * 4 * 5 * 6),
        (lambda: random(3, 4, 5) @ random(3, 5, 6), 2 * 3 * 4 * 5 * 6),
        (lambda: random(4, 5) @ random(5), 2 * 4 * 5),
        (lambda: random(5) @ random(5), 2 * 5),
        (lambda: torch.einsum("bij,bkj->bik", random(2, 3, 4), random(2, 5, 4)), 2 * 2 * 3 * 4 * 5),
        (lambda: torch.addmm(random(4, 6), random(4, 5), random(5, 6)), 2 * 4 * 5 * 6),
        (lambda: random(4, 6).addmm_(random(4, 5), random(5, 6)), 2 * 4 * 5 * 6),
        (lambda: torch.baddbmm(random(2, 4, 6), random(2, 4, 5), random(2, 5, 6)), 2 * 2 * 4 * 5 * 6),
        (lambda: torch.addbmm(random(4, 6), random(2, 4, 5), random(2, 5, 6)), 2 * 2 * 4 * 5 * 6),
        (lambda: torch.mm(random(4, 5), random(5, 6), out=torch.empty(4, 6)), 2 * 4 * 5 * 6),
        (lambda: functional.silu(random(4, 5)) + 1, 0),
    ],
)
def test_products(do, flop):
    with counted() as count:
        do()
    assert count.flop == flop


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention(kv_heads):
    heads, wide = 4, 8
    query, key, value = (random(B, h, T, wide, grad=True) for h in (heads, kv_heads, kv_heads))
    one = 2 * B * heads * T * T * wide
    with counted() as count:
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=kv_heads != heads)
        assert count.flop == 2 * one  # scores, and values
        out.sum().backward()
    assert count.flop == 2 * one + 5 * one  # scores again, and a gradient of each of the two factors of both


def net(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return functional.relu(layer(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_count_again(reentrant):
    layer = nn.Linear(D, F)
    with counted() as count:
        checkpoint(net, layer, random(B, T, D, grad=True), use_reentrant=reentrant).sum().backward()
    assert count.flop == 4 * PRODUCT


def test_hooks_count():
    layer, more = nn.Linear(D, F), random(F, D)
    layer.register_forward_hook(lambda module, args, out: out + functional.linear(args[0], more))
    with counted() as count:
        layer(random(B, T, D))
    assert count.flop == 2 * PRODUCT


def test_nothing_is_counted_twice_or_after_the_end():
    with counted() as outer:
        random(4, 5) @ random(5, 6)
        with counted() as inner:
            random(4, 5) @ random(5, 6)
    random(4, 5) @ random(5, 6)
    assert (outer.flop, inner.flop) == (480, 240)


def test_an_error_inside_leaves_the_kernels_as_they_were():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), counted() as count:
        random(4, 5) @ random(4, 5)
    random(4, 5) @ random(5, 6)
    assert count.flop == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_agrees_with_torch_and_keeps_its_bytes(make_lm, attention):
    lm = make_lm("llama", "target")
    ids = torch.arange(60).view(3, 20)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    with lm.loaded() as model:
        model.set_attn_implementation(attention)
        model.requires_grad_(True)
        plain = gradients()
        with counted() as count:
            seen = gradients()
        with FlopCounterMode(display=False) as known:
            gradients()
    assert len(plain) == len(seen) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    heads, wide, layers = 4, 8, 2
    missing = layers * 7 * (2 * 3 * heads * 20 * 20 * wide) if attention == "sdpa" else 0  # torch knows no CPU kernel
    assert count.flop == known.get_total_flops() + missing
