"""Sampling whose draws depend on the seed and the prompt alone: not on the batch, on other prompts or on what ran before.

A token is drawn by inverting the distribution function: one uniform number decides, from a generator of its own for every sample
of every prompt. transformers' own sampling draws for a whole batch from one stream, so another batch size gives other samples.

B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Sampler:
    """The samples of one scoring. The n-th sample of a prompt has the n-th stream of numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._asked: Counter[tuple[int, ...]] = Counter()

    def taking_over(self, ids_BT: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings of `generate` with sampling, if they ask for it, replaced by greedy decoding of what is drawn here.

        Args:
            ids_BT: prompts, padded as `settings["attention_mask"]` says.
        """
        if not settings.get("do_sample"):
            return settings
        prompts = [
            tuple(ids[mask.bool()].tolist()) for ids, mask in zip(ids_BT, settings["attention_mask"], strict=True)
        ]
        draws = Draws([self._stream(ids) for ids in prompts], settings["temperature"], settings["top_p"])
        kept = {key: value for key, value in settings.items() if key not in ("temperature", "top_p")}
        return kept | {"do_sample": False, "logits_processor": [draws]}

    def _stream(self, ids: tuple[int, ...]) -> random.Random:
        number = self._asked[ids]
        self._asked[ids] += 1
        return random.Random(f"{self.seed} {number} {' '.join(map(str, ids))}")


class Draws:
    """A logits processor after which greedy decoding takes the token that was drawn."""

    def __init__(self, streams: Sequence[random.Random], temperature: float, top_p: float) -> None:
        self.streams, self.temperature, self.top_p = streams, temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits (B, V) with all but the drawn token at minus infinity."""
        uniform_B = torch.tensor([stream.random() for stream in self.streams], device=scores.device)
        token_B = drawn(scores, uniform_B, self.temperature, self.top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, token_B[:, None], 0.0)


def drawn(scores_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """Tokens (B,) at the uniform numbers in [0, 1) of the distribution, tokens in the order of their probability.

    Args:
        top_p: only the most probable tokens that together have this share are drawn, the one that reaches it included.
    """
    order = (scores_BV.float() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    below = order.values.cumsum(-1) - order.values
    kept = order.values.where(below < top_p, 0)
    ends = kept.cumsum(-1)
    at = (ends <= uniform_B[:, None] * ends[:, -1:]).sum(-1)
    last = (kept > 0).sum(-1) - 1  # a number that rounds up to the end
    return order.indices.gather(1, at.minimum(last)[:, None])[:, 0]
