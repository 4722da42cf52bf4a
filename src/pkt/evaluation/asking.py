"""What is sent for an item: its prompt with as many worked examples as there is room for, and the forced start of the answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkt.errors import DataError
from pkt.tasks.base import Example, Task
from pkt.tasks.prompts import adds_special_tokens, render
from pkt.tasks.protocol import Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """An item as it is sent."""

    example: Example
    text: str
    shots: int
    """Worked examples in the text."""
    length: int
    """Tokens of the text."""
    room: int
    """Tokens that a text may have."""
    is_cut: bool = False

    @property
    def fits(self) -> bool:
        return self.length <= self.room


class Asking:
    """How the items of a task become texts.

    Args:
        context: positions of the model.
    """

    def __init__(
        self, task: Task, style: str, tokenizer: PreTrainedTokenizerFast, context: int, protocol: Protocol
    ) -> None:
        self.task, self.style, self.tokenizer = task, style, tokenizer
        self.context, self.protocol = context, protocol
        self._answers: dict[tuple[str, ...], int] = {}

    def all(self, examples: Sequence[Example]) -> list[Asked]:
        """The items as they are sent, in order; one that does not fit stands among them only where it counts as wrong.

        Raises:
            DataError: a text leaves no room for its answer, and the protocol says to stop, or a cut one holds nothing of its question.
        """
        found = self._rounds(examples)
        long = [asked for asked in found if not asked.fits]
        if long and self.protocol.too_long == "stop":
            raise DataError(self._stopped(long, len(found)))
        is_cutting = self.protocol.too_long == "cut"
        sent = [self._cut(asked) if is_cutting and not asked.fits else asked for asked in found]
        if lost := [asked for asked, left in zip(found, sent, strict=True) if left is None]:
            raise DataError(self._stopped(lost, len(found)))
        wanted = self.protocol.shots
        short = sum(asked.shots < wanted for asked in found)
        if short:
            log.warning(
                "%s: %d of %d prompts have fewer than %d worked examples, for their length; %.2f on average",
                *(self.task.name, short, len(found), wanted, sum(asked.shots for asked in found) / len(found)),
            )
        if long:
            what = {"wrong": "count as wrong", "cut": "are cut at their beginning"}[self.protocol.too_long]
            log.warning(
                "%s: %d of %d prompts leave no room for their answer and %s",
                self.task.name,
                len(long),
                len(found),
                what,
            )
        return [asked for asked in sent if asked is not None]

    def one(self, example: Example) -> Asked:
        """An item with as many worked examples as there is room for, the first of them."""
        return self._rounds([example])[0]

    def _rounds(self, examples: Sequence[Example]) -> list[Asked]:
        """The items; in each round, those that are too long lose a worked example. Tokenizers are fast on many texts at once."""
        form = self.task.format
        shots = [self.task.shots(example, self.protocol.shots) for example in examples]
        rooms = [self.context - self.answer(example) for example in examples]
        found: dict[int, Asked] = {}
        open_ = list(range(len(examples)))
        while open_:
            texts = [self._text(examples[i], shots[i]) for i in open_]
            for i, text, length in zip(open_, texts, self._lengths(texts), strict=True):
                if not shots[i] or length <= min(rooms[i], form.shots_room or rooms[i]):
                    found[i] = Asked(examples[i], text, len(shots[i]), length, rooms[i])
            open_ = [i for i in open_ if i not in found]
            for i in open_:
                shots[i] = shots[i][:-1]
        return [found[i] for i in range(len(examples))]

    def _text(self, example: Example, shots: Sequence[Example]) -> str:
        form = self.task.format
        shown = form.shown(example, shots) if form.shown and shots else example
        return render(shown, self.style, self.tokenizer) + form.opening(example, self.style)

    def answer(self, example: Example) -> int:
        """Positions that an answer may take."""
        form = self.task.format
        if not form.ranks:
            return form.max_new_tokens
        if example.choices not in self._answers:
            ids = self.tokenizer([f" {c}" for c in example.choices], add_special_tokens=False)["input_ids"]
            self._answers[example.choices] = max(map(len, ids)) - 1  # the last token is predicted, not read
        return self._answers[example.choices]

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        found = self.tokenizer(list(texts), add_special_tokens=adds_special_tokens(self.style), verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def _cut(self, asked: Asked) -> Asked | None:
        """The end of a text, as much as fits; None where that holds nothing of the question."""
        text, length = asked.text, asked.length
        while length > asked.room and text:
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
                "offset_mapping"
            ]
            over = min(length - asked.room, len(offsets) - 1)
            text = text[max(1, offsets[over][0]) :]
            (length,) = self._lengths([text])
        question = asked.example.prompt.strip()
        at = asked.text.rfind(question)  # not found in a plain style of its own, whose text is all question
        after = len(asked.text) - at - len(question) if at >= 0 else 0
        if not text[: max(0, len(text) - after)].strip():
            return None
        return Asked(asked.example, text, asked.shots, length, asked.room, is_cut=True)

    def _stopped(self, long: Sequence[Asked], num: int) -> str:
        first = long[0]
        more = f", and so do {len(long) - 1} of the other {num - 1} items" if long[1:] else ""
        cut = " or `cut` (their beginning is cut off)"
        if any(self._cut(asked) is None for asked in long):
            cut, more = "", f"{more}; a cut prompt would have no room for its question"
        return (
            f"example {first.example.id}: its prompt has {first.length} tokens and its answer up to {self.answer(first.example)} more, but "
            f"the context holds {self.context}{more}; set evaluate.too_long (`pkt evaluate --too-long`) to `wrong` (they count as wrong)"
            f"{cut}, or use a model with a longer context"
        )
