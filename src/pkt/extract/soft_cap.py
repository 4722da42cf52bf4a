"""Soft-capped logits, C(x) = c tanh(x / c): what a change of the logit does behind the cap, exactly and stably.

z logits before the cap, x their change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ERROR = 1e-9
"""Of the power series, at most."""


def change(z: Tensor, x: Tensor, cap: float) -> Tensor:
    """C(z + x) - C(z), float32, of the shape that z and x broadcast to.

    For |x| up to c by tanh(a + b) - tanh(a) = tanh(b) sech(a)^2 / (1 + tanh(a) tanh(b)), which keeps the digits of small
    changes; beyond, by the difference itself.
    """
    a, b = z / cap, x / cap
    tanh_a, tanh_b = torch.tanh(a), torch.tanh(b)
    small = tanh_b * torch.cosh(a.clamp(-40, 40)).pow(-2) / (1 + tanh_a * tanh_b)
    return cap * torch.where(b.abs() <= 1, small, torch.tanh(a + b) - tanh_a)


def coefficients(z: Tensor, cap: float, terms: int) -> list[Tensor]:
    """a_1 ... a_terms of the power series exp(C(z + x) - C(z)) - 1 = sum_j a_j x^j, each of the shape of z.

    With t = tanh((z + x) / c) the derivative is t' = (1 - t^2) / c, and with F = exp(c (t - t_0)) it is F' = c t' F; both give the
    coefficients one after the other.
    """
    t = [torch.tanh(z / cap)]
    sech_squared = torch.cosh((z / cap).clamp(-40, 40)).pow(-2)
    slopes: list[Tensor] = []  # of c (t - t_0), by power of x
    factors = [torch.ones_like(z)]
    for k in range(terms):
        slope = sech_squared if k == 0 else -2 * t[0] * t[k]
        for i in range(1, k):
            slope = slope - t[i] * t[k - i]
        slopes.append(slope)
        t.append(slope / (cap * (k + 1)))
        total = slopes[0] * factors[k]
        for i in range(1, k + 1):
            total = total + slopes[i] * factors[k - i]
        factors.append(total / (k + 1))
    return factors[1:]


def reach(cap: float, terms: int) -> float:
    """The largest |x| at which `terms` terms leave an error below `ERROR`, whatever z is.

    For complex |w| <= R < c pi / 2 the derivative of C is at most sec(R / c)^2, so that |a_j| <= exp(R sec(R / c)^2) / R^j (Cauchy), and
    what is cut off at x is at most exp(R sec(R / c)^2) q^(terms + 1) / (1 - q), q = x / R. R is near the best choice.
    """
    radius = min(terms + 1, cap / 3)
    bound = math.exp(radius / math.cos(radius / cap) ** 2)
    return radius * (ERROR / bound / 2) ** (1 / (terms + 1))  # 1 / (1 - q) is below 2
