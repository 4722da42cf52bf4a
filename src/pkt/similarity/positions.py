"""Fixed token positions in texts, the same in all models that are compared.

1. A text is a prompt with its response, as the methods render it; where the prompt style is a chat template, it is the last
   model's. Texts come in an order that the generator draws.
2. Where the token maps are equal, all models read the last model's token ids, and a position is an index. Where they differ,
   positions are those at which a token ends after the same character in every model.
3. The first position of a text is left out: it sees one token only, and in large models its state is an outlier.
4. A position whose tokens up to it open an earlier text too is left out: states of a causal model are the same there, and
   one position that counts many times makes any two models look alike.
5. Every text gives up to `PER_TEXT` positions, drawn by the generator, until there are enough; where the texts run out, they
   give more.

P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from pkt.errors import DataError, UnsupportedModelError
from pkt.models.lm import LM
from pkt.tasks.base import Example
from pkt.tasks.prompts import adds_special_tokens, render, reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PER_TEXT = 4
"""Positions of one text, as long as there are other texts: those of one text are not independent."""
FEWEST = 16
"""Positions below which no similarity is worth a number."""
Index = tuple[int, ...]
"""One position: its token index in every model."""


@dataclass(frozen=True)
class Side:
    """What one model reads, and where its states are looked at."""

    ids: list[list[int]]
    """Token ids of each text, up to its last position."""
    at: list[list[int]]
    """Token indices of each text, ascending."""


@dataclass(frozen=True)
class Positions:
    """P positions, text after text."""

    sides: tuple[Side, ...]
    """One for each model, in the order asked for."""
    texts: list[str]
    """Ids of the examples, in the order of the texts."""
    text: Tensor
    """(P,) int64: the number of the text of each position."""
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)


def draw_positions(
    models: Sequence[LM], examples: Sequence[Example], style: str, num: int, gen: Generator
) -> Positions:
    """Draw `num` positions, or as many as there are; then a note says so.

    Raises:
        DataError: there are fewer than `FEWEST`, or all in one text.
        UnsupportedModelError: a tokenizer cannot say where a token's text is.
    """
    reader, count = _Reader(models, style), 0
    read: list[_Text] = []
    for number in torch.randperm(len(examples), generator=gen).tolist():
        if count < num:
            read.append(reader.read(examples[number], gen))
            count += read[-1].take(min(PER_TEXT, num - count))
    while count < num and any(text.left for text in read):
        for text in read:
            count += text.take(min(PER_TEXT, num - count))
    used = [text for text in read if text.taken]
    if count < FEWEST or len(used) < 2:
        raise DataError(
            f"{len(examples)} texts give {count} token positions in {len(used)} of them, without first positions and beginnings that "
            f"stand in another text too; expected {FEWEST} positions in two texts at least; give more examples, or name more splits"
        )
    sides = tuple(_side([(text.ids[m], [at[m] for at in text.taken]) for text in used]) for m in range(len(models)))
    of_text = torch.tensor([k for k, text in enumerate(used) for _ in text.taken])
    notes = [] if count == num else [f"The texts hold {count} positions, fewer than the {num} asked for."]
    return Positions(sides, [text.id for text in used], of_text, notes)


def _side(texts: Sequence[tuple[list[int], list[int]]]) -> Side:
    return Side([ids[: max(at) + 1] for ids, at in texts], [sorted(at) for _, at in texts])


@dataclass
class _Text:
    """A text while positions are drawn."""

    id: str
    ids: list[list[int]]
    """Token ids in every model."""
    left: list[Index]
    """Positions that may be taken, in random order."""
    taken: list[Index] = field(default_factory=list)

    def take(self, num: int) -> int:
        """Take as many of its positions, or all; returns how many."""
        more, self.left = self.left[:num], self.left[num:]
        self.taken += more
        return len(more)


class _Reader:
    """Texts as every model reads them, and the positions that open no text read before."""

    def __init__(self, models: Sequence[LM], style: str) -> None:
        self.models, self.style = models, style
        tokenizers = [lm.tokenizer for lm in models]
        self.last: PreTrainedTokenizerFast = tokenizers[-1]
        self.is_same = all(t.get_vocab() == self.last.get_vocab() for t in tokenizers)
        for tokenizer in tokenizers:
            if not tokenizer.is_fast:
                raise UnsupportedModelError(
                    f"{tokenizer.name_or_path}: its tokenizer is not a fast one; convert it to a tokenizer.json"
                )
        self.seen: list[set[int]] = [set() for _ in models]

    def read(self, example: Example, gen: Generator) -> _Text:
        """A text with its new positions, in an order that `gen` draws."""
        text = render(example, self.style, self.last) + reply(example, self.style)
        if self.is_same:
            ids = self._tokens(self.last, text)[0]
            every = [ids] * len(self.models)
            context = min(lm.dims.context for lm in self.models)
            indices: list[Index] = [(i,) * len(self.models) for i in range(1, min(len(ids), context))]
        else:
            both = [self._tokens(lm.tokenizer, text) for lm in self.models]
            every = [ids for ids, _ in both]
            indices = _common([ends[: lm.dims.context] for (_, ends), lm in zip(both, self.models, strict=True)])
        prefixes = [_prefixes(ids) for ids in every]
        fresh = [
            at for at in indices if not any(p[i] in seen for p, i, seen in zip(prefixes, at, self.seen, strict=True))
        ]
        for seen, p in zip(self.seen, prefixes, strict=True):
            seen.update(p)
        return _Text(example.id, every, [fresh[i] for i in torch.randperm(len(fresh), generator=gen).tolist()])

    def _tokens(self, tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and after which character each ends; 0 where a token stands for no text."""
        found = tokenizer(
            text, add_special_tokens=adds_special_tokens(self.style), return_offsets_mapping=True, verbose=False
        )
        return list(found["input_ids"]), [end if end > start else 0 for start, end in found["offset_mapping"]]


def _common(ends: Sequence[Sequence[int]]) -> list[Index]:
    """Where a token ends after the same character in all models, but for first tokens; of several that do, the last."""
    last = [{end: i for i, end in enumerate(one) if end and i} for one in ends]
    shared = set(last[0]).intersection(*last[1:])
    return [tuple(one[end] for one in last) for end in sorted(shared)]


def _prefixes(ids: Sequence[int]) -> list[int]:
    """A hash of the tokens up to each."""
    found, value = [], 0
    for token in ids:
        value = hash((value, token))
        found.append(value)
    return found
