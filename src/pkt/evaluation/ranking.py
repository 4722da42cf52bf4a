"""Ranking choices: one forward pass per question, logits at the positions that decide alone, shared beginnings read once.

1. A question is its context with the longest beginning that its choices share but for their last tokens (letters: none, or one
   token where the tokenizer cuts ` A` in two). Every choice's log-probability can be read off that one sequence.
2. Questions that begin with the same tokens (a subject's header and examples) form a group; where that saves more than it
   costs, the keys and values of the shared beginning are computed once and expanded over the group's rows.
3. Batches hold questions of like length, padded on the right, where causal attention never looks.

B rows, T tokens, K positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pkt.progress import track

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

PASS = 128
"""What one more forward pass costs, in tokens: 2 ms with the nano target on a CPU (60 tokens), more beside a GPU."""
SAVED = 1 / 3
"""Share of the tokens that a group must save: attention to cached tokens needs an explicit mask and copies, see `benchmarks/ranking.py`."""
TOKENS = {"cpu": 4096, "other": 16384}
"""Tokens in one pass: what keeps a CPU's cache warm, and a GPU busy."""

Likelihood = tuple[float, bool]
"""A choice's summed log-probability in nats, and whether each of its tokens is the model's first choice."""


@dataclass(frozen=True, slots=True)
class Question:
    """A context and its choices, as token ids."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]

    @property
    def stem(self) -> tuple[int, ...]:
        """The longest choice without its last token."""
        return max((choice[:-1] for choice in self.choices), key=len)

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads."""
        return self.context + self.stem

    @property
    def is_rankable(self) -> bool:
        """Whether one sequence decides: no choice is empty, and without its last token each is a beginning of the longest."""
        stem = self.stem
        return all(choice and choice[:-1] == stem[: len(choice) - 1] for choice in self.choices)


@dataclass(frozen=True, slots=True)
class Group:
    """Questions (by number) of which the first `shared` tokens are computed once; 0: nothing is shared."""

    members: tuple[int, ...]
    shared: int


@torch.no_grad()
def likelihoods(
    model: PreTrainedModel, questions: Sequence[Question], *, rows: int, device: Any, share: bool = True
) -> list[list[Likelihood]]:
    """Log-probabilities of every question's choices, float32, in order.

    Hooks and adapters act as in any forward pass. What a model's cache cannot share is computed again.

    Args:
        questions: each rankable.
        rows: questions in one pass at most.
        device: where inputs go.
        share: False computes every question from its first token.
    """
    found: list[list[Likelihood]] = [[]] * len(questions)
    texts = [question.ids for question in questions]
    groups = grouped(questions) if share and _shares(model) else [Group(tuple(range(len(questions))), 0)]
    limit = TOKENS["cpu" if torch.device(device).type == "cpu" else "other"]
    is_split = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    plans = [(g, batch) for g in groups for batch in batches(g, texts, limit, rows, padded=not is_split)]
    cache: DynamicCache | None = None
    held: Group | None = None
    for group, batch in track(plans, "ranking"):
        if group is not held:
            held, cache = group, _prefix(model, texts[group.members[0]][: group.shared], device)
        chosen = [questions[i] for i in batch]
        for i, question, logits_KV in zip(
            batch, chosen, _logits(model, chosen, group.shared, cache, device), strict=True
        ):
            found[i] = _read(question, logits_KV)
    return found


