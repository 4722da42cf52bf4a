"""Function-preserving expansion of a Llama-like model to twice its width, FFN size and heads, and the way back.

Every channel, neuron and head gets a copy. A linear map `W` (out, in) becomes, for output copy a and input copy b,

    W'[a, b] = W / 2 + (-1)^b * E_a,        E_a ~ N(0, (noise * rms(W / 2))^2)

so both copies of an input carry the same value and the E terms cancel: the function is kept exactly, while `noise`
breaks the symmetry between copies and lets training use them apart. `contract` is the inverse on changes of weights: the mean
over output copies of the sum over input copies. It is linear, and `contract(expand(w)) == w`.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

LAYOUT_OUT_ONLY = ("embed_tokens.weight", "norm.weight", "layernorm.weight")
LAYOUT_IN_ONLY = ("lm_head.weight",)


def expand(weights: dict[str, Tensor], noise: float, gen: Generator) -> dict[str, Tensor]:
    """Expand every tensor of a checkpoint.

    Args: weights by name, linear maps (out, in), float32; noise relative to the root mean square of the halved weight.
    Returns: tensors of twice the width, FFN size, query and key-value heads.
    """
    return {name: _expand(name, w, noise, gen) for name, w in sorted(weights.items())}


def _expand(name: str, w: Tensor, noise: float, gen: Generator) -> Tensor:
    if name.endswith(LAYOUT_OUT_ONLY):
        return torch.cat([w, w], dim=-1)
    copies = 1 if name.endswith(LAYOUT_IN_ONLY) else 2
    half = w / 2
    scale = noise * half.pow(2).mean().sqrt()
    rows = []
    for _ in range(copies):
        e = torch.randn(w.shape, generator=gen) * scale
        rows.append(torch.cat([half + e, half - e], dim=1))
    return torch.cat(rows, dim=0)


def contract(changes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map changes of expanded weights back to the original shapes (float32)."""
    return {name: _contract(name, d.float()) for name, d in changes.items()}


def _contract(name: str, d: Tensor) -> Tensor:
    if name.endswith(LAYOUT_OUT_ONLY):
        return sum(d.chunk(2, dim=-1)) / 2  # type: ignore[return-value]
    summed = sum(d.chunk(2, dim=1))
    assert isinstance(summed, Tensor)
    if name.endswith(LAYOUT_IN_ONLY):
        return summed
    return sum(summed.chunk(2, dim=0)) / 2  # type: ignore[return-value]