def _shares(model: Any) -> bool:
    """Whether the model's cache holds plain keys and values of every token: no windows, no recurrent states."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    try:
        layers = DynamicCache(config=model.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def grouped(questions: Sequence[Question]) -> list[Group]:
    """Groups that share a beginning, and last one group of all others that shares nothing.

    In order of their ids questions with a common beginning are neighbours. Going through them, a question joins the group
    before it if that saves as many tokens, with it alone or with the one after it too, as leaving the group and beginning another
    with the one after it.
    """
    order = sorted(range(len(questions)), key=lambda i: questions[i].ids)
    common = [0, *(_common(questions[a], questions[b]) for a, b in pairwise(order)), 0]
    runs: list[tuple[list[int], int]] = []
    for i, before, after in zip(order, common[:-1], common[1:], strict=True):
        members, shared = runs[-1] if runs else ([], 0)
        joint = min(shared, before) if len(members) > 1 else before
        joined = max(len(members) * joint, (len(members) + 1) * min(joint, after))
        if joint and joined >= (len(members) - 1) * shared + after:
            runs[-1] = ([*members, i], joint)
        else:
            runs.append(([i], 0))
    groups = [Group(tuple(members), shared) for members, shared in runs if _pays(members, shared, questions)]
    taken = {i for group in groups for i in group.members}
    rest = tuple(i for i in range(len(questions)) if i not in taken)
    return groups + ([Group(rest, 0)] if rest else [])


def _pays(members: Sequence[int], shared: int, questions: Sequence[Question]) -> bool:
    """Whether the tokens that sharing saves outweigh two more passes and what a cache costs."""
    total = sum(len(questions[i].ids) for i in members)
    return (len(members) - 1) * shared > 2 * PASS + SAVED * total


def _common(one: Question, two: Question) -> int:
    """Tokens at the start that two questions have in common; of each context one is left, whose logits are needed."""
    limit = min(len(one.context), len(two.context)) - 1
    pairs = zip(one.context[:limit], two.context[:limit], strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), limit)


def batches(
    group: Group, texts: Sequence[Sequence[int]], tokens: int, rows: int, *, padded: bool = True
) -> Iterator[list[int]]:
    """A group's questions in batches, the longest first; one is closed when its padding would cost more than a new pass.

    Args:
        tokens: in one pass, padding and shared ones included; a longer text goes alone.
        padded: False keeps to texts of the same length.
    """
    batch: list[int] = []
    padding = 0
    for i in sorted(group.members, key=lambda i: (-len(texts[i]), i)):
        longest = len(texts[batch[0] if batch else i])
        short = longest - len(texts[i])
        is_full = len(batch) == rows or (len(batch) + 1) * longest > tokens
        if batch and (is_full or padding + short > PASS * padded):
            yield batch
            batch, padding, short = [], 0, 0
        batch.append(i)
        padding += short
    if batch:
        yield batch


def _prefix(model: Any, ids: Sequence[int], device: Any) -> DynamicCache | None:
    """Keys and values of a shared beginning, one row."""
    from transformers import DynamicCache

    if not ids:
        return None
    cache = DynamicCache(config=model.config)
    model(torch.tensor([ids], device=device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _logits(
    model: Any, questions: Sequence[Question], shared: int, cache: DynamicCache | None, device: Any
) -> list[Tensor]:
    """(K, V) float32 for each question: from the last position of its context on."""
    texts = [question.ids[shared:] for question in questions]
    longest = max(map(len, texts))
    ids_BT = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    first = [len(question.context) - shared - 1 for question in questions]
    if min(map(len, texts)) == longest:  # a number, for positions would have to be where the last layer is
        low = min(first)
        logits_BKV = model(ids_BT, logits_to_keep=longest - low, **_caching(model, cache, len(texts))).logits
        return [row[f - low :].float() for row, f in zip(logits_BKV, first, strict=True)]
    K = 1 + max(len(question.stem) for question in questions)  # behind a shorter stem they are not read
    keep_BK = torch.tensor([[min(f + k, longest - 1) for k in range(K)] for f in first], device=device)
    return list(model(ids_BT, logits_to_keep=keep_BK, **_caching(model, cache, len(texts))).logits.float())


def _caching(model: Any, cache: DynamicCache | None, rows: int) -> dict[str, Any]:
    """A cache of one row as arguments for a pass of many: expanded, without a copy until the pass adds to it."""
    from transformers import DynamicCache

    if cache is None:
        return {"use_cache": False}
    expanded = DynamicCache(config=model.config)
    for layer, held in enumerate(cache.layers):
        expanded.update(held.keys.expand(rows, -1, -1, -1), held.values.expand(rows, -1, -1, -1), layer)
    return {"past_key_values": expanded, "use_cache": True}


def _read(question: Question, logits_KV: Tensor) -> list[Likelihood]:
    """Sums over each choice's tokens."""
    logp_KV = logits_KV.log_softmax(-1)
    best = logits_KV.argmax(-1).tolist()
    found = []
    for choice in question.choices:
        ids = torch.tensor(choice, device=logp_KV.device)
        each = logp_KV[: len(choice)].gather(1, ids[:, None])
        found.append((float(each.sum()), list(choice) == best[: len(choice)]))
    return found
